// What the unread tokens of each cluster weigh, as a log: those of open clusters by their codes, the
// others as their centroids.
#pragma once

#include "cluster_steps.h"

namespace {

constexpr float kLeast = 0x1.8p-116f;  // e^-80

// Weights [G, stride] of one list, one for each cluster of each segment, and what is added to them.
struct Weights {
  float* to;
  int64_t stride;
  Gains gains;
};

// Tokens of shut clusters that are read nevertheless take from the clusters' sizes.
inline void take_from_shut(const Probe& a, int64_t row, int64_t head, int64_t token) {
  int64_t s = token / a.segment;
  Span span = span_of(a, row, s);
  if (token < span.first || token >= span.last || span.record < 0) return;
  int c = Record(a, span, head).label(token - s * a.segment);
  if (!(a.opened(row, head)[s].clusters >> c & 1)) a.sizes(row, head)[s * kClusters + c] -= 1;
}

inline void weigh_shut(const Probe& a, int64_t row, int64_t head, const Weights& out) {
  const float *sizes = a.sizes(row, head), *logits = a.logits(row, head);
  int64_t there = a.cells < out.stride ? a.cells : out.stride;
  float more = static_cast<float>(out.gains.by_centroid);
  for (int64_t g = 0; g < a.group; ++g) {
    float* to = out.to + g * out.stride;
    for (int64_t i = 0; i < there; i += LANES) {
      VecF size = load(sizes + i);
      VecF log = log2_vec(size > 0.0f ? size : splat(1)) * kLn2 + more;
      store(to + i, size > 0.0f ? load(logits + g * a.cells + i) + log : splat(-kInf));
    }
    for (int64_t i = there; i < out.stride; ++i) to[i] = -kInf;
  }
}

// Sums the weights of `count` tokens of an open cluster from place i of the list on; unread(j) tells
// which of the tokens [j, j + LANES) are not read. Sums lie 16 apart.
template <typename Unread>
INLINE void sum_run(const Probe& a, const float* weights, int64_t i, int64_t count,
                    const Unread& unread, float* sums) {
  for (int64_t g = 0; g < a.group; g += kBlock) {
    VecF total[kBlock] = {};
    for (int64_t n = 0; n < count; n += LANES) {
      VecI lanes = unread(i + n);
      if (count - n < LANES) lanes &= lane_numbers() < static_cast<int32_t>(count - n);
      UNROLL for (int64_t h = 0; h < kBlock; ++h) {
        VecF weight = load(weights + (g + h) * a.room + i + n);
        total[h] += lanes ? weight : VecF{};
      }
    }
    Vec4 sum = sum_lanes_of_each(total);
    UNROLL for (int64_t h = 0; h < kBlock; ++h) sums[(g + h) * kClusters] = sum[h];
  }
}

// What lies e^-80 below the heaviest token counts for nothing.
template <typename Unread>
void weigh_open(const Probe& a, int64_t row, int64_t head, const Weights& out,
                const Unread& unread) {
  const float *weights = a.weights(row, head), *tops = a.tops(row, head);
  float *sums = a.sums(row, head), more = static_cast<float>(out.gains.by_code);
  for (int64_t s = 0; s < a.spans && (s + 1) * kClusters <= out.stride; ++s) {
    const Opened found = a.opened(row, head)[s];
    if (!found.clusters) continue;
    Record record(a, span_of(a, row, s), head);
    int64_t at = found.first;
    for_open(record, found, [&](int c, int64_t, int64_t count) {
      sum_run(a, weights, at, count, unread, sums + c);
      at += count;
    });
    for (int64_t g = 0; g < a.group; ++g) {
      for (int v = 0; v < kVectors; ++v) {
        float* to = out.to + g * out.stride + s * kClusters + v * LANES;
        VecI open = found.clusters >> (lane_numbers() + v * LANES) & 1;
        VecF sum = load(sums + g * kClusters + v * LANES);
        VecF log = log2_vec(sum > kLeast ? sum : splat(1)) * kLn2 + (tops[g] + more);
        store(to, open != 0 ? (sum > kLeast ? log : splat(-kInf)) : load(to));
      }
    }
  }
}

// Needs what `exponentiate` leaves.
template <typename Unread>
void weigh(const Probe& a, int64_t row, int64_t head, const Weights& out, const Unread& unread) {
  weigh_shut(a, row, head, out);
  weigh_open(a, row, head, out, unread);
}

}  // namespace
