// What was not read of clustered tokens joins what was: each cluster has the mean value of its
// tokens, and weighs what its unread ones do.
//
//   part  (row, KV head, some segments)  values under weights, summed
//   join  (row, KV head)                 the parts, in order, and what was read

#include "args.h"
#include "cluster_tables.h"
#include "parallel.h"

namespace {

constexpr int64_t kSegments = 16;  // of a part

struct Rest : EstimateArgs {
  int64_t blocks, parts, cells, wide;

  explicit Rest(const EstimateArgs& args) : EstimateArgs(args) {
    blocks = (group + kBlock - 1) / kBlock;
    parts = (segments + kSegments - 1) / kSegments;
    cells = segments * kClusters;
    wide = padded(vdim);
  }
  const float* weights_of(int64_t list) const { return weights + list * group * cells; }
  // Maxima of the weights [4 * blocks], then for each part sums of weights [4 * blocks] and of values
  // [4 * blocks, padded(Dv)].
  float* maxima(int64_t list) const { return scratch + list * floats_of_list(); }
  float* sums(int64_t list, int64_t part) const {
    return maxima(list) + blocks * kBlock * (1 + part * (wide + 1));
  }
  float* state(int64_t list, int64_t part) const { return sums(list, part) + blocks * kBlock; }
  int64_t floats_of_list() const { return blocks * kBlock * (1 + parts * (wide + 1)); }
};

void find_maxima(const Rest& a, int64_t list) {
  for (int64_t g = 0; g < a.blocks * kBlock; ++g) {
    VecF best = splat(-kInf);
    const float* from = a.weights_of(list) + (g < a.group ? g : 0) * a.cells;
    for (int64_t i = 0; i < a.cells; i += LANES) best = vmax(load(from + i), best);
    a.maxima(list)[g] = max_lanes(best);
  }
}

// out[g * stride] += sum over the clusters c of weights[g][c] * values[c].
INLINE void add_values(const float (&weights)[kBlock][kClusters], const int8_t* values, int64_t ahead,
                       int64_t vdim, float* out, int64_t stride) {
  typedef int8_t Bytes __attribute__((vector_size(LANES)));
  for (int64_t d = 0; d < vdim; d += LANES) {
    int64_t n = vdim - d < LANES ? vdim - d : LANES;
    VecF acc[2][kBlock] = {};  // even and odd clusters
    for (int g = 0; g < kBlock; ++g) acc[0][g] = load(out + g * stride + d);
    for (int c = 0; c < kClusters; c += 2) {
      UNROLL for (int odd = 0; odd < 2; ++odd) {
        Bytes raw = {};
        const int8_t* from = values + (c + odd) * vdim + d;
        if (d % 64 == 0) __builtin_prefetch(from + ahead, 0, 2);
        if (n == LANES) __builtin_memcpy(&raw, from, LANES);
        else __builtin_memcpy(&raw, from, n);
        VecF value = __builtin_convertvector(raw, VecF);
        UNROLL for (int g = 0; g < kBlock; ++g) acc[odd][g] += weights[g][c + odd] * value;
      }
    }
    for (int g = 0; g < kBlock; ++g) store(out + g * stride + d, acc[0][g] + acc[1][g]);
  }
}

// Adds a segment of one block of query heads.
void add_segment(const Rest& a, int64_t list, int64_t s, int64_t part, int64_t block, int64_t record,
                 int64_t ahead) {
  const float *from = a.weights_of(list) + s * kClusters, *maxima = a.maxima(list) + block * kBlock;
  const float* scales = a.scales + record * (2 * kClusters + a.subspaces) + kClusters;
  float weights[kBlock][kClusters] = {}, total = 0;
  for (int64_t g = 0; g < kBlock && block * kBlock + g < a.group; ++g) {
    if (maxima[g] == -kInf) continue;
    VecF sum = {};
    for (int v = 0; v < kVectors; ++v) {
      VecF x = load(from + (block * kBlock + g) * a.cells + v * LANES);
      VecF weight = x > -kInf ? exp2_vec((x - maxima[g]) * kLog2E) : VecF{};
      store(weights[g] + v * LANES, weight * load(scales + v * LANES));
      sum += weight;
    }
    float own = sum_lanes(sum);
    a.sums(list, part)[block * kBlock + g] += own;
    total += own;
  }
  if (!(total > 0)) return;
  const int8_t* values = a.values + record * kClusters * a.vdim;
  add_values(weights, values, ahead, a.vdim, a.state(list, part) + block * kBlock * a.wide, a.wide);
}

void sum_part(const Rest& a, int64_t list, int64_t part) {
  int64_t row = list / a.heads, head = list % a.heads, first = part * kSegments;
  int64_t last = first + kSegments < a.segments ? first + kSegments : a.segments;
  float* sums = a.sums(list, part);
  for (int64_t i = 0; i < a.blocks * kBlock * (1 + a.wide); ++i) sums[i] = 0;
  const int32_t* records = a.records + row * a.r_row;
  for (int64_t s = first; s < last; ++s) {
    if (records[s] < 0) continue;
    int64_t record = records[s] * a.heads + head, next = record;
    if (s + 2 < a.segments && records[s + 2] >= 0) next = records[s + 2] * a.heads + head;
    __builtin_prefetch(a.scales + next * (2 * kClusters + a.subspaces) + kClusters, 0, 2);
    int64_t ahead = (next - record) * kClusters * a.vdim;
    for (int64_t block = 0; block < a.blocks; ++block) {
      add_segment(a, list, s, part, block, record, ahead);
    }
  }
}

// Writes out and lse of what was read and the parts together.
template <typename T>
void join(const Rest& a, int64_t list) {
  for (int64_t g = 0; g < a.group; ++g) {
    int64_t at = list * a.group + g;
    float max = a.maxima(list)[g], read = a.read_lse[at], best = max > read ? max : read, total = 0;
    const T* from = static_cast<const T*>(a.read) + at * a.vdim;
    T* to = static_cast<T*>(a.out) + at * a.vdim;
    bool any = best > -kInf;
    float before = any ? exp2_one((read - best) * kLog2E) : 0;
    float factor = any ? exp2_one((max - best) * kLog2E) : 0;
    for (int64_t part = 0; part < a.parts; ++part) total += a.sums(list, part)[g];
    total = before + total * factor;
    if (a.lse) a.lse[at] = any ? best + log2_one(total) * kLn2 : -kInf;
    for (int64_t d = 0; d < a.vdim; d += LANES) {
      int64_t n = a.vdim - d;
      VecF out = {};
      for (int64_t part = 0; part < a.parts; ++part) out += load(a.state(list, part) + g * a.wide + d);
      out *= factor;
      if (before > 0) out += load_at_most(from + d, n) * before;
      if (any) out /= total;
      if (n >= LANES) store(to + d, out);
      else store_first(to + d, out, static_cast<int>(n));
    }
  }
}

template <typename T>
void estimate(const Rest& a) {
  int64_t lists = a.rows * a.heads;
  if (a.threads <= lists) {
    return parallel_for(lists, a.threads, [&](int64_t list, int64_t) {
      find_maxima(a, list);
      for (int64_t part = 0; part < a.parts; ++part) sum_part(a, list, part);
      join<T>(a, list);
    });
  }
  parallel_for(lists, a.threads, [&](int64_t list, int64_t) { find_maxima(a, list); });
  parallel_for(lists * a.parts, a.threads,
               [&](int64_t i, int64_t) { sum_part(a, i / a.parts, i % a.parts); });
  parallel_for(lists, a.threads, [&](int64_t list, int64_t) { join<T>(a, list); });
}

}  // namespace

extern "C" int64_t estimate(const EstimateArgs* a) {
  Rest rest(*a);
  int64_t needed = a->rows * a->heads * rest.floats_of_list();
  if (needed > a->scratch_size) return needed;
  for_dtype(a->dtype, [&]<typename T>() { estimate<T>(rest); });
  return 0;
}

extern "C" int64_t attend(const AttendArgs* a);

extern "C" int64_t attend_all(const AttendAllArgs* a) {
  const AttendArgs& read = a->attend;
  int64_t needed = attend(&read);
  if (needed) return needed;
  EstimateArgs rest = {};
  rest.scratch = read.scratch, rest.scratch_size = read.scratch_size;
  rest.weights = a->weights, rest.values = a->values, rest.scales = a->scales;
  rest.records = a->records, rest.read = rest.out = read.out, rest.read_lse = read.lse;
  rest.rows = read.rows, rest.heads = read.heads, rest.group = read.group, rest.vdim = read.vdim;
  rest.segments = a->segments, rest.subspaces = a->subspaces, rest.r_row = a->r_row;
  rest.dtype = read.dtype, rest.threads = read.threads;
  return estimate(&rest);
}
