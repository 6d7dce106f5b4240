// What is not read of coded tokens: their weights by their codes, their values by their clusters.
//
//   task   (row, segment, KV head)  weights of the unread candidates, summed by cluster, and the
//          clusters' mean values under them: a state as of attend
//   merge  (row, KV head)           the segments joined, in order

#include "code_tables.h"
#include "parallel.h"

namespace {

constexpr int kClusters = kNibble;
constexpr int kVectors = kNibbleVectors;
constexpr int64_t kBlock = 4;  // query heads at a time
constexpr int64_t kRun = 128;  // tokens at a time
constexpr int32_t kNone = -1;  // in place of a cluster: the token is read

struct Estimate : Scene {
  const EstimateArgs& args;
  int64_t state;

  explicit Estimate(const EstimateArgs& e) : Scene(e.codes), args(e) {
    state = blocks * kBlock * (padded(e.vdim) + 2);
  }

  // Unnormalised out [4 * blocks, padded(Dv)], then maxima and sums [4 * blocks].
  float* state_of(int64_t row, int64_t s, int64_t head) const {
    return scratch + ((row * spans + s) * heads + head) * state;
  }
  float* max_of(int64_t row, int64_t s, int64_t head) const {
    return state_of(row, s, head) + blocks * kBlock * padded(args.vdim);
  }
  float* sum_of(int64_t row, int64_t s, int64_t head) const {
    return max_of(row, s, head) + blocks * kBlock;
  }
  int64_t floats() const { return rows * spans * heads * state; }
};

// Walks the ascending list of what one (row, KV head) reads.
struct Reading {
  const int32_t* units;
  int64_t next, count, unit;

  Reading(const Estimate& a, int64_t row, int64_t head, int64_t first)
      : units(a.args.logical + (row * a.heads + head) * a.args.n),
        next(0), count(a.args.counts[row * a.args.c_row + head * a.args.c_head]), unit(a.args.unit) {
    for (int64_t high = count; next < high;) {  // the first unit that reaches the token `first`
      int64_t middle = (next + high) / 2;
      if ((units[middle] + 1) * unit <= first) next = middle + 1;
      else high = middle;
    }
  }

  // Sets labels[t] of the tokens first + t that are read to kNone.
  void mark(int64_t first, int64_t tokens, int32_t* labels) {
    for (int64_t i = next; i < count && units[i] * unit < first + tokens; ++i) {
      for (int64_t t = units[i] * unit - first, end = t + unit; t < end; ++t) {
        if (t >= 0 && t < tokens) labels[t] = kNone;
      }
      if ((units[i] + 1) * unit <= first + tokens) next = i + 1;
    }
  }
};

// Sums of weights by query head of a block and cluster.
struct Bins {
  VecF sums[kBlock][kVectors] = {};

  // Adds `tokens` weights [4, kRun] to the clusters that labels name; one label more is kNone.
  void add(const float* weights, const int32_t* labels, int64_t tokens) {
    // In registers, as no store to memory comes between; two sets, as each sum waits for its last.
    VecF own[2][kBlock][kVectors] = {};
    for (int64_t t = 0; t < tokens; t += 2) {
      UNROLL for (int i = 0; i < 2; ++i) {
        UNROLL for (int v = 0; v < kVectors; ++v) {
          VecI same = lane_numbers() + v * LANES == labels[t + i];
          UNROLL for (int g = 0; g < kBlock; ++g) {
            VecF& sum = own[i][g][v];
            sum = same ? sum + weights[g * kRun + t + i] : sum;
          }
        }
      }
    }
    for (int g = 0; g < kBlock; ++g) {
      for (int v = 0; v < kVectors; ++v) sums[g][v] += own[0][g][v] + own[1][g][v];
    }
  }

