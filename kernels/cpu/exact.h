// The log-sum-exp of scaled q . k over the keys of one unit.
#pragma once

#include "dot.h"

// For G query heads [G, padded(dim)]; logits [G, stride], one written of each.
template <typename T, int G>
INLINE void exact_unit(const Query<T>* q, const T* keys, int64_t k_slot, int64_t unit, int64_t dim,
                       float scale, float* logits, int64_t stride) {
  constexpr int kRows = LANES / G;
  float max[G], sum[G], dots[G][LANES];
  for (int g = 0; g < G; ++g) max[g] = -kInf, sum[g] = 0;
  for (int64_t t = 0; t < unit; t += LANES) {
    int64_t count = unit - t < LANES ? unit - t : LANES;
    for (int64_t i = 0; i < count; i += kRows) {
      const T* row[kRows];
      for (int j = 0; j < kRows; ++j) row[j] = keys + (t + (i + j < count ? i + j : i)) * k_slot;
      VecF acc[LANES] = {};
      dot_rows<T, G>(acc, q, padded(dim), row, dim);
      float lane[LANES];
      store(lane, sum_each(acc) * (scale * kLog2E));
      for (int g = 0; g < G; ++g) __builtin_memcpy(dots[g] + i, lane + g * kRows, kRows * sizeof(float));
    }
    for (int g = 0; g < G; ++g) {
      VecF x = lane_numbers() < static_cast<int32_t>(count) ? load(dots[g]) : splat(-kInf);
      float own = max_lanes(x), best = own > max[g] ? own : max[g];
      sum[g] = sum[g] * exp2_one(max[g] - best) + sum_lanes(exp2_vec(x - best));
      max[g] = best;
    }
  }
  for (int g = 0; g < G; ++g) logits[g * stride] = (max[g] + log2_one(sum[g])) * kLn2;
}
