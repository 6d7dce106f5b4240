// What is not read of clustered tokens: each weighs as much as the centroid of its cluster would, and
// has the mean value of the cluster.
//
//   task   (row, some segments)  for each KV head the weights of clusters, and their mean values under
//          them: a state as of attend
//   merge  (row, KV head)        the states joined, in order

#include "cluster_tables.h"
#include "parallel.h"

namespace {

constexpr int64_t kSegments = 4;  // of a task

struct Estimate : Clustered {
  const EstimateArgs& args;
  int64_t parts, state;

  explicit Estimate(const EstimateArgs& e) : Clustered(e.codes), args(e) {
    parts = (spans + kSegments - 1) / kSegments;
    state = blocks * kBlock * (padded(e.vdim) + 2);
  }

  // Unnormalised out [4 * blocks, padded(Dv)], then maxima and sums [4 * blocks].
  float* state_of(int64_t row, int64_t part, int64_t head) const {
    return scratch + free_at + ((row * parts + part) * heads + head) * state;
  }
  float* max_of(int64_t row, int64_t part, int64_t head) const {
    return state_of(row, part, head) + blocks * kBlock * padded(args.vdim);
  }
  float* sum_of(int64_t row, int64_t part, int64_t head) const {
    return max_of(row, part, head) + blocks * kBlock;
  }
  int64_t floats() const { return free_at + rows * parts * heads * state; }
};

// Candidates of each cluster that one (row, KV head) does not read; returns whether there are any.
bool count_unread(const Estimate& a, int64_t row, int64_t s, int64_t head, const Span& span,
                  const Record& record, float* sizes) {
  int32_t left[kClusters];
  count_candidates(a, s, span, record, left);
  const int32_t* units = a.args.logical + (row * a.heads + head) * a.args.n;
  int64_t unit = a.args.unit, first = s * a.segment, low = 0, count = a.args.counts[row * a.args.c_row + head * a.args.c_head];
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

// Logits of centroids become weights relative to `max`; returns their sum.
INLINE float exponentiate(VecF (&logits)[kVectors], const float* sizes, float* max) {
  VecF best = splat(-kInf), total = {};
  for (int v = 0; v < kVectors; ++v) {
    best = vmax(load(sizes + v * LANES) > 0.0f ? logits[v] : splat(-kInf), best);
  }
  *max = max_lanes(best);
  for (int v = 0; v < kVectors; ++v) {
    VecF size = load(sizes + v * LANES), one = exp2_vec((logits[v] - *max) * kLog2E);
    logits[v] = size > 0.0f ? size * one : VecF{};
    total += logits[v];
  }
  return sum_lanes(total);
}

// out[g * stride] = out * before[g] + sum over the clusters c of weights[g][c] * values[c].
INLINE void add_values(const float (&weights)[kBlock][kClusters], const float (&before)[kBlock],
                       const int8_t* values, int64_t vdim, float* out, int64_t stride) {
  typedef int8_t Bytes __attribute__((vector_size(LANES)));
  for (int64_t d = 0; d < vdim; d += LANES) {
    int64_t n = vdim - d < LANES ? vdim - d : LANES;
    VecF acc[2][kBlock] = {};  // even and odd clusters
    for (int g = 0; g < kBlock; ++g) acc[0][g] = load(out + g * stride + d) * before[g];
    for (int c = 0; c < kClusters; c += 2) {
      UNROLL for (int odd = 0; odd < 2; ++odd) {
        Bytes raw = {};
        const int8_t* from = values + (c + odd) * vdim + d;
        if (d % 64 == 0) __builtin_prefetch(from + 2 * kClusters * vdim, 0, 2);
        if (n == LANES) __builtin_memcpy(&raw, from, LANES);
        else __builtin_memcpy(&raw, from, n);
        VecF value = __builtin_convertvector(raw, VecF);
        UNROLL for (int g = 0; g < kBlock; ++g) acc[odd][g] += weights[g][c + odd] * value;
      }
    }
    for (int g = 0; g < kBlock; ++g) store(out + g * stride + d, acc[0][g] + acc[1][g]);
  }
}

// Adds a segment to the state of one KV head.
void add_segment(const Estimate& a, int64_t row, int64_t part, int64_t head, const Span& span,
                 const Record& record, const float* sizes) {
  int64_t width = padded(a.args.vdim), at = span.record * a.heads + head;
  const int8_t* values = a.args.values + at * kClusters * a.args.vdim;
  for (int64_t block = 0; block < a.blocks; ++block) {
    float* state = a.state_of(row, part, head) + block * kBlock * width;
    float* max = a.max_of(row, part, head) + block * kBlock;
    float* sum = a.sum_of(row, part, head) + block * kBlock;
    PerCluster logits;
    float weights[kBlock][kClusters], before[kBlock];
    dot_centroids(a, a.wide_of(row, head), block, record,
                  record.centroids + 2 * a.dim * kClusters, logits);
    for (int g = 0; g < kBlock; ++g) {
      float own, total = exponentiate(logits[g], sizes, &own), best = own > max[g] ? own : max[g];
      float factor = exp2_one((own - best) * kLog2E);
      before[g] = exp2_one((max[g] - best) * kLog2E);
      sum[g] = sum[g] * before[g] + total * factor;
      max[g] = best;
      for (int v = 0; v < kVectors; ++v) {
        VecF scales = load(record.scales + kClusters + v * LANES);
        store(weights[g] + v * LANES, logits[g][v] * factor * scales);
      }
    }
    add_values(weights, before, values, a.args.vdim, state, width);
  }
}

// Segments in the outer loop: what is read of the KV heads lies side by side.
void estimate_part(const Estimate& a, int64_t row, int64_t part) {
  for (int64_t head = 0; head < a.heads; ++head) {
    float *state = a.state_of(row, part, head), *max = a.max_of(row, part, head);
    for (int64_t i = 0; i < a.state; ++i) state[i] = 0;
    for (int64_t g = 0; g < a.blocks * kBlock; ++g) max[g] = -kInf;
  }
  int64_t last = (part + 1) * kSegments < a.spans ? (part + 1) * kSegments : a.spans;
  for (int64_t s = part * kSegments; s < last; ++s) {
    Span span = span_of(a, row, s);
    if (span.record < 0 || !span.count()) continue;
    for (int64_t head = 0; head < a.heads; ++head) {
      Record record(a, span, head);
      float sizes[kClusters];
      prefetch_row(record.labels + a.segment, a.segment / 2);
      if (!count_unread(a, row, s, head, span, record, sizes)) continue;
      add_segment(a, row, part, head, span, record, sizes);
    }
  }
}

// Joins the states of one (row, KV head) and writes out and lse.
template <typename T>
void merge(const Estimate& a, int64_t row, int64_t head) {
  int64_t width = padded(a.args.vdim);
  for (int64_t g = 0; g < a.group; ++g) {
    float best = -kInf, total = 0;
    for (int64_t s = 0; s < a.parts; ++s) {
      float max = a.max_of(row, s, head)[g];
      best = max > best ? max : best;
    }
    int64_t at = (row * a.heads + head) * a.group + g;
    T* to = static_cast<T*>(a.args.out) + at * a.args.vdim;
    float* joined = nullptr;  // the first state that has any is added to
    for (int64_t s = 0; s < a.parts; ++s) {
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
  parallel_for(a.rows * a.parts, a.threads,
               [&](int64_t i, int64_t) { estimate_part(a, i / a.parts, i % a.parts); });
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
