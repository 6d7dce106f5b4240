// Table look-up of coded tokens, for four query heads at a time: entries of four heads lie side by
// side, so one load fetches them.
#pragma once

#include "shares.h"

typedef float Vec4 __attribute__((vector_size(16)));

constexpr float kVanishing = 0x1p-80f;  // sums below may have lost terms to underflow

INLINE Vec4 load4(const float* p) {
  Vec4 x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

INLINE void store4(float* p, Vec4 x) { __builtin_memcpy(p, &x, sizeof x); }

INLINE Vec4 max4(Vec4 a, Vec4 b) { return a > b ? a : b; }

INLINE VecF repeat4(Vec4 x) {
  VecF wide;
  for (int i = 0; i < LANES; i += 4) __builtin_memcpy(reinterpret_cast<float*>(&wide) + i, &x, 16);
  return wide;
}

INLINE Vec4 exp4(Vec4 x) {
  VecF wide = exp2_vec(repeat4(x) * kLog2E);
  return load4(reinterpret_cast<float*>(&wide));
}

INLINE Vec4 log4(Vec4 x) {
  VecF wide = log2_vec(repeat4(x)) * kLn2;
  return load4(reinterpret_cast<float*>(&wide));
}

INLINE void exp_each(Vec4 (&x)[4]) {
  VecF wide[16 / LANES];
  __builtin_memcpy(wide, x, sizeof wide);
  UNROLL for (int i = 0; i < 16 / LANES; ++i) wide[i] = exp2_vec(wide[i] * kLog2E);
  __builtin_memcpy(x, wide, sizeof wide);
}

INLINE void transpose4(Vec4 (&x)[4]) {
  Vec4 a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5);
  Vec4 b = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5);
  Vec4 c = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
  Vec4 d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
  x[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  x[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  x[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  x[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

// Sums of the lanes of each of four vectors, in the order of sum_lanes.
INLINE Vec4 sum_lanes_of_each(const VecF (&x)[4]) {
  Vec4 part[4];
  UNROLL for (int i = 0; i < 4; ++i) {
#if LANES == 16
    typedef float Vec8 __attribute__((vector_size(32)));
    Vec8 half = __builtin_shufflevector(x[i], x[i], 0, 1, 2, 3, 4, 5, 6, 7) +
                __builtin_shufflevector(x[i], x[i], 8, 9, 10, 11, 12, 13, 14, 15);
#elif LANES == 8
    VecF half = x[i];
#endif
#if LANES == 4
    part[i] = x[i];
#else
    part[i] = __builtin_shufflevector(half, half, 0, 1, 2, 3) +
              __builtin_shufflevector(half, half, 4, 5, 6, 7);
#endif
  }
  transpose4(part);
  return (part[0] + part[2]) + (part[1] + part[3]);
}

// Codes [m, S] of one KV head and tables [m, entries, 4] to look them up in; M is m, or 0 for any.
// Packed: codes below 16, [(m + 1) / 2, S], an even part in the low half of a byte.
template <int M, bool Packed = false>
struct Lookup {
  static constexpr bool kPacked = Packed;
  const uint8_t* codes;
  int64_t length;     // S
  int64_t subspaces;  // m
  int64_t entries;

  int64_t parts() const { return M ? M : subspaces; }

  int64_t code(int64_t j, int64_t t) const {
    if constexpr (!Packed) return codes[j * length + t];
    return codes[j / 2 * length + t] >> (j % 2 * 4) & 15;
  }

  template <typename Combine>
  __attribute__((always_inline)) Vec4 all(const float* table, int64_t t, Combine combine) const {
    Vec4 x = load4(table + code(0, t) * 4);
    for (int64_t j = 1; j < parts(); ++j) {
      x = combine(x, load4(table + (j * entries + code(j, t)) * 4));
    }
    return x;
  }

  // The sum of token t's entries.
  __attribute__((always_inline)) Vec4 sum(const float* table, int64_t t) const {
    return all(table, t, [](Vec4 a, Vec4 b) __attribute__((always_inline)) { return a + b; });
  }

  // Stores kGroup x LANES / kGroup dot products, lane by lane in `acc`: codes from k on of part j.
  static void put(float* table, int64_t, int64_t entries, int64_t j, int64_t k,
                  const VecF (&acc)[LANES], float scale) {
    VecF by_code[LANES];
    UNROLL for (int i = 0; i < LANES; ++i) by_code[i] = acc[i % 4 * (LANES / 4) + i / 4];
    store(table + (j * entries + k) * 4, sum_each(by_code) * scale);
  }

  // Stores the 16 entries of part j for four heads.
  static void put_part(float* table, int64_t, int64_t j, const VecF (&sums)[4][16 / LANES]) {
    for (int g = 0; g < 4; ++g) {
      for (int k = 0; k < 16; ++k) table[(j * 16 + k) * 4 + g] = sums[g][k / LANES][k % LANES];
    }
  }

  // Takes each head's lse off its logits.
  void subtract(float* table, const float* lse) const {
    for (int64_t k = 0; k < entries; ++k) store4(table + k * 4, load4(table + k * 4) - load4(lse));
  }

  // exps = exp(table - maximum), each sub-vector by its own; returns the sum of the maxima.
  Vec4 exponentiate(const float* table, float* exps) const {
    Vec4 total = {};
    for (int64_t j = 0; j < parts(); ++j) {
      const float* from = table + j * entries * 4;
      Vec4 best = load4(from);
      for (int64_t k = 1; k < entries; ++k) best = max4(best, load4(from + k * 4));
      for (int64_t i = 0; i < entries * 4; i += LANES) {
        store(exps + j * entries * 4 + i, exp2_vec((load(from + i) - repeat4(best)) * kLog2E));
      }
      total += best;
    }
    return total;
  }

  // Sum over the tokens [first, last) of the products of their exponentiated entries.
  Vec4 sum_products(const float* exps, int64_t first, int64_t last) const {
    auto weight = [&](int64_t t) __attribute__((always_inline)) {
      return all(exps, t, [](Vec4 a, Vec4 b) __attribute__((always_inline)) { return a * b; });
    };
    Vec4 sums[4] = {};
    int64_t t = first;
    for (; t + 4 <= last; t += 4) {
      UNROLL for (int i = 0; i < 4; ++i) sums[i] += weight(t + i);
    }
    for (; t < last; ++t) sums[0] += weight(t);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  // Maximum, or a bound on it, and sum of exp(logit - maximum) over `count` tokens, for `heads`
  // query heads. `exps` is working memory as large as the table.
  void mass(const float* table, float* exps, int64_t first, int64_t count, int64_t heads, Vec4* max,
            Vec4* total) const {
    *max = exponentiate(table, exps);
    *total = sum_products(exps, first, first + count);
    bool vanished = false;
    for (int64_t g = 0; g < heads; ++g) vanished |= !((*total)[g] > kVanishing);
    if (!vanished) return;
    *max = sum(table, first);
    *total = Vec4{};
    for (int64_t t = 1; t < count; ++t) *max = max4(*max, sum(table, first + t));
    for (int64_t t = 0; t < count; ++t) *total += exp4(sum(table, first + t) - *max);
  }

  // out[t] = maximum, or log of the mean of exp, of the logits of token first + t over the group;
  // the tables of each four heads are `stride` floats apart.
  void reduce(const float* tables, int64_t stride, int64_t group, bool mean, int64_t first,
              int64_t count, float* out) const {
    int64_t blocks = (group + 3) / 4;
    for (int64_t t = 0; t < count; t += 4) {
      int64_t n = count - t < 4 ? count - t : 4;
      auto sums = [&](Vec4(&x)[4], int64_t block) __attribute__((always_inline)) {
        UNROLL for (int i = 0; i < 4; ++i) {
          x[i] = sum(tables + block * stride, first + t + (i < n ? i : 0));
        }
        transpose4(x);
      };
      Vec4 x[4], best = Vec4{} - kInf;
      for (int64_t block = 0; block < blocks; ++block) {
        sums(x, block);
        best = max4(best, max4(max4(x[0], x[1]), max4(x[2], x[3])));
      }
      if (mean) {
        Vec4 total = {};
        for (int64_t block = 0; block < blocks; ++block) {
          sums(x, block);
          UNROLL for (int i = 0; i < 4; ++i) x[i] -= best;
          exp_each(x);
          total += (x[0] + x[1]) + (x[2] + x[3]);
        }
        best += log4(total / static_cast<float>(group));
      }
      __builtin_memcpy(out + t, &best, n * sizeof(float));
    }
  }

  // out[g * stride + t] = base and entries of token first + t, combined, for each of four heads; calls
  // beside(i, count - i) for i = 0, LANES, ...
  template <typename Combine, typename Beside>
  __attribute__((always_inline)) void put_each(const float* table, int64_t first, int64_t count,
                                               int64_t stride, Combine combine, Vec4 base,
                                               float* out, Beside beside) const {
    for (int64_t t = 0; t < count; ++t) {
      Vec4 x = combine(all(table, first + t, combine), base);
      for (int g = 0; g < 4; ++g) out[g * stride + t] = x[g];
    }
    for (int64_t i = 0; i < count; i += LANES) beside(i, count - i);
  }

  // out[t] = share of the only code of token first + t.
  void copy(const float* share, int64_t first, int64_t count, float* out) const {
    for (int64_t t = 0; t < count; ++t) out[t] = share[codes[first + t]];
  }
};
