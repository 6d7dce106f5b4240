// Scores of candidate units: an estimate per unit and query head, then the softmax over a row's
// candidates, reduced over the query heads of a KV head.

#include "args.h"
#include "exact.h"
#include "parallel.h"
#include "runs.h"
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

// Whether the sign of a query's element says which of two bounds it is multiplied by; else each bound
// has a part of the query, the other part being zero where the score is the bound itself.
template <typename T>
constexpr bool kPicks = false;
#if defined(__AVX512BF16__)
template <>
constexpr bool kPicks<BF16> = true;
#endif

template <typename T>
bool picks_bounds(const ScoreArgs& a) {
  return kPicks<T> && a.formula == kUpperBound && a.spread == 1;
}

template <typename T>
void prepare_queries(const ScoreArgs& a, int64_t row, int64_t head) {
  const T* q = static_cast<const T*>(a.q) + row * a.q_row + head * a.q_head;
  Query<T>* first = queries_of<Query<T>>(a, row, head, 0);
  copy_queries(first, q, a.group, a.q_group, a.dim);
  if (a.formula == kExact || a.formula == kProduct) return;
  if (picks_bounds<T>(a)) return;
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

// Behind these how many leading units a row has in common with the row before it, and the runs.
int32_t* common_of(const ScoreArgs& a) {
  int64_t heads = a.rows * a.heads * a.group * (logit_stride(a) + 2 * padded(a.dim) + 1);
  return reinterpret_cast<int32_t*>(a.scratch + heads);
}

int64_t blocks_of(const ScoreArgs& a) { return (a.width + kBlock - 1) / kBlock; }

int64_t floats_of(const ScoreArgs& a) {
  int64_t head = a.heads * a.group * (logit_stride(a) + 2 * padded(a.dim) + 1);
  return a.rows * (head + 1 + blocks_of(a) * static_cast<int64_t>(sizeof(Run) / sizeof(float)));
}

// What a formula does with the two planes of a unit; kPicked is the bound where the sign of a query's
// element says which of them it is multiplied by.
enum Planes : int64_t { kPicked, kSplit, kSpread, kAlone };

// Where one head of a row has its two sets of queries and its logits.
template <typename T>
struct Place {
  const Query<T>*first, *second;
  float* logits;

  Place() = default;
  Place(const ScoreArgs& a, int64_t row, int64_t head)
      : first(queries_of<Query<T>>(a, row, head, 0)),
        second(queries_of<Query<T>>(a, row, head, 1)),
        logits(logits_of(a, row, head)) {}
};

// Estimates of LANES / G units for the query heads [g, g + G), times the scale.
template <typename T, int G, Planes P>
INLINE VecF estimate(const ScoreArgs& a, const Place<T>& place, int64_t g,
                     const T* const (&unit)[LANES / G]) {
  constexpr int kUnits = LANES / G;
  int64_t stride = padded(a.dim);
  const Query<T>* q = place.first + g * stride;
  float scale = static_cast<float>(a.scale);
  const T* plane[kUnits];
  for (int j = 0; j < kUnits; ++j) plane[j] = unit[j] + a.d_plane;
  VecF acc[LANES] = {};
#if defined(__AVX512BF16__)
  if constexpr (P == kPicked) {
    dot_bounds<G>(acc, q, stride, unit, plane, a.dim);
    return sum_each(acc) * scale;
  }
#endif
  if constexpr (P == kSplit) dot_rows<T, G>(acc, q, stride, plane, a.dim);
  if constexpr (P == kSplit) q = place.second + g * stride;
  dot_rows<T, G>(acc, q, stride, unit, a.dim);
  if constexpr (P != kSpread) return sum_each(acc) * scale;
  VecF spread[LANES] = {};
  const float* squares = reinterpret_cast<const float*>(place.second) + g * stride;
  dot_rows<T, G, true>(spread, squares, stride, plane, a.dim);
  VecF root = __builtin_elementwise_sqrt(sum_each(spread));
  return (sum_each(acc) + root * static_cast<float>(a.spread)) * scale;
}

// Units [first, last) that the rows [row, end) have in common.
struct Block {
  int64_t row, end, first, last;
};

constexpr int64_t kStep = LANES / kGroup;  // units read together: memory holds all heads of one
constexpr int64_t kRows = 8;               // rows whose queries of one head fit the L1 cache

// The units [u, u + count) of a block for one head; behind them the last one, as often as the
// smallest block of query heads takes more at once.
template <typename T>
struct Step {
  const T* unit[LANES] = {};
  int64_t u, count, taken;

  Step(const ScoreArgs& a, const Block& block, int64_t from, int64_t head)
      : u(from < block.last ? from : block.last - 1) {
    count = block.last - u < kStep ? block.last - u : kStep;
    taken = a.group % kGroup ? LANES : kStep;
    const int32_t* table = a.table + block.row * a.t_row;
    for (int64_t j = 0; j < taken; ++j) {
      int64_t physical = table[u + (j < count ? j : count - 1)];
      unit[j] = static_cast<const T*>(a.data) + physical * a.d_item + head * a.d_head;
    }
  }
  void next_head(const ScoreArgs& a) {
    for (int64_t j = 0; j < taken; ++j) unit[j] += a.d_head;
  }
  void prefetch(const ScoreArgs& a) const {
    for (int64_t j = 0; j < kStep; ++j) {
      prefetch_row(unit[j], a.dim);
      if (a.formula != kProduct) prefetch_row(unit[j] + a.d_plane, a.dim);
    }
  }
};

template <typename T, Planes P>
INLINE void estimate_step(const ScoreArgs& a, const Place<T>& place, const Step<T>& step) {
  for_query_blocks(a.group, [&]<int G>(int64_t g) {
    const T* unit[LANES / G];
    __builtin_memcpy(unit, step.unit, sizeof unit);
    put_logits<G>(place.logits + g * logit_stride(a) + step.u, logit_stride(a), step.count,
                  estimate<T, G, P>(a, place, g, unit));
  });
}

// All heads of a step before the next step, which follows memory; where several rows have the block
// in common, all steps of a head, some rows at a time: the block stays in the L2 cache.
template <typename T, Planes P>
void estimate_block(const ScoreArgs& a, const Block& block) {
  if (block.end - block.row == 1) {
    for (int64_t u = block.first; u < block.last; u += kStep) {
      Step<T> step(a, block, u, 0), ahead(a, block, u + kStep, 0);
      for (int64_t h = 0; h < a.heads; ++h, step.next_head(a), ahead.next_head(a)) {
        ahead.prefetch(a);
        estimate_step<T, P>(a, Place<T>(a, block.row, h), step);
      }
    }
    return;
  }
  for (int64_t row = block.row; row < block.end; row += kRows) {
    int64_t count = block.end - row < kRows ? block.end - row : kRows;
    for (int64_t h = 0; h < a.heads; ++h) {
      Place<T> places[kRows];
      for (int64_t r = 0; r < count; ++r) places[r] = Place<T>(a, row + r, h);
      for (int64_t u = block.first; u < block.last; u += kStep) {
        if (row == block.row) Step<T>(a, block, u + 2 * kStep, h).prefetch(a);
        Step<T> step(a, block, u, h);
        for (int64_t r = 0; r < count; ++r) estimate_step<T, P>(a, places[r], step);
      }
    }
  }
}

template <typename T>
void estimate_block(const ScoreArgs& a, const Block& block) {
  if constexpr (kPicks<T>) {
    if (picks_bounds<T>(a)) return estimate_block<T, kPicked>(a, block);
  }
  if (a.formula == kUpperBound) return estimate_block<T, kSplit>(a, block);
  if (a.formula == kExpectedMaximum) return estimate_block<T, kSpread>(a, block);
  estimate_block<T, kAlone>(a, block);
}

template <typename T>
void exact_block(const ScoreArgs& a, const Block& block) {
  const int32_t* table = a.table + block.row * a.t_row;
  for (int64_t u = block.first; u < block.last; ++u) {
    int64_t slot = static_cast<int64_t>(table[u]) * a.unit;
    for (int64_t h = 0; h < a.heads; ++h) {
      const T* keys = static_cast<const T*>(a.data) + slot * a.d_item + h * a.d_head;
      for (int64_t row = block.row; row < block.end; ++row) {
        for_query_blocks(a.group, [&]<int G>(int64_t g) {
          exact_unit<T, G>(queries_of<Query<T>>(a, row, h, 0) + g * padded(a.dim), keys, a.d_item,
                           a.unit, a.dim, static_cast<float>(a.scale),
                           logits_of(a, row, h) + g * logit_stride(a) + u, logit_stride(a));
        });
      }
    }
  }
}

// What is ranked of a block by some row of a run; for the others estimates are made in vain.
Block block_of(const ScoreArgs& a, const Run& run) {
  Block block = {run.row, run.row + run.rows, a.width, 0};
  for (int64_t row = block.row; row < block.end; ++row) {
    block.first = a.begin[row] < block.first ? a.begin[row] : block.first;
    block.last = a.end[row] > block.last ? a.end[row] : block.last;
  }
  int64_t from = run.block * kBlock, to = from + kBlock;
  block.first = block.first > from ? block.first : from;
  block.last = block.last < to ? block.last : to;
  return block;
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
  parallel_for(a.rows * a.heads, 1,
               [&](int64_t i, int64_t) { prepare_queries<T>(a, i / a.heads, i % a.heads); });
  int32_t* common = common_of(a);
  parallel_for(a.rows, a.threads, [&](int64_t row, int64_t) {
    const int32_t* table = a.table + row * a.t_row;
    common[row] = row ? static_cast<int32_t>(in_common(table - a.t_row, table, a.width)) : 0;
  });
  Run* runs = reinterpret_cast<Run*>(common + a.rows);
  auto ranks = [&](int64_t row, int64_t b) {
    int64_t begin = a.begin[row], end = a.end[row];
    return begin < end && b * kBlock < end && (b + 1) * kBlock > begin;
  };
  int64_t count = find_runs(runs, a.rows, blocks_of(a), 0, a.threads, ranks,
                            [&](int64_t row) { return common[row] / kBlock; });
  parallel_for(count, a.threads, [&](int64_t i, int64_t) {
    Block block = block_of(a, runs[i]);
    if (a.formula == kExact) {
      exact_block<T>(a, block);
    } else {
      estimate_block<T>(a, block);
    }
  });
  parallel_for(a.rows * a.heads, a.threads,
               [&](int64_t i, int64_t) { reduce_group(a, i / a.heads, i % a.heads); });
}

}  // namespace

extern "C" int64_t score(const ScoreArgs* a) {
  int64_t needed = floats_of(*a);
  if (needed > a->scratch_size) return needed;
  for_dtype(a->dtype, [&]<typename T>() { score<T>(*a); });
  return 0;
}
