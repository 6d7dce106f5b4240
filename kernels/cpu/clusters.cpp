// Scores of single tokens by records of clusters. Clusters are opened in the order of their shares
// until they hold `reach` tokens; only the tokens of open ones are looked at, by their codes. The
// others weigh as much as their centroids would, and have no score. Tokens of segments without a
// record are scored by their keys.
//
//   look    (row, segment, KV head)  logits of centroids; without a record: of keys
//   open    (row, KV head)           which clusters are opened
//   enter   (row, segment, KV head)  logits of the tokens of open clusters
//   finish  (row, KV head)           their shares, reduced over the group

#include "cluster_scene.h"
#include "code_keys.h"
#include "order.h"
#include "parallel.h"

namespace {

void look(const Probe& a, int64_t row, int64_t s, int64_t head, const Span& span) {
  float* logits = a.logits(row, head) + s * kClusters;
  float* sizes = a.sizes(row, head) + s * kClusters;
  if (span.record < 0 || !span.count()) {
    for (int c = 0; c < kClusters; ++c) sizes[c] = 0;
    for (int64_t g = 0; g < a.blocks * kBlock; ++g) {
      for (int c = 0; c < kClusters; ++c) logits[g * a.cells + c] = 0;
    }
    return;
  }
  Record record(a, span, head);
  for (int64_t block = 0; block < a.blocks; ++block) {
    PerCluster sums;
    dot_centroids(a, a.wide_of(row, head), block, record,
                  record.centroids + 2 * a.dim * kClusters, sums);
    for (int g = 0; g < kBlock; ++g) {
      float* to = logits + (block * kBlock + g) * a.cells;
      for (int v = 0; v < kVectors; ++v) store(to + v * LANES, sums[g][v]);
    }
  }
  count_candidates(a, s, span, record, sizes);
}

// The largest key that clusters holding `wanted` candidates reach, the smallest number if none do.
int32_t key_to_hold(const int32_t* keys, const float* sizes, int64_t count, float wanted) {
  constexpr uint32_t kSign = 0x80000000u;
  uint32_t key = 0;
  for (uint32_t bit = kSign; bit != 0; bit >>= 1) {
    int32_t least = static_cast<int32_t>((key | bit) ^ kSign);
    VecF total = {};
    for (int64_t i = 0; i < count; i += LANES) {
      total += load_keys(keys + i) >= least ? load(sizes + i) : VecF{};
    }
    if (sum_lanes(total) >= wanted) key |= bit;
  }
  return static_cast<int32_t>(key ^ kSign);
}

// Ranks clusters and opens them; those that are open no longer have a size.
void open(const Probe& a, int64_t row, int64_t head) {
  float *logits = a.logits(row, head), *sizes = a.sizes(row, head), *ranks = a.ranks(row, head);
  float* lse = lse_of(a, row, head);
  for (int64_t g = 0; g < a.group; ++g) {
    lse[g] = 0;
    if (a.reduction == kMax) continue;
    Mass mass = joined_any(mass_of_many(logits + g * a.cells, sizes, a.cells),
                           mass_of_keys(a, row, head, g));
    lse[g] = mass.max == -kInf ? 0 : log_sum_exp(mass);
  }
  reduce(a, logits, a.cells, lse, a.cells, ranks);
  int32_t* keys = reinterpret_cast<int32_t*>(ranks);
  write_keys(ranks, a.cells, keys);
  float wanted = static_cast<float>(a.reach_of(row)), held = 0;
  int32_t key = key_to_hold(keys, sizes, a.cells, wanted);
  for (int64_t i = 0; i < a.cells; ++i) held += keys[i] > key ? sizes[i] : 0;
  int64_t first = 0;
  for (int64_t s = 0; s < a.spans; ++s) {
    Opened found = {0, static_cast<int32_t>(first), 0, 0};
    Span span = span_of(a, row, s);
    int64_t count = 0;
    for (int c = 0; c < kClusters; ++c) {
      int64_t i = s * kClusters + c;
      bool equal = keys[i] == key && held < wanted;
      if (!(sizes[i] > 0) || !(keys[i] > key || equal)) continue;
      if (keys[i] == key) held += sizes[i];
      Record record(a, span, head);
      found.clusters |= 1 << c;
      count += record.ends[c] - record.begin_of(c);
      sizes[i] = 0;
    }
    if (count) first += padded(count) + LANES;
    found.count = static_cast<int32_t>(count);
    a.opened(row, head)[s] = found;
  }
}

// Keeps the candidates among `count` entered tokens of a segment; returns their number.
int64_t keep_candidates(const Probe& a, const Span& span, int64_t count, float* logits,
                        int32_t* tokens) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (tokens[i] < span.first || tokens[i] >= span.last) continue;
    for (int64_t g = 0; g < a.blocks * kBlock; ++g) {
      logits[g * a.room + kept] = logits[g * a.room + i];
    }
    tokens[kept++] = tokens[i];
  }
  return kept;
}

