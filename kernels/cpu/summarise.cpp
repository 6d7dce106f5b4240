// Page metadata of full units: per channel minimum and maximum, or mean and standard deviation.

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
INLINE void mean_std(const T* keys, int64_t stride, int64_t unit, int64_t n, VecF* first,
                     VecF* second) {
  VecF sum = {}, squares = {};
  for (int64_t t = 0; t < unit; ++t) sum += load_at_most(keys + t * stride, n);
  VecF mean = sum / static_cast<float>(unit);
  for (int64_t t = 0; t < unit; ++t) {
    VecF x = load_at_most(keys + t * stride, n) - mean;
    squares += x * x;
  }
  *first = mean;
  *second = __builtin_elementwise_sqrt(squares / static_cast<float>(unit));
}

template <typename T>
void summarise_unit(const SummariseArgs& a, int64_t unit) {
  for (int64_t h = 0; h < a.heads; ++h) {
    const T* keys = static_cast<const T*>(a.keys) + unit * a.unit * a.k_slot + h * a.k_head;
    T* fields = static_cast<T*>(a.fields) + unit * a.f_unit + h * a.f_head;
    for (int64_t d = 0; d < a.dim; d += LANES) {
      VecF first, second;
      if (a.mean_std) {
        mean_std(keys + d, a.k_slot, a.unit, a.dim - d, &first, &second);
      } else {
        min_max(keys + d, a.k_slot, a.unit, a.dim - d, &first, &second);
      }
      store_at_most(fields + d, first, a.dim - d);
      store_at_most(fields + a.f_plane + d, second, a.dim - d);
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

extern "C" void summarise(const SummariseArgs* a) {
  switch (a->dtype) {
    case kBFloat16: return summarise<BF16>(*a);
    case kFloat16: return summarise<F16>(*a);
    default: return summarise<float>(*a);
  }
}
