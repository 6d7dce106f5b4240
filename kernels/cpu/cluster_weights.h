// What the unread tokens of each cluster weigh, as a log: those of open clusters by their codes, the
// others as their centroids.
#pragma once

#include "cluster_steps.h"

namespace {

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

// Of `count` tokens of an open cluster from place i of the list on; unread(j) has a bit for each of
// the tokens [j, j + LANES) that is not read.
template <typename Unread>
INLINE void weigh_run(const Probe& a, const float* logits, int64_t i, int64_t count,
                      const Unread& unread, const Weights& out, int64_t cell) {
  constexpr int64_t kMany = 512 / LANES;  // vectors whose bits are kept
  VecI kept[kMany];
  VecI any = {};
  int64_t vectors = (count + LANES - 1) / LANES;
  for (int64_t n = 0; n < vectors; ++n) {
    VecI lanes = unread(i + n * LANES) & (lane_numbers() < static_cast<int32_t>(count - n * LANES));
    any |= lanes;
    if (n < kMany) kept[n] = lanes;
  }
  auto lanes_of = [&](int64_t n) {
    if (n < kMany) return kept[n];
    return unread(i + n * LANES) & (lane_numbers() < static_cast<int32_t>(count - n * LANES));
  };
  for (int64_t g = 0; g < a.group; ++g) {
    const float* from = logits + g * a.room + i;
    VecF best = splat(-kInf), total = {};
    for (int64_t n = 0; n < vectors; ++n) {
      best = vmax(lanes_of(n) ? load(from + n * LANES) : splat(-kInf), best);
    }
    float max = max_lanes(best);
    float* to = out.to + g * out.stride + cell;
    *to = -kInf;
    if (max == -kInf) continue;
    for (int64_t n = 0; n < vectors; ++n) {
      VecF weight = exp2_vec((load(from + n * LANES) - max) * kLog2E);
      total += lanes_of(n) ? weight : VecF{};
    }
    *to = max + log2_one(sum_lanes(total)) * kLn2 + static_cast<float>(out.gains.by_code);
  }
}

template <typename Unread>
void weigh(const Probe& a, int64_t row, int64_t head, const Weights& out, const Unread& unread) {
  weigh_shut(a, row, head, out);
  const float* logits = a.entered(row, head);
  for (int64_t s = 0; s < a.spans && (s + 1) * kClusters <= out.stride; ++s) {
    const Opened found = a.opened(row, head)[s];
    if (!found.clusters) continue;
    Record record(a, span_of(a, row, s), head);
    int64_t at = found.first;
    for_open(record, found, [&](int c, int64_t, int64_t count) {
      weigh_run(a, logits, at, count, unread, out, s * kClusters + c);
      at += count;
    });
  }
}

}  // namespace