template <typename T>
void prefetch_run(const T* from, int64_t count) {
  prefetch_row(from, count);
  if (count) __builtin_prefetch(from + count - 1, 0, 2);
}

// Asks for codes and places of what is opened of a segment; returns its codebooks.
const int8_t* prefetch_opened(const Probe& a, int64_t i) {
  int64_t row = i / a.heads / a.spans, s = i / a.heads % a.spans, head = i % a.heads;
  Opened found = a.opened(row, head)[s];
  Record record(a, span_of(a, row, s), head);
  for (int32_t left = found.clusters; left; left &= left - 1) {
    int c = __builtin_ctz(static_cast<uint32_t>(left));
    int64_t begin = record.begin_of(c), count = record.ends[c] - begin;
    prefetch_run(record.places + begin, count);
    for (int64_t j = 0; j < a.subspaces; j += 2) {
      prefetch_run(record.codes + j / 2 * a.segment + begin, count);
    }
  }
  return record.books;
}

template <typename Tables>
void enter(const Probe& a, int64_t i, const int8_t* next) {
  int64_t row = i / a.heads / a.spans, s = i / a.heads % a.spans, head = i % a.heads;
  Opened& found = a.opened(row, head)[s];
  Span span = span_of(a, row, s);
  Record record(a, span, head);
  Tables lookup = codes_of<Tables>(a, record);
  float table[kMostParts * kBlock * kClusters];
  float* logits = a.entered(row, head) + found.first;
  int32_t* tokens = a.tokens(row, head) + found.first;
  for (int64_t block = 0; block < a.blocks; ++block) {
    const float* whole = a.logits(row, head) + block * kBlock * a.cells + s * kClusters;
    float* to = logits + block * kBlock * a.room;
    fill_books<Tables>(a, a.wide_of(row, head), block, record, next, table);
    for (int32_t left = found.clusters; left; left &= left - 1) {
      int c = __builtin_ctz(static_cast<uint32_t>(left));
      int64_t begin = record.begin_of(c), count = record.ends[c] - begin;
      Vec4 base;
      for (int g = 0; g < kBlock; ++g) base[g] = whole[g * a.cells + c];
      lookup.put_each(table, begin, count, a.room,
                      [](auto x, auto y) __attribute__((always_inline)) { return x + y; }, base, to);
      to += count;
    }
  }
  for (int32_t left = found.clusters; left; left &= left - 1) {
    int c = __builtin_ctz(static_cast<uint32_t>(left));
    for (int64_t i = record.begin_of(c); i < record.ends[c]; ++i) {
      *tokens++ = static_cast<int32_t>(s * a.segment + record.places[i]);
    }
  }
  int64_t count = found.count, end = padded(count) + LANES;
  tokens -= count;
  if (!a.whole(span)) count = keep_candidates(a, span, count, logits, tokens);
  found.count = static_cast<int32_t>(count);
  for (int64_t g = 0; g < a.blocks * kBlock; ++g) {
    for (int64_t i = count; i < end; ++i) logits[g * a.room + i] = -kInf;
  }
}

// Log-sum-exp of each query head: of what was entered, of clusters that stay shut, and of keys.
void settle(const Probe& a, int64_t row, int64_t head, int64_t entered) {
  float* lse = lse_of(a, row, head);
  for (int64_t g = 0; g < a.group; ++g) {
    lse[g] = 0;
    if (a.reduction == kMax) continue;
    Mass mass = mass_of_many(a.logits(row, head) + g * a.cells, a.sizes(row, head), a.cells);
    if (entered) mass = joined_any(mass, mass_of(a.entered(row, head) + g * a.room, entered));
    mass = joined_any(mass, mass_of_keys(a, row, head, g));
    if (a.known) mass = joined_any(mass, {a.known[(row * a.heads + head) * a.group + g], 1});
    lse[g] = mass.max == -kInf ? 0 : log_sum_exp(mass);
  }
}