  float total(int g) const {
    VecF all = sums[g][0];
    for (int v = 1; v < kVectors; ++v) all += sums[g][v];
    return sum_lanes(all);
  }
};

// Calls visit(labels, at, tokens) for the runs of a span's tokens, at = 0 where the span begins.
template <typename Visit>
INLINE void for_runs(const Estimate& a, int64_t row, int64_t head, const Span& span,
                     const uint8_t* codes, const Visit& visit) {
  Reading reading(a, row, head, span.first);
  for (int64_t at = 0; at < span.count(); at += kRun) {
    int64_t tokens = span.count() - at < kRun ? span.count() - at : kRun;
    int32_t labels[kRun + 1];
    for (int64_t t = 0; t < tokens; ++t) labels[t] = codes[at + t] & (kClusters - 1);
    labels[tokens] = kNone;  // `Bins::add` takes two at a time
    reading.mark(span.first + at, tokens, labels);
    visit(labels, at, tokens);
  }
}

// Weights relative to the returned maxima of what is not read, summed by cluster. Products of
// exponentials: a token costs no exp. Where their maxima lie too far above what is not read, for one
// head, all heads of the block are weighed again from logits.
template <typename Tables>
Vec4 weigh(const Estimate& a, int64_t row, int64_t s, int64_t head, const Span& span,
           const Tables& lookup, const float* table, float* exps, int64_t heads, Bins* bins) {
  float weights[kBlock * kRun];
  int64_t first = span.first - s * a.segment;
  const uint8_t* codes = lookup.codes + first;
  Vec4 max = lookup.exponentiate(table, exps);
  for_runs(a, row, head, span, codes, [&](const int32_t* labels, int64_t at, int64_t tokens) {
    lookup.put_each(exps, first + at, tokens, kRun,
                    [](auto x, auto y) __attribute__((always_inline)) { return x * y; }, weights);
    bins->add(weights, labels, tokens);
  });
  bool vanished = false;
  for (int g = 0; g < heads; ++g) vanished |= !(bins->total(g) > kVanishing);
  if (!vanished) return max;
  auto logits = [&](int64_t at, int64_t tokens) {
    lookup.put_each(table, first + at, tokens, kRun,
                    [](auto x, auto y) __attribute__((always_inline)) { return x + y; }, weights);
  };
  max = Vec4{} - kInf;
  for_runs(a, row, head, span, codes, [&](const int32_t* labels, int64_t at, int64_t tokens) {
    logits(at, tokens);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int g = 0; g < kBlock && labels[t] != kNone; ++g) {
        max[g] = weights[g * kRun + t] > max[g] ? weights[g * kRun + t] : max[g];
      }
    }
  });
  *bins = Bins();
  for_runs(a, row, head, span, codes, [&](const int32_t* labels, int64_t at, int64_t tokens) {
    logits(at, tokens);
    for (int g = 0; g < kBlock; ++g) {
      for (int64_t t = 0; t < kRun; t += LANES) {
        float* w = weights + g * kRun + t;
        store(w, exp2_vec((load(w) - max[g]) * kLog2E));
      }
    }
    bins->add(weights, labels, tokens);
  });
  return max;
}

// out[g * stride] = sum over the clusters c of sums[g][c] * scales[c] * values[c], for four heads.
INLINE void add_values(const Bins& bins, const float* scales, const int8_t* values, int64_t vdim,
                       float* out, int64_t stride) {
  typedef int8_t Bytes __attribute__((vector_size(LANES)));
  float weights[kBlock][kClusters];
  for (int g = 0; g < kBlock; ++g) {
    for (int v = 0; v < kVectors; ++v) {
      store(weights[g] + v * LANES, bins.sums[g][v] * load(scales + v * LANES));
    }
  }
  for (int64_t d = 0; d < vdim; d += LANES) {
    int64_t n = vdim - d < LANES ? vdim - d : LANES;
    VecF acc[kBlock] = {};
    for (int c = 0; c < kClusters; ++c) {
      Bytes raw = {};
      if (n == LANES) __builtin_memcpy(&raw, values + c * vdim + d, LANES);
      else __builtin_memcpy(&raw, values + c * vdim + d, n);
      if (d % 64 == 0) __builtin_prefetch(values + (2 * kClusters + c) * vdim + d, 0, 2);
      VecF value = __builtin_convertvector(raw, VecF);
      UNROLL for (int g = 0; g < kBlock; ++g) acc[g] += weights[g][c] * value;
    }
    for (int g = 0; g < kBlock; ++g) store(out + g * stride + d, acc[g]);
  }
}

