// How far a row reads to cover a share of attention, from the keys of a few units: see
// kernels/reference/sample.py, which does the same step by step.
#pragma once

#include "args.h"
#include "exact.h"
#include "parallel.h"
#include "shares.h"

namespace {

constexpr int64_t kBlock = 64;      // units whose odds are summed up together
constexpr float kPower = 1.0f / 3;  // of shares: odds; their cube is a share again

// A sample and what is known of it, of one row and KV head; pointers lead into its scratch.
struct Sample {
  int64_t size;
  float* query;             // [G, padded(D)], as Query<T>
  double* ends;             // running sums of odds, block by block
  float *logits, *chances;  // [G, size]; [size]
  float *scores, *weights;  // [size]
  int32_t* units;           // [size]
};

inline int64_t blocks_of(const SampleArgs& a) { return (a.width + kBlock - 1) / kBlock; }

inline int64_t floats_of(const SampleArgs& a) {
  int64_t floats = a.group * padded(a.dim) + 2 * blocks_of(a) + (a.group + 4) * a.size;
  return (floats + LANES - 1) / LANES * LANES;
}

inline Sample sample_at(const SampleArgs& a, int64_t i) {
  float* at = a.scratch + i * floats_of(a);
  auto take = [&](int64_t count) {
    float* taken = at;
    at += count;
    return taken;
  };
  float* query = take(a.group * padded(a.dim));
  double* ends = reinterpret_cast<double*>(take(2 * blocks_of(a)));
  float *logits = take(a.group * a.size), *chances = take(a.size), *scores = take(a.size);
  float* weights = take(a.size);
  return {a.size, query, ends, logits, chances, scores, weights,
          reinterpret_cast<int32_t*>(take(a.size))};
}

// What is not a number or infinite has no odds.
INLINE VecF finite(VecF x) { return x < kInf ? x : splat(-kInf); }

INLINE VecF scores_at(const float* scores, int64_t u, int64_t end) {
  if (end - u >= LANES) return finite(load(scores + u));
  VecF x = splat(-kInf);
  __builtin_memcpy(&x, scores + u, (end - u) * sizeof(float));
  return finite(x);
}

// Sums of the candidates' odds and shares, relative to the highest score.
struct Sums {
  float highest, lowest;
  double odds, shares;
};

inline Sums sum_up(const float* scores, int64_t begin, int64_t end, double* ends) {
  VecF best = splat(-kInf), least = splat(kInf);
  for (int64_t u = begin; u < end; u += LANES) {
    VecF x = scores_at(scores, u, end);
    best = vmax(best, x);
    VecF there = x > -kInf ? x : splat(kInf);
    least = there < least ? there : least;
  }
  Sums sums = {max_lanes(best), -max_lanes(-least), 0, 0};
  if (!(sums.highest > -kInf)) return sums;
  for (int64_t b = begin / kBlock; b * kBlock < end; ++b) {
    int64_t first = b * kBlock > begin ? b * kBlock : begin;
    int64_t last = (b + 1) * kBlock < end ? (b + 1) * kBlock : end;
    VecF odds = {}, shares = {};
    for (int64_t u = first; u < last; u += LANES) {
      VecF one = exp2_vec((scores_at(scores, u, last) - sums.highest) * (kPower * kLog2E));
      odds += one;
      shares += one * one * one;
    }
    sums.odds += sum_lanes(odds);
    sums.shares += sum_lanes(shares);
    ends[b] = sums.odds;
  }
  return sums;
}

// Odds of the units of block b, side by side.
inline void put_odds(const float* scores, int64_t begin, int64_t end, int64_t b, float highest, float* odds) {
  for (int64_t u = b * kBlock; u < (b + 1) * kBlock; u += LANES) {
    VecF x = splat(-kInf);
    if (u < end) x = scores_at(scores, u, end);
    VecF own = exp2_vec((x - highest) * (kPower * kLog2E));
    VecI place = lane_numbers() + static_cast<int32_t>(u);
    store(odds + u - b * kBlock, place >= static_cast<int32_t>(begin) ? own : VecF{});
  }
}

// Draws the units in the middle of equal steps of the odds.
inline void draw(const float* scores, int64_t begin, int64_t end, const Sums& sums, const Sample& s) {
  int64_t b = begin / kBlock, last = (end - 1) / kBlock, known = -1;
  float odds[kBlock];
  for (int64_t i = 0; i < s.size; ++i) {
    double point = sums.odds * (static_cast<double>(i) + 0.5) / static_cast<double>(s.size);
    while (b < last && s.ends[b] < point) ++b;
    if (b != known) put_odds(scores, begin, end, known = b, sums.highest, odds);
    double before = b > begin / kBlock ? s.ends[b - 1] : 0, sum = 0;
    int64_t chosen = b * kBlock > begin ? b * kBlock : begin;
    for (int64_t u = 0; u < kBlock && !(sum > point - before); ++u) {
      if (!(odds[u] > 0)) continue;
      sum += odds[u];
      chosen = b * kBlock + u;
      s.chances[i] = odds[u] / static_cast<float>(sums.odds) * static_cast<float>(s.size);
    }
    s.units[i] = static_cast<int32_t>(chosen);
    s.scores[i] = scores[chosen];
  }
}

// Reads the keys of the units that were drawn: logits less what each unit stands for.
template <typename T>
void look(const SampleArgs& a, int64_t row, int64_t head, const Sample& s) {
  const T* q = static_cast<const T*>(a.q) + row * a.q_row + head * a.q_head;
  const T* keys = static_cast<const T*>(a.keys) + head * a.k_head;
  Query<T>* query = reinterpret_cast<Query<T>*>(s.query);
  copy_queries(query, q, a.group, a.q_group, a.dim);
  auto keys_of = [&](int64_t i) {
    int64_t unit = a.table[row * a.t_row + s.units[i < s.size ? i : i - 1]];
    return keys + unit * a.unit * a.k_slot;
  };
  for (int64_t i = 0; i < s.size; ++i) {
    for (int64_t t = 0; t < a.unit; ++t) prefetch_row(keys_of(i + 1) + t * a.k_slot, a.dim);
    for_query_blocks(a.group, [&]<int G>(int64_t g) {
      exact_unit<T, G>(query + g * padded(a.dim), keys_of(i), a.k_slot, a.unit, a.dim,
                       static_cast<float>(a.scale), s.logits + g * s.size + i, s.size);
    });
    float log_chance = log2_one(s.chances[i]) * kLn2;
    for (int64_t g = 0; g < a.group; ++g) {
      float& logit = s.logits[g * s.size + i];
      logit = logit == logit ? logit - log_chance : -kInf;
    }
  }
}

// Shares of attention that the units stand for, a mean over the query heads; their sum.
inline float weigh(const SampleArgs& a, const float* known, const Sample& s) {
  for (int64_t i = 0; i < s.size; ++i) s.weights[i] = 0;
  for (int64_t g = 0; g < a.group; ++g) {
    const float* logits = s.logits + g * s.size;
    float whole = log_sum_exp(joined(mass_of(logits, s.size), {known[g], 1}));
    for (int64_t i = 0; i < s.size; i += LANES) {
      VecF share = exp2_vec((load_at_most(logits + i, s.size - i) - whole) * kLog2E);
      VecF weight = load_at_most(s.weights + i, s.size - i);
      weight += (share == share ? share : VecF{}) / static_cast<float>(a.group);
      put_first(s.weights + i, weight, s.size - i);
    }
  }
  float mass = 0;
  for (int64_t i = 0; i < s.size; ++i) mass += s.weights[i];
  return mass;
}

// Highest scores first; equal ones stay in order.
inline void sort(const Sample& s) {
  for (int64_t i = 1; i < s.size; ++i) {
    float score = s.scores[i], weight = s.weights[i];
    int64_t j = i;
    for (; j > 0 && s.scores[j - 1] < score; --j) {
      s.scores[j] = s.scores[j - 1];
      s.weights[j] = s.weights[j - 1];
    }
    s.scores[j] = score;
    s.weights[j] = weight;
  }
}

// The score below which `unread` of the attention lies, on a line between two units of the sample.
inline float threshold(const Sample& s, const Sums& sums, float mass, float unread) {
  if (unread <= 0) return -kInf;
  if (mass <= unread) return kInf;
  float* below = s.chances;  // of no more use
  float behind = 0;
  for (int64_t i = s.size; i-- > 0;) {
    behind += s.weights[i];
    below[i] = behind - s.weights[i] / 2;  // half of a unit's own
  }
  int64_t right = 0;
  while (right < s.size && below[right] > unread) ++right;
  float high = right > 0 ? below[right - 1] : mass, low = right < s.size ? below[right] : 0;
  float start = right > 0 ? s.scores[right - 1] : sums.highest;
  float stop = right < s.size ? s.scores[right] : sums.lowest;
  float part = high > low ? (high - unread) / (high - low) : 0;
  return start + (part < 0 ? 0 : part > 1 ? 1 : part) * (stop - start);
}

template <typename T>
void sample(const SampleArgs& a, int64_t i, float* lowest) {
  int64_t row = i / a.heads, begin = a.begin[row], end = a.end[row];
  float *scores = a.scores + i * a.width, unread = 1 - a.coverage[row];
  *lowest = unread <= 0 ? -kInf : kInf;
  if (begin >= end) return;
  Sample s = sample_at(a, i);
  Sums sums = sum_up(scores, begin, end, s.ends);
  if (!(sums.highest > -kInf)) return;
  draw(scores, begin, end, sums, s);
  look<T>(a, row, i % a.heads, s);
  float mass = weigh(a, a.known + i * a.group, s);
  sort(s);
  float shares = static_cast<float>(sums.shares);
  float moved = mass > 0 ? (log2_one(mass) - log2_one(shares)) * kLn2 - sums.highest : 0;
  *lowest = threshold(s, sums, mass, unread) + moved;
  for (int64_t u = begin; u < end; ++u) scores[u] += moved;
}

template <typename T>
void sample_all(const SampleArgs& a, float* lowest) {
  parallel_for(a.rows * a.heads, a.threads,
               [&](int64_t i, int64_t) { sample<T>(a, i, lowest + i); });
}

}  // namespace