// Scores of all tokens as their centroids'.
void put_shut(const Probe& a, int64_t row, int64_t head, float* out) {
  float* ranks = a.ranks(row, head);
  reduce(a, a.logits(row, head), a.cells, lse_of(a, row, head), a.cells, ranks);
  for (int64_t s = 0; s < a.spans; ++s) {
    Span span = span_of(a, row, s);
    if (span.record < 0 || !span.count()) continue;
    Record record(a, span, head);
    for (int64_t t = span.first; t < span.last; ++t) {
      out[t] = ranks[s * kClusters + record.label(t - s * a.segment)];
    }
  }
}

void finish(const Probe& a, int64_t row, int64_t head) {
  float *out = a.out + (row * a.heads + head) * a.width, *shares = a.shares(row, head);
  const Opened* opened = a.opened(row, head);
  const int32_t* tokens = a.tokens(row, head);
  int64_t entered = 0;
  for (int64_t s = 0; s < a.spans; ++s) {
    if (opened[s].clusters) entered = opened[s].first + padded(opened[s].count) + LANES;
  }
  settle(a, row, head, entered);
  for (int64_t u = 0; u < a.width; ++u) out[u] = -kInf;
  if (a.known) put_shut(a, row, head, out);
  float* lse = lse_of(a, row, head);
  reduce(a, a.entered(row, head), a.room, lse, entered, shares);
  for (int64_t s = 0; s < a.spans; ++s) {
    for (int64_t i = opened[s].first, end = i + opened[s].count; i < end; ++i) {
      out[tokens[i]] = shares[i];
    }
    Span span = span_of(a, row, s);
    if (span.record >= 0 || !span.count()) continue;
    reduce_logits(logits_of(a, row, s, head, span), logit_stride(span.count()), a.group, lse,
                  a.mean(), span.count(), out + span.first);
  }
}

int64_t list_opened(const Probe& a) {
  int64_t count = 0;
  for (int64_t i = 0; i < a.rows * a.spans * a.heads; ++i) {
    int64_t row = i / a.heads / a.spans, s = i / a.heads % a.spans;
    a.list()[count] = static_cast<int32_t>(i);
    count += a.opened(row, i % a.heads)[s].clusters != 0;
  }
  return count;
}

template <typename T>
void score_clusters(const Probe& a) {
  lay_out(a);
  parallel_for(a.rows * a.heads, 1, [&](int64_t i, int64_t) {
    prepare_queries<T>(a, i / a.heads, i % a.heads);
    widen_queries<T>(a, i / a.heads, i % a.heads);
  });
  int64_t runs = (a.segment + kRun - 1) / kRun, parts = runs > a.heads ? runs : a.heads;
  parallel_for(a.rows * a.spans * parts, a.threads, [&](int64_t i, int64_t) {
    int64_t row = i / parts / a.spans, s = i / parts % a.spans, part = i % parts;
    Span span = span_of(a, row, s);
    if (part < a.heads) look(a, row, s, part, span);
    if (span.record < 0 && part * kRun < span.count()) prepare_keys<T>(a, row, s, part, span);
  });
  parallel_for(a.rows * a.heads, a.threads,
               [&](int64_t i, int64_t) { open(a, i / a.heads, i % a.heads); });
  int64_t opened = list_opened(a);
  parallel_for(opened, a.threads, [&](int64_t i, int64_t next) {
    const int8_t* books = prefetch_opened(a, a.list()[next < opened ? next : i]);
    for_subspaces(a, [&]<typename Tables>() { enter<Tables>(a, a.list()[i], books); });
  });
  parallel_for(a.rows * a.heads, a.threads,
               [&](int64_t i, int64_t) { finish(a, i / a.heads, i % a.heads); });
}

}  // namespace

extern "C" int64_t score_clusters_scratch(const CodeArgs* a) { return Probe(*a).floats; }

extern "C" void score_clusters(const CodeArgs* a) {
  Probe scene(*a);
  switch (a->dtype) {
    case kBFloat16: return score_clusters<BF16>(scene);
    case kFloat16: return score_clusters<F16>(scene);
    default: return score_clusters<float>(scene);
  }
}
