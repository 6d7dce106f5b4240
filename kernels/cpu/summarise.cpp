// Page metadata of full units: per channel minimum and maximum, mean and standard deviation, or the
// mean alone; or how badly the mean fits: 1 - the lowest cosine between a key and it.

#include "args.h"
#include "dot.h"
#include "parallel.h"

namespace {

template <typename T>
INLINE void store_at_most(T* p, VecF x, int64_t n) {
  if (n >= LANES) {
    store(p, x);
  } else {
    store_first(p, x, static_cast<int>(n));
  }
}

// Keeps a NaN once it is seen, as torch.amin and torch.amax do.
template <typename T>
INLINE void min_max(const T* keys, int64_t stride, int64_t unit, int64_t n, VecF* first,
                    VecF* second) {
  VecF low = load_at_most(keys, n), high = low;
  for (int64_t t = 1; t < unit; ++t) {
    VecF x = load_at_most(keys + t * stride, n);
    low = ((x < low) | (x != x)) ? x : low;
    high = ((x > high) | (x != x)) ? x : high;
  }
  *first = low;
  *second = high;
}

template <typename T>
INLINE VecF mean(const T* keys, int64_t stride, int64_t unit, int64_t n) {
  VecF sum = {};
  for (int64_t t = 0; t < unit; ++t) sum += load_at_most(keys + t * stride, n);
  return sum / static_cast<float>(unit);
}

template <typename T>
INLINE VecF deviation(const T* keys, int64_t stride, int64_t unit, int64_t n, VecF mean) {
  VecF squares = {};
  for (int64_t t = 0; t < unit; ++t) {
    VecF x = load_at_most(keys + t * stride, n) - mean;
    squares += x * x;
  }
  return __builtin_elementwise_sqrt(squares / static_cast<float>(unit));
}

INLINE float root(float x) { return __builtin_elementwise_sqrt(x); }

// The mean is rounded as it is stored; a cosine is 0 where the key or the mean is. Keeps a NaN.
template <typename T>
float misfit(const T* keys, int64_t stride, int64_t unit, int64_t dim) {
  float lowest = kInf;
  for (int64_t t = 0; t < unit; ++t) {
    VecF product = {}, key_square = {}, mean_square = {};
    for (int64_t d = 0; d < dim; d += LANES) {
      T stored[LANES];
      store(stored, mean(keys + d, stride, unit, dim - d));
      VecF m = load(stored), x = load_at_most(keys + t * stride + d, dim - d);
      product += x * m;
      key_square += x * x;
      mean_square += m * m;
    }
    float length = root(sum_lanes(key_square)) * root(sum_lanes(mean_square));
    float cosine = length == 0 ? 0 : sum_lanes(product) / length;
    lowest = cosine < lowest || cosine != cosine ? cosine : lowest;
  }
  return 1 - lowest;
}

template <typename T>
void summarise_unit(const SummariseArgs& a, int64_t unit) {
  for (int64_t h = 0; h < a.heads; ++h) {
    const T* keys = static_cast<const T*>(a.keys) + unit * a.unit * a.k_slot + h * a.k_head;
    T* fields = static_cast<T*>(a.fields) + unit * a.f_unit + h * a.f_head;
    if (a.planes == kMisfit) {
      store_first(fields, splat(misfit(keys, a.k_slot, a.unit, a.dim)), 1);
      continue;
    }
    for (int64_t d = 0; d < a.dim; d += LANES) {
      VecF first, second;
      int64_t n = a.dim - d;
      if (a.planes == kMinMax) {
        min_max(keys + d, a.k_slot, a.unit, n, &first, &second);
      } else {
        first = mean(keys + d, a.k_slot, a.unit, n);
        if (a.planes == kMeanStd) second = deviation(keys + d, a.k_slot, a.unit, n, first);
      }
      store_at_most(fields + d, first, n);
      if (a.planes != kMean) store_at_most(fields + a.f_plane + d, second, n);
    }
  }
}

template <typename T>
void summarise(const SummariseArgs& a) {
  parallel_for(a.count, a.threads, [&](int64_t i, int64_t) { summarise_unit<T>(a, a.units[i]); });
}

}  // namespace

__attribute__((visibility("hidden"))) ParallelRegion parallel_region;

extern "C" void set_parallel_region(ParallelRegion region) { parallel_region = region; }

extern "C" int64_t summarise(const SummariseArgs* a) {
  for_dtype(a->dtype, [&]<typename T>() { summarise<T>(*a); });
  return 0;
}
