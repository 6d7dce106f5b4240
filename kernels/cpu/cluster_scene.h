// What scoring by records of clusters works on: sizes, and the parts of its scratch.
#pragma once

#include "cluster_tables.h"
#include "shares.h"

// What was opened of a segment: a bit for each cluster, and where its tokens lie in the list.
struct Opened {
  int32_t clusters, first, count, unused;
};

// Each (row, KV head) has a list of tokens: those of open clusters, segment by segment and within it
// cluster by cluster, then those of segments without a record. What is kept of a list lies in a slot
// of scratch: its own, or where a thread does all of a list the thread's, which stays in its cache.
struct Probe : Clustered {
  int64_t cells, room, list, words, slot = -1;
  int64_t logits_at, sizes_at, ranks_at, opened_at, entered_at, weights_at, shares_at, tokens_at,
      keys_at, sums_at, bits_at, floats;

  explicit Probe(const CodeArgs& args) : Clustered(args) {
    int64_t lists = by_thread() ? threads : rows * heads, most = 0, keyed = 0;
    for (int64_t row = 0; row < rows; ++row) {
      int64_t n = args.end[row] - begin[row], wanted = reach_of(row) + segment, bare = 0;
      for (int64_t s = 0; s < spans; ++s) {
        Span span = span_of(*this, row, s);
        bare += span.record < 0 ? span.count() : 0;
      }
      if (wanted < n) n = wanted;
      most = n > most ? n : most;
      keyed = bare > keyed ? bare : keyed;
    }
    cells = spans * kClusters;
    room = padded(most + 2 * segment) + LANES * (spans + 1);
    list = room + padded(keyed) + LANES;
    words = width / 64 + 1;
    logits_at = free_at;
    sizes_at = logits_at + lists * blocks * kBlock * cells;
    ranks_at = sizes_at + lists * cells;
    opened_at = ranks_at + lists * cells;
    entered_at = opened_at + lists * spans * 4;
    weights_at = entered_at + lists * blocks * kBlock * room;
    shares_at = weights_at + lists * blocks * kBlock * room;
    tokens_at = shares_at + lists * list;
    keys_at = tokens_at + lists * list;
    sums_at = keys_at + lists * list;
    bits_at = (sums_at + lists * blocks * kBlock * (kClusters + 2) + 1) / 2 * 2;
    floats = bits_at + lists * words * 4;
  }

  bool by_thread() const { return threads <= rows * heads; }
  int64_t reach_of(int64_t row) const { return reach ? reach[row] : width; }
  float* at(int64_t base, int64_t row, int64_t head, int64_t size) const {
    return scratch + base + (slot < 0 ? row * heads + head : slot) * size;
  }
  // [4 * blocks, cells], then [cells] each.
  float* logits(int64_t row, int64_t head) const {
    return at(logits_at, row, head, blocks * kBlock * cells);
  }
  float* sizes(int64_t row, int64_t head) const { return at(sizes_at, row, head, cells); }
  float* ranks(int64_t row, int64_t head) const { return at(ranks_at, row, head, cells); }
  Opened* opened(int64_t row, int64_t head) const {
    return reinterpret_cast<Opened*>(at(opened_at, row, head, spans * 4));
  }
  // Of the tokens of open clusters logits, and their exponentials, [4 * blocks, room]; of the list
  // shares, tokens and what sorts as shares do, [list].
  float* entered(int64_t row, int64_t head) const {
    return at(entered_at, row, head, blocks * kBlock * room);
  }
  float* weights(int64_t row, int64_t head) const {
    return at(weights_at, row, head, blocks * kBlock * room);
  }
  float* shares(int64_t row, int64_t head) const { return at(shares_at, row, head, list); }
  int32_t* tokens(int64_t row, int64_t head) const {
    return reinterpret_cast<int32_t*>(at(tokens_at, row, head, list));
  }
  int32_t* keys_of(int64_t row, int64_t head) const {
    return reinterpret_cast<int32_t*>(at(keys_at, row, head, list));
  }
  // For each query head the maximum and the sum of what was entered, then room for 16 sums.
  float* tops(int64_t row, int64_t head) const {
    return at(sums_at, row, head, blocks * kBlock * (kClusters + 2));
  }
  float* totals(int64_t row, int64_t head) const { return tops(row, head) + blocks * kBlock; }
  float* sums(int64_t row, int64_t head) const { return totals(row, head) + blocks * kBlock; }
  // A bit for each token of a row, twice.
  uint64_t* bits(int64_t row, int64_t head) const {
    return reinterpret_cast<uint64_t*>(at(bits_at, row, head, words * 4));
  }
  bool whole(const Span& span) const { return span.count() == segment; }
  bool mean() const { return reduction == kMeanSoftmax; }
};

// As mass_of, each logit counting `sizes` times.
INLINE Mass mass_of_many(const float* logits, const float* sizes, int64_t count) {
  VecF best = splat(-kInf), total = {};
  for (int64_t i = 0; i < count; i += LANES) {
    best = vmax(load(sizes + i) > 0.0f ? load(logits + i) : splat(-kInf), best);
  }
  float max = max_lanes(best);
  if (max == -kInf) return {max, 0};
  for (int64_t i = 0; i < count; i += LANES) {
    VecF size = load(sizes + i), weight = exp2_vec((load(logits + i) - max) * kLog2E);
    total += size > 0.0f ? size * weight : VecF{};
  }
  return {max, sum_lanes(total)};
}

INLINE Mass joined_any(Mass a, Mass b) {
  return a.max == -kInf ? b : b.max == -kInf ? a : joined(a, b);
}

// Mass of the tokens without a record, for one query head.
INLINE Mass mass_of_keys(const Probe& a, int64_t row, int64_t head, int64_t g) {
  Mass found = {-kInf, 0};
  for (int64_t s = 0; s < a.spans; ++s) {
    Span span = span_of(a, row, s);
    if (span.record >= 0 || !span.count()) continue;
    const float* logits = logits_of(a, row, s, head, span) + g * logit_stride(span.count());
    found = joined_any(found, mass_of(logits, span.count()));
  }
  return found;
}

// out[i] = log of the maximum or mean over the group of exp(logits[g][i] - lse[g]); whole vectors.
INLINE void reduce(const Probe& a, const float* logits, int64_t stride, const float* lse, int64_t count,
            float* out) {
  for (int64_t i = 0; i < count; i += LANES) {
    VecF best = splat(-kInf), total = {};
    for (int64_t g = 0; g < a.group; ++g) {
      best = vmax(load(logits + g * stride + i) - lse[g], best);
    }
    for (int64_t g = 0; a.mean() && g < a.group; ++g) {
      total += exp2_vec((load(logits + g * stride + i) - lse[g] - best) * kLog2E);
    }
    if (a.mean()) best += log2_vec(total / static_cast<float>(a.group)) * kLn2;
    store(out + i, best);
  }
}
