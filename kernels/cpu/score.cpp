// Scores of candidate units: an estimate per unit and query head, then the softmax over a row's
// candidates, reduced over the query heads of a KV head.

#include "args.h"
#include "exact.h"
#include "parallel.h"
#include "shares.h"

namespace {

constexpr int64_t kBlock = 64;  // units per task

int64_t logit_stride(const ScoreArgs& a) { return ::logit_stride(a.width); }

float* logits_of(const ScoreArgs& a, int64_t row, int64_t head) {
  return a.scratch + (row * a.heads + head) * a.group * logit_stride(a);
}

// Two query sets [G, padded(D)] per (row, KV head), behind the logits: the positive and negative
// parts for the bound (each with a part of the other where the score lies within it), q and (in
// float32) its square for the expected maximum, else q alone.
template <typename T>
T* queries_of(const ScoreArgs& a, int64_t row, int64_t head, int64_t set) {
  int64_t logits = a.rows * a.heads * a.group * logit_stride(a);
  int64_t index = ((row * a.heads + head) * 2 + set) * a.group * padded(a.dim);
  return reinterpret_cast<T*>(a.scratch + logits + index);
}

template <typename T>
void prepare_queries(const ScoreArgs& a, int64_t row, int64_t head) {
  const T* q = static_cast<const T*>(a.q) + row * a.q_row + head * a.q_head;
  Query<T>* first = queries_of<Query<T>>(a, row, head, 0);
  copy_queries(first, q, a.group, a.q_group, a.dim);
  if (a.formula == kExact || a.formula == kProduct) return;
  float near = static_cast<float>(0.5 + 0.5 * a.spread), far = 1 - near;
  for (int64_t i = 0; i < a.group * padded(a.dim); i += LANES) {
    VecF x = load(first + i);
    if (a.formula == kUpperBound) {
      store(first + i, x > 0.0f ? x * near : x * far);
      store(queries_of<Query<T>>(a, row, head, 1) + i, x < 0.0f ? x * near : x * far);
    } else {
      store(queries_of<float>(a, row, head, 1) + i, x * x);
    }
  }
}

// Log-sum-exp of each query head, behind the queries.
float* lse_of(const ScoreArgs& a, int64_t row, int64_t head) {
  int64_t heads = a.rows * a.heads * a.group * (logit_stride(a) + 2 * padded(a.dim));
  return a.scratch + heads + (row * a.heads + head) * a.group;
}

INLINE VecF sqrt_vec(VecF x) { return __builtin_elementwise_sqrt(x); }

// Estimates of LANES / G units for the query heads [g, g + G), times the scale.
template <typename T, int G>
INLINE VecF estimate(const ScoreArgs& a, int64_t row, int64_t head, int64_t g,
                     const T* const (&unit)[LANES / G]) {
  constexpr int kRows = LANES / G;
  int64_t stride = padded(a.dim);
  const Query<T>* q = queries_of<Query<T>>(a, row, head, 0) + g * stride;
  const T* plane[kRows];
  for (int j = 0; j < kRows; ++j) plane[j] = unit[j] + a.d_plane;
  VecF acc[LANES] = {};
  if (a.formula == kProduct) {
    dot_rows<T, G>(acc, q, stride, unit, a.dim);
    return sum_each(acc) * static_cast<float>(a.scale);
  }
  if (a.formula == kUpperBound) {
    dot_rows<T, G>(acc, q, stride, plane, a.dim);
    dot_rows<T, G>(acc, queries_of<Query<T>>(a, row, head, 1) + g * stride, stride, unit, a.dim);
    return sum_each(acc) * static_cast<float>(a.scale);
  }
  VecF spread[LANES] = {};
  dot_rows<T, G>(acc, q, stride, unit, a.dim);
  const float* squares = queries_of<float>(a, row, head, 1) + g * stride;
  dot_rows<T, G, true>(spread, squares, stride, plane, a.dim);
  VecF sum = sum_each(acc) + sqrt_vec(sum_each(spread)) * static_cast<float>(a.spread);
  return sum * static_cast<float>(a.scale);
}

// Estimates of the units [first, last) of a row for all its heads.
template <typename T>
void estimate_block(const ScoreArgs& a, int64_t row, int64_t first, int64_t last) {
  constexpr int64_t kStep = LANES / kGroup;  // units read together: memory holds all heads of one
  const int32_t* table = a.table + row * a.t_row;
  const T* fields = static_cast<const T*>(a.data);
  auto unit_at = [&](int64_t u) {
    return fields + static_cast<int64_t>(table[u < last ? u : last - 1]) * a.d_item;
  };
  for (int64_t u = first; u < last; u += kStep) {
    for (int64_t h = 0; h < a.heads; ++h) {
      for (int64_t j = 0; j < kStep; ++j) {
        const T* ahead = unit_at(u + kStep + j) + h * a.d_head;
        prefetch_row(ahead, a.dim);
        if (a.formula != kProduct) prefetch_row(ahead + a.d_plane, a.dim);
      }
      for_query_blocks(a.group, [&]<int G>(int64_t g) {
        constexpr int kRows = LANES / G;
        for (int64_t v = u; v < u + kStep && v < last; v += kRows) {
          const T* unit[kRows];
          int64_t end = u + kStep < last ? u + kStep : last;
          for (int j = 0; j < kRows; ++j) {
            unit[j] = unit_at(v + j < end ? v + j : end - 1) + h * a.d_head;
          }
          put_logits<G>(logits_of(a, row, h) + g * logit_stride(a) + v,
                        logit_stride(a), end - v, estimate<T, G>(a, row, h, g, unit));
        }
      });
    }
  }
}

template <typename T>
void exact_block(const ScoreArgs& a, int64_t row, int64_t first, int64_t last) {
  const int32_t* table = a.table + row * a.t_row;
  for (int64_t u = first; u < last; ++u) {
    int64_t slot = static_cast<int64_t>(table[u]) * a.unit;
    for (int64_t h = 0; h < a.heads; ++h) {
      const T* keys = static_cast<const T*>(a.data) + slot * a.d_item + h * a.d_head;
      for_query_blocks(a.group, [&]<int G>(int64_t g) {
        exact_unit<T, G>(queries_of<Query<T>>(a, row, h, 0) + g * padded(a.dim), keys, a.d_item,
                         a.unit, a.dim, static_cast<float>(a.scale),
                         logits_of(a, row, h) + g * logit_stride(a) + u, logit_stride(a));
      });
    }
  }
}

// The group's scores by a.reduction, -inf outside the candidates.
void reduce_group(const ScoreArgs& a, int64_t row, int64_t head) {
  int64_t begin = a.begin[row], end = a.end[row], stride = logit_stride(a);
  float* out = a.out + (row * a.heads + head) * a.width;
  float* logits = logits_of(a, row, head);
  for (int64_t u = 0; u < a.width; ++u) out[u] = -kInf;
  if (begin >= end) return;
  float* lse = lse_of(a, row, head);
  for (int64_t g = 0; g < a.group; ++g) {
    lse[g] = 0;
    if (a.reduction == kMax) continue;
    Mass mass = mass_of(logits + g * stride + begin, end - begin);
    if (a.known) mass = joined(mass, {a.known[(row * a.heads + head) * a.group + g], 1});
    lse[g] = log_sum_exp(mass);
  }
  reduce_logits(logits + begin, stride, a.group, lse, a.reduction == kMeanSoftmax, end - begin,
                out + begin);
}

template <typename T>
void score(const ScoreArgs& a) {
  int64_t blocks = (a.width + kBlock - 1) / kBlock;
  parallel_for(a.rows * a.heads, 1,
               [&](int64_t i, int64_t) { prepare_queries<T>(a, i / a.heads, i % a.heads); });
  parallel_for(a.rows * blocks, a.threads, [&](int64_t i, int64_t) {
    int64_t row = i / blocks, begin = a.begin[row], end = a.end[row];
    int64_t first = begin + i % blocks * kBlock;
    int64_t last = first + kBlock < end ? first + kBlock : end;
    if (first >= last) return;
    if (a.formula == kExact) {
      exact_block<T>(a, row, first, last);
    } else {
      estimate_block<T>(a, row, first, last);
    }
  });
  parallel_for(a.rows * a.heads, a.threads,
               [&](int64_t i, int64_t) { reduce_group(a, i / a.heads, i % a.heads); });
}

}  // namespace

extern "C" int64_t score(const ScoreArgs* a) {
  int64_t needed = a->rows * a->heads * a->group * (logit_stride(*a) + 2 * padded(a->dim) + 1);
  if (needed > a->scratch_size) return needed;
  for_dtype(a->dtype, [&]<typename T>() { score<T>(*a); });
  return 0;
}
