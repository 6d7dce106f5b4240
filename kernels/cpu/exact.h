// The log-sum-exp of scaled q . k over some keys.
#pragma once

#include "dot.h"

// Largest logit of each of G query heads so far, and the sum of 2^(logit - max), in base 2.
template <int G>
struct Running {
  float max[G], sum[G];

  Running() {
    for (int g = 0; g < G; ++g) max[g] = -kInf, sum[g] = 0;
  }
  float lse(int g) const { return (max[g] + log2_one(sum[g])) * kLn2; }
};

// Adds the keys key_at(0 .. count - 1), at most LANES, for query heads [G, padded(dim)].
template <typename T, int G, typename KeyAt>
INLINE void add_keys(Running<G>& all, const Query<T>* q, int64_t count, int64_t dim, float scale,
                     const KeyAt& key_at) {
  constexpr int kRows = LANES / G;
  float dots[G][LANES];
  for (int64_t i = 0; i < count; i += kRows) {
    const T* row[kRows];
    for (int j = 0; j < kRows; ++j) row[j] = key_at(i + j < count ? i + j : i);
    VecF acc[LANES] = {};
    dot_rows<T, G>(acc, q, padded(dim), row, dim);
    float lane[LANES];
    store(lane, sum_each(acc) * (scale * kLog2E));
    for (int g = 0; g < G; ++g) {
      __builtin_memcpy(dots[g] + i, lane + g * kRows, kRows * sizeof(float));
    }
  }
  for (int g = 0; g < G; ++g) {
    VecF x = lane_numbers() < static_cast<int32_t>(count) ? load(dots[g]) : splat(-kInf);
    float own = max_lanes(x), best = own > all.max[g] ? own : all.max[g];
    all.sum[g] = all.sum[g] * exp2_one(all.max[g] - best) + sum_lanes(exp2_vec(x - best));
    all.max[g] = best;
  }
}

// Over the keys of one unit, for G query heads; logits [G, stride], one written of each.
template <typename T, int G>
INLINE void exact_unit(const Query<T>* q, const T* keys, int64_t k_slot, int64_t unit, int64_t dim,
                       float scale, float* logits, int64_t stride) {
  Running<G> all;
  for (int64_t t = 0; t < unit; t += LANES) {
    int64_t count = unit - t < LANES ? unit - t : LANES;
    add_keys<T, G>(all, q, count, dim, scale, [&](int64_t i) { return keys + (t + i) * k_slot; });
  }
  for (int g = 0; g < G; ++g) logits[g * stride] = all.lse(g);
}
