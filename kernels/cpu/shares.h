// From logits per query head to one score per unit: the softmax over a row's candidates, reduced
// over the query heads of a KV head.
#pragma once

#include "simd.h"

// Distance between the logits of two query heads over `width` units; odd in cache lines, so that
// the heads of one unit do not all fall into one cache set.
INLINE int64_t logit_stride(int64_t width) { return (width + 31) / 32 * 32 + 16; }

// Writes sums [G, LANES / G] to the logits of `count` units, one row of `stride` for each head.
template <int G>
INLINE void put_logits(float* logits, int64_t stride, int64_t count, VecF sums) {
  constexpr int kRows = LANES / G;
  float lane[LANES];
  store(lane, sums);
  if (count >= kRows) {
    for (int g = 0; g < G; ++g) {
      __builtin_memcpy(logits + g * stride, lane + g * kRows, kRows * sizeof(float));
    }
    return;
  }
  for (int g = 0; g < G; ++g) {
    for (int64_t j = 0; j < (count < kRows ? count : kRows); ++j) {
      logits[g * stride + j] = lane[g * kRows + j];
    }
  }
}

// The largest of some logits, and the sum of exp(logit - max).
struct Mass {
  float max, sum;
};

INLINE Mass mass_of(const float* logits, int64_t count) {
  VecF best = splat(-kInf), total = {};
  auto at = [&](int64_t u) {
    if (count - u >= LANES) return load(logits + u);
    VecF x = splat(-kInf);
    for (int64_t j = 0; j < count - u; ++j) x[j] = logits[u + j];
    return x;
  };
  for (int64_t u = 0; u < count; u += LANES) best = vmax(best, at(u));
  float max = max_lanes(best);
  for (int64_t u = 0; u < count; u += LANES) total += exp2_vec((at(u) - max) * kLog2E);
  return {max, sum_lanes(total)};
}

INLINE Mass joined(Mass a, Mass b) {
  float max = a.max > b.max ? a.max : b.max;
  return {max, a.sum * exp2_one((a.max - max) * kLog2E) + b.sum * exp2_one((b.max - max) * kLog2E)};
}

INLINE float log_sum_exp(Mass mass) { return mass.max + log2_one(mass.sum) * kLn2; }

// out[u] = log of the maximum or mean over the group of exp(logits[g][u] - lse[g]). Whole vectors are
// read of the logits.
INLINE void reduce_logits(const float* logits, int64_t stride, int64_t group, const float* lse,
                          bool mean, int64_t count, float* out) {
  for (int64_t u = 0; u < count; u += LANES) {
    VecF best = splat(-kInf), total = {};
    for (int64_t g = 0; g < group; ++g) best = vmax(load(logits + g * stride + u) - lse[g], best);
    for (int64_t g = 0; mean && g < group; ++g) {
      total += exp2_vec((load(logits + g * stride + u) - lse[g] - best) * kLog2E);
    }
    if (mean) best += log2_vec(total / static_cast<float>(group)) * kLn2;
    put_first(out + u, best, count - u);
  }
}
