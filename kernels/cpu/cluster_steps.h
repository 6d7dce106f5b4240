// Clusters are opened in the order of their shares until they hold `reach` tokens; only the tokens of
// open ones are looked at, by their codes. The others weigh as much as their centroids would.
//
//   look    logits of centroids
//   open    which clusters are opened
//   enter   logits of the tokens of open clusters
//   rank    their shares, and those of tokens scored by their keys, reduced over the group
//
// Each is for one (row, KV head), `look` and `enter` for some of its segments.
#pragma once

#include "cluster_scene.h"
#include "code_keys.h"
#include "order.h"
#include "parallel.h"

namespace {

// The record of a later segment of the same list, to fetch from; that of s where there is none.
inline Span later(const Probe& a, int64_t row, int64_t s, int64_t by) {
  Span span = span_of(a, row, s + by < a.spans ? s + by : s);
  return span.record < 0 ? span_of(a, row, s) : span;
}

inline void look(const Probe& a, int64_t row, int64_t head, int64_t s) {
  Span span = span_of(a, row, s);
  float* logits = a.logits(row, head) + s * kClusters;
  float* sizes = a.sizes(row, head) + s * kClusters;
  if (span.record < 0 || !span.count()) {
    for (int c = 0; c < kClusters; ++c) sizes[c] = 0;
    for (int64_t g = 0; g < a.blocks * kBlock; ++g) {
      for (int c = 0; c < kClusters; ++c) logits[g * a.cells + c] = 0;
    }
    return;
  }
  Record record(a, span, head), ahead(a, later(a, row, s, 2), head);
  __builtin_prefetch(ahead.scales, 0, 2);
  __builtin_prefetch(ahead.ends, 0, 2);
  for (int64_t block = 0; block < a.blocks; ++block) {
    PerCluster sums;
    dot_centroids(a, a.wide_of(row, head), block, record, ahead.centroids, sums);
    for (int g = 0; g < kBlock; ++g) {
      float* to = logits + (block * kBlock + g) * a.cells;
      for (int v = 0; v < kVectors; ++v) store(to + v * LANES, sums[g][v]);
    }
  }
  count_candidates(a, s, span, record, sizes);
}

// The largest key that clusters holding `wanted` candidates reach, or one that all reach. Keys differ
// in the bits `differ`.
inline int32_t key_to_hold(const int32_t* keys, const float* sizes, int64_t count, uint32_t differ,
                           float wanted) {
  constexpr uint32_t kSign = 0x80000000u;
  int width = differ ? 32 - __builtin_clz(differ) : 0;
  uint32_t low = width == 32 ? ~0u : (1u << width) - 1;
  uint32_t key = (static_cast<uint32_t>(keys[0]) ^ kSign) & ~low;
  for (uint32_t bit = width ? 1u << (width - 1) : 0; bit != 0; bit >>= 1) {
    int32_t least = static_cast<int32_t>((key | bit) ^ kSign);
    VecF total = {};
    for (int64_t i = 0; i < count; i += LANES) {
      total += load_keys(keys + i) >= least ? load(sizes + i) : VecF{};
    }
    if (sum_lanes(total) >= wanted) key |= bit;
  }
  return static_cast<int32_t>(key ^ kSign);
}

// Clusters of a segment that have candidates and whose keys lie above, or at, the key.
inline uint32_t clusters_at(const int32_t* keys, const float* sizes, int32_t key, bool above) {
  uint32_t found = 0;
  for (int v = 0; v < kVectors; ++v) {
    VecI own = load_keys(keys + v * LANES), there = load(sizes + v * LANES) > 0.0f;
    found |= lane_bits((above ? own > key : own == key) & there) << (v * LANES);
  }
  return found;
}

// Exponentials of what was entered, less its maximum. Whole vectors can be read of any token.
inline void exponentiate(const Probe& a, int64_t row, int64_t head, int64_t entered) {
  for (int64_t i = entered; i < entered + LANES; ++i) a.tokens(row, head)[i] = 0;
  for (int64_t g = 0; g < a.group; ++g) {
    const float* logits = a.entered(row, head) + g * a.room;
    float* to = a.weights(row, head) + g * a.room;
    VecF best = splat(-kInf), total = {};
    for (int64_t i = 0; i < entered; i += LANES) best = vmax(load(logits + i), best);
    float max = max_lanes(best), from = max > -kInf ? max : 0;
    for (int64_t i = 0; i < entered; i += LANES) {
      VecF weight = exp2_vec((load(logits + i) - from) * kLog2E);
      store(to + i, weight);
      total += weight;
    }
    a.tops(row, head)[g] = max;
    a.totals(row, head)[g] = sum_lanes(total);
  }
}

// Log-sum-exp of each query head: of what was entered, of clusters that stay shut, and of keys.
inline void settle(const Probe& a, int64_t row, int64_t head) {
  float* lse = lse_of(a, row, head);
  for (int64_t g = 0; g < a.group; ++g) {
    lse[g] = 0;
    if (a.reduction == kMax) continue;
    Mass mass = mass_of_many(a.logits(row, head) + g * a.cells, a.sizes(row, head), a.cells);
    mass = joined_any(mass, {a.tops(row, head)[g], a.totals(row, head)[g]});
    mass = joined_any(mass, mass_of_keys(a, row, head, g));
    if (a.known) mass = joined_any(mass, {a.known[(row * a.heads + head) * a.group + g], 1});
    lse[g] = mass.max == -kInf ? 0 : log_sum_exp(mass);
  }
}

// Ranks clusters and opens them; those that are open no longer have a size.
inline void open(const Probe& a, int64_t row, int64_t head) {
  float *logits = a.logits(row, head), *sizes = a.sizes(row, head), *ranks = a.ranks(row, head);
  float* lse = lse_of(a, row, head);
  for (int64_t g = 0; g < a.group; ++g) {
    lse[g] = 0;
    if (a.reduction == kMax) continue;
    Mass mass = mass_of_many(logits + g * a.cells, sizes, a.cells);
    lse[g] = mass.max == -kInf ? 0 : log_sum_exp(mass);
  }
  reduce(a, logits, a.cells, lse, a.cells, ranks);
  int32_t* keys = reinterpret_cast<int32_t*>(ranks);
  uint32_t differ = write_keys(ranks, a.cells, keys);
  float wanted = static_cast<float>(a.reach_of(row));
  int32_t key = key_to_hold(keys, sizes, a.cells, differ, wanted);
  VecF above = {};
  for (int64_t i = 0; i < a.cells; i += LANES) {
    above += load_keys(keys + i) > key ? load(sizes + i) : VecF{};
  }
  float held = sum_lanes(above);
  int64_t first = 0;
  for (int64_t s = 0; s < a.spans; ++s) {
    float* own = sizes + s * kClusters;
    uint32_t clusters = clusters_at(keys + s * kClusters, own, key, true);
    uint32_t equal = held < wanted ? clusters_at(keys + s * kClusters, own, key, false) : 0;
    for (; equal && held < wanted; equal &= equal - 1) {
      clusters |= equal & -equal;
      held += own[__builtin_ctz(equal)];
    }
    Opened found = {static_cast<int32_t>(clusters), static_cast<int32_t>(first), 0, 0};
    if (clusters) {
      Record record(a, span_of(a, row, s), head);
      for (uint32_t left = clusters; left; left &= left - 1) {
        int c = __builtin_ctz(left);
        found.count += record.ends[c] - record.begin_of(c);
        own[c] = 0;
      }
      first += padded(found.count);
    }
    a.opened(row, head)[s] = found;
  }
}

// Most runs lie in one or two cache lines: no loop whose end would be mispredicted.
template <typename T>
void prefetch_run(const T* from, int64_t count) {
  const char *first = reinterpret_cast<const char*>(from), *last = first + count * sizeof(T) - 1;
  __builtin_prefetch(first, 0, 2);
  __builtin_prefetch(last, 0, 2);
  for (first += 64; first < last; first += 64) __builtin_prefetch(first, 0, 2);
}

// Asks for codes and places of what is opened of a segment; returns its codebooks.
inline const int8_t* prefetch_opened(const Probe& a, int64_t row, int64_t head, int64_t s) {
  Record record(a, span_of(a, row, s), head);
  __builtin_prefetch(record.scales + 2 * kClusters, 0, 2);
  for (int32_t left = a.opened(row, head)[s].clusters; left; left &= left - 1) {
    int c = __builtin_ctz(static_cast<uint32_t>(left));
    int64_t begin = record.begin_of(c), count = record.ends[c] - begin;
    prefetch_run(record.places + begin, count);
    for (int64_t j = 0; j < a.subspaces; j += 2) {
      prefetch_run(record.codes + j / 2 * a.segment + begin, count);
    }
  }
  return record.books;
}

// Calls visit(c, begin, count) for the open clusters of a segment: tokens are places[begin ...].
template <typename Visit>
INLINE void for_open(const Record& record, const Opened& found, const Visit& visit) {
  for (uint32_t left = static_cast<uint32_t>(found.clusters); left; left &= left - 1) {
    int c = __builtin_ctz(left);
    int64_t begin = record.begin_of(c);
    visit(c, begin, record.ends[c] - begin);
  }
}

// Tokens of an open cluster that are no candidates have no logit.
template <typename Tables>
void enter_tables(const Probe& a, int64_t row, int64_t head, int64_t s, const int8_t* next) {
  const Opened found = a.opened(row, head)[s];
  Span span = span_of(a, row, s);
  Record record(a, span, head);
  Tables lookup = codes_of<Tables>(a, record);
  float table[kMostParts * kBlock * kClusters];
  float* logits = a.entered(row, head) + found.first;
  int32_t* tokens = a.tokens(row, head) + found.first;
  int32_t begins = static_cast<int32_t>(s * a.segment);
  for (int64_t block = 0; block < a.blocks; ++block) {
    const float* whole = a.logits(row, head) + block * kBlock * a.cells + s * kClusters;
    float* to = logits + block * kBlock * a.room;
    int32_t* names = tokens;
    fill_books<Tables>(a, a.wide_of(row, head), block, record, next, table);
    for_open(record, found, [&](int c, int64_t begin, int64_t count) {
      Vec4 base;
      for (int g = 0; g < kBlock; ++g) base[g] = whole[g * a.cells + c];
      lookup.put_each(table, begin, count, a.room,
                      [](auto x, auto y) __attribute__((always_inline)) { return x + y; }, base, to,
                      [&](int64_t i, int64_t left) __attribute__((always_inline)) {
                        if (block > 0) return;
                        VecI places = load_first(record.places + begin + i, left);
                        put_first(names + i, places + begins, left);
                      });
      to += count;
      names += count;
    });
  }
  for (int64_t i = 0; i < found.count && !a.whole(span); ++i) {
    if (tokens[i] >= span.first && tokens[i] < span.last) continue;
    for (int64_t g = 0; g < a.blocks * kBlock; ++g) logits[g * a.room + i] = -kInf;
  }
  for (int64_t i = found.count; i < padded(found.count); ++i) {
    tokens[i] = begins;
    for (int64_t g = 0; g < a.blocks * kBlock; ++g) logits[g * a.room + i] = -kInf;
  }
}

inline void enter(const Probe& a, int64_t row, int64_t head, int64_t first, int64_t last) {
  const Opened* opened = a.opened(row, head);
  auto next = [&](int64_t s) {
    while (s < last && !opened[s].clusters) ++s;
    return s;
  };
  for (int64_t s = next(first); s < last;) {
    int64_t after = next(s + 1);
    const int8_t* books = prefetch_opened(a, row, head, after < last ? after : s);
    for_subspaces(a, [&]<typename Tables>() { enter_tables<Tables>(a, row, head, s, books); });
    s = after;
  }
}

inline int64_t entered_of(const Probe& a, int64_t row, int64_t head) {
  const Opened* opened = a.opened(row, head);
  int64_t entered = 0;
  for (int64_t s = 0; s < a.spans; ++s) {
    if (opened[s].clusters) entered = opened[s].first + padded(opened[s].count);
  }
  return entered;
}

// Shares of the list; returns its length, a multiple of LANES.
inline int64_t rank(const Probe& a, int64_t row, int64_t head) {
  int64_t entered = entered_of(a, row, head), count = entered;
  float *lse = lse_of(a, row, head), *shares = a.shares(row, head);
  int32_t* tokens = a.tokens(row, head);
  exponentiate(a, row, head, entered);
  settle(a, row, head);
  reduce(a, a.entered(row, head), a.room, lse, entered, shares);
  for (int64_t s = 0; s < a.spans; ++s) {
    Span span = span_of(a, row, s);
    if (span.record >= 0 || !span.count()) continue;
    reduce_logits(logits_of(a, row, s, head, span), logit_stride(span.count()), a.group, lse,
                  a.mean(), span.count(), shares + count);
    for (int64_t t = span.first; t < span.last; ++t) tokens[count++] = static_cast<int32_t>(t);
  }
  int64_t whole = padded(count);
  for (int64_t i = count; i < whole + LANES; ++i) {
    shares[i] = -kInf;
    tokens[i] = 0;
  }
  return whole;
}

// Logits of tokens without a record, of all KV heads, where there are any.
template <typename T>
void score_keys(const Probe& a) {
  int64_t runs = (a.segment + kRun - 1) / kRun, bare = 0;
  if (!a.keys) return;  // nobody asks for their shares
  for (int64_t i = 0; i < a.rows * a.spans; ++i) {
    Span span = span_of(a, i / a.spans, i % a.spans);
    bare += span.record < 0 && span.count();
  }
  if (!bare) return;
  parallel_for(a.rows * a.heads, 1, [&](int64_t i, int64_t) {
    prepare_queries<T>(a, i / a.heads, i % a.heads);
  });
  parallel_for(a.rows * a.spans * runs, a.threads, [&](int64_t i, int64_t) {
    int64_t row = i / runs / a.spans, s = i / runs % a.spans, run = i % runs;
    Span span = span_of(a, row, s);
    if (span.record < 0 && run * kRun < span.count()) prepare_keys<T>(a, row, s, run, span);
  });
}

// From queries to a list, then finish(scene, row, KV head). One thread does all of a list, unless threads
// would stand idle: then they share the segments of each step.
template <typename T, typename Finish>
void for_lists(const Probe& a, const Finish& finish) {
  constexpr int64_t kPart = 16;  // segments
  lay_out(a, true);
  score_keys<T>(a);
  int64_t lists = a.rows * a.heads, parts = (a.spans + kPart - 1) / kPart;
  if (a.by_thread()) {
    return parallel_workers(lists, a.threads, [&](int64_t i, int64_t worker) {
      int64_t row = i / a.heads, head = i % a.heads;
      Probe own = a;
      own.slot = worker;
      widen_queries<T>(own, row, head);
      for (int64_t s = 0; s < a.spans; ++s) look(own, row, head, s);
      open(own, row, head);
      enter(own, row, head, 0, a.spans);
      finish(own, row, head);
    });
  }
  auto in_parts = [&](const auto& step) {
    parallel_for(lists * parts, a.threads, [&](int64_t i, int64_t) {
      int64_t list = i / parts, first = i % parts * kPart;
      int64_t last = first + kPart < a.spans ? first + kPart : a.spans;
      step(list / a.heads, list % a.heads, first, last);
    });
  };
  auto whole = [&](const auto& step) {
    parallel_for(lists, a.threads, [&](int64_t i, int64_t) { step(i / a.heads, i % a.heads); });
  };
  whole([&](int64_t row, int64_t head) { widen_queries<T>(a, row, head); });
  in_parts([&](int64_t row, int64_t head, int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) look(a, row, head, s);
  });
  whole([&](int64_t row, int64_t head) { open(a, row, head); });
  in_parts([&](int64_t row, int64_t head, int64_t first, int64_t last) {
    enter(a, row, head, first, last);
  });
  whole([&](int64_t row, int64_t head) { finish(a, row, head); });
}

}  // namespace
