// What is not read of clustered tokens: each weighs as much as the centroid of its cluster would, and
// has the mean value of the cluster.
//
//   task   (row, segment, KV head)  weights of clusters, and their mean values under them: a state as
//          of attend
//   merge  (row, KV head)           the segments joined, in order

#include "cluster_tables.h"
#include "parallel.h"

namespace {

struct Estimate : Clustered {
  const EstimateArgs& args;
  int64_t state;

  explicit Estimate(const EstimateArgs& e) : Clustered(e.codes), args(e) {
    state = blocks * kBlock * (padded(e.vdim) + 2);
  }

  // Unnormalised out [4 * blocks, padded(Dv)], then maxima and sums [4 * blocks].
  float* state_of(int64_t row, int64_t s, int64_t head) const {
    return scratch + free_at + ((row * spans + s) * heads + head) * state;
  }
  float* max_of(int64_t row, int64_t s, int64_t head) const {
    return state_of(row, s, head) + blocks * kBlock * padded(args.vdim);
  }
  float* sum_of(int64_t row, int64_t s, int64_t head) const {
    return max_of(row, s, head) + blocks * kBlock;
  }
  int64_t floats() const { return free_at + rows * spans * heads * state; }
};

// Candidates of each cluster that one (row, KV head) does not read; returns whether there are any.
bool count_unread(const Estimate& a, int64_t row, int64_t s, int64_t head, const Span& span,
                  const Record& record, float* sizes) {
  int32_t left[kClusters];
  count_candidates(a, s, span, record, left);
  const int32_t* units = a.args.logical + (row * a.heads + head) * a.args.n;
  int64_t unit = a.args.unit, first = s * a.segment, low = 0, count = a.args.counts[row];
  for (int64_t high = count; low < high;) {  // the first unit that reaches the span
    int64_t middle = (low + high) / 2;
    if ((units[middle] + 1) * unit <= span.first) low = middle + 1;
    else high = middle;
  }
  for (; low < count && units[low] * unit < span.last; ++low) {
    for (int64_t t = units[low] * unit, end = t + unit; t < end; ++t) {
      if (t >= span.first && t < span.last) --left[record.label(t - first)];
    }
  }
  int32_t any = 0;
  for (int c = 0; c < kClusters; ++c) {
    any |= left[c];
    sizes[c] = static_cast<float>(left[c]);
  }
  return any != 0;
}

// Weights of one block of query heads, relative to `max`, summed by cluster.
struct Weights {
  float sums[kBlock][kClusters];
  float max[kBlock], totals[kBlock];

  Weights(const PerCluster& logits, const float* sizes) {
    for (int g = 0; g < kBlock; ++g) {
      VecF best = splat(-kInf), total = {};
      for (int v = 0; v < kVectors; ++v) {
        best = vmax(load(sizes + v * LANES) > 0.0f ? logits[g][v] : splat(-kInf), best);
      }
      max[g] = max_lanes(best);
      for (int v = 0; v < kVectors; ++v) {
        VecF size = load(sizes + v * LANES), one = exp2_vec((logits[g][v] - max[g]) * kLog2E);
        VecF sum = size > 0.0f ? size * one : VecF{};
        store(sums[g] + v * LANES, sum);
        total += sum;
      }
      totals[g] = sum_lanes(total);
    }
  }
};

// out[g * stride] = sum over the clusters c of sums[g][c] * scales[c] * values[c], for four heads.
INLINE void add_values(const Weights& weights, const float* scales, const int8_t* values,
                       int64_t vdim, float* out, int64_t stride) {
  typedef int8_t Bytes __attribute__((vector_size(LANES)));
  float scaled[kBlock][kClusters];
  for (int g = 0; g < kBlock; ++g) {
    for (int v = 0; v < kClusters; v += LANES) {
      store(scaled[g] + v, load(weights.sums[g] + v) * load(scales + v));
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
      UNROLL for (int g = 0; g < kBlock; ++g) acc[g] += scaled[g][c] * value;
    }
    for (int g = 0; g < kBlock; ++g) store(out + g * stride + d, acc[g]);
  }
}

void estimate_span(const Estimate& a, int64_t row, int64_t s, int64_t head, const Span& span) {
  Record record(a, span, head);
  float sizes[kClusters];
  float *max = a.max_of(row, s, head), *sum = a.sum_of(row, s, head);
  bool any = count_unread(a, row, s, head, span, record, sizes);
  for (int64_t g = 0; g < a.group && !any; ++g) max[g] = -kInf;
  if (!any) return;
  int64_t width = padded(a.args.vdim), at = span.record * a.heads + head;
  const int8_t* values = a.args.values + at * kClusters * a.args.vdim;
  for (int64_t block = 0; block < a.blocks; ++block) {
    PerCluster logits;
    dot_centroids(a, a.wide_of(row, head), block, record, logits);
    Weights weights(logits, sizes);
    float* state = a.state_of(row, s, head) + block * kBlock * width;
    add_values(weights, record.scales + kClusters, values, a.args.vdim, state, width);
    for (int64_t g = 0; g < heads_of(a, block); ++g) {
      max[block * kBlock + g] = weights.max[g];
      sum[block * kBlock + g] = weights.totals[g];
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
  parallel_for(a.rows * a.heads, 1,
               [&](int64_t i, int64_t) { widen_queries<T>(a, i / a.heads, i % a.heads); });
  parallel_for(a.rows * a.spans * a.heads, a.threads, [&](int64_t i, int64_t) {
    int64_t row = i / a.heads / a.spans, s = i / a.heads % a.spans, head = i % a.heads;
    Span span = span_of(a, row, s);
    if (span.record < 0 || !span.count()) {
      for (int64_t g = 0; g < a.group; ++g) a.max_of(row, s, head)[g] = -kInf;
      return;
    }
    estimate_span(a, row, s, head, span);
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