template <typename T, typename Tables>
void estimate_span(const Estimate& a, int64_t row, int64_t s, int64_t head, const Span& span) {
  constexpr int64_t kTable = kMostParts * kBlock * kClusters;
  float table[kTable], exps[kTable];
  int64_t width = padded(a.args.vdim), at = span.record * a.heads + head;
  const int8_t* values = a.args.values + at * kClusters * a.args.vdim;
  const float* scales = a.scales + at * (2 * kClusters + a.subspaces) + kClusters;
  Tables lookup = tables_at<Tables>(a, span, head);
  for (int64_t block = 0; block < a.blocks; ++block) {
    Bins bins;
    int64_t heads = heads_of(a, block);
    fill_table<T, Tables>(a, row, head, span.record, block, table);
    Vec4 max = weigh(a, row, s, head, span, lookup, table, exps, heads, &bins);
    float* state = a.state_of(row, s, head) + block * kBlock * width;
    add_values(bins, scales, values, a.args.vdim, state, width);
    for (int64_t g = 0; g < heads; ++g) {
      float total = bins.total(static_cast<int>(g));
      a.max_of(row, s, head)[block * kBlock + g] = total > 0 ? max[g] : -kInf;
      a.sum_of(row, s, head)[block * kBlock + g] = total;
    }
  }
}

// Joins the segments of one (row, KV head) and writes out and lse.
template <typename T>
void merge(const Estimate& a, int64_t row, int64_t head) {
  int64_t width = padded(a.args.vdim);
  for (int64_t g = 0; g < a.group; ++g) {
    float best = -kInf, total = 0;
    for (int64_t s = 0; s < a.spans; ++s) {
      float max = a.max_of(row, s, head)[g];
      best = max > best ? max : best;
    }
    int64_t at = (row * a.heads + head) * a.group + g;
    T* to = static_cast<T*>(a.args.out) + at * a.args.vdim;
    float* joined = nullptr;  // the first segment that has any is added to
    for (int64_t s = 0; s < a.spans; ++s) {
      float max = a.max_of(row, s, head)[g], *own = a.state_of(row, s, head) + g * width;
      if (max == -kInf) continue;
      float factor = exp2_one((max - best) * kLog2E);
      total += a.sum_of(row, s, head)[g] * factor;
      for (int64_t d = 0; d < width; d += LANES) {
        VecF part = load(own + d) * factor;
        store((joined ? joined : own) + d, joined ? load(joined + d) + part : part);
      }
      if (!joined) joined = own;
    }
    a.args.lse[at] = best == -kInf ? -kInf : best + log2_one(total) * kLn2;
    for (int64_t d = 0; d < a.args.vdim; d += LANES) {
      VecF out = joined ? load(joined + d) / total : VecF{};
      int64_t n = a.args.vdim - d;
      if (n >= LANES) store(to + d, out);
      else store_first(to + d, out, static_cast<int>(n));
    }
  }
}

template <typename T>
void estimate(const Estimate& a) {
  parallel_for(a.rows * a.spans * a.heads, a.threads, [&](int64_t i, int64_t) {
    int64_t row = i / a.heads / a.spans, s = i / a.heads % a.spans, head = i % a.heads;
    Span span = span_of(a, row, s);
    if (span.record < 0 || !span.count()) {
      for (int64_t g = 0; g < a.group; ++g) a.max_of(row, s, head)[g] = -kInf;
      return;
    }
    for_packed_parts(a, [&]<typename Tables>() { estimate_span<T, Tables>(a, row, s, head, span); });
  });
  parallel_for(a.rows * a.heads, a.threads,
               [&](int64_t i, int64_t) { merge<T>(a, i / a.heads, i % a.heads); });
}

}  // namespace

extern "C" int64_t estimate_scratch(const EstimateArgs* e) { return Estimate(*e).floats(); }

extern "C" void estimate(const EstimateArgs* e) {
  Estimate scene(*e);
  switch (e->codes.dtype) {
    case kBFloat16: return estimate<BF16>(scene);
    case kFloat16: return estimate<F16>(scene);
    default: return estimate<float>(scene);
  }
}
