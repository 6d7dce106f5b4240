// Dot products of a few query heads with a few rows: each row is loaded once for all of them.
#pragma once

#include "simd.h"

// Queries are taken four at a time, so that four times LANES / 4 sums fill one vector.
constexpr int kGroup = 4;

INLINE int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// Element type that queries are multiplied in: the rows' own where the machine multiplies it into
// float32 sums without rounding, else float32.
template <typename T>
struct QueryOf {
  using Type = float;
};
#if defined(__AVX512BF16__)
template <>
struct QueryOf<BF16> {
  using Type = BF16;
};
#endif
template <typename T>
using Query = typename QueryOf<T>::Type;

template <typename T>
INLINE void fetch(const T* p, int64_t ahead) {
  if (ahead) __builtin_prefetch(reinterpret_cast<const char*>(p) + ahead, 0, 2);
}

// acc[g * rows + j] += q[g] . row[j], lane by lane, for G queries and LANES / G rows.
// q: [G, q_stride], zero from dim to padded(dim). Square: row elements are squared. What lies
// `ahead` bytes behind what is read is fetched beside it.
template <typename T, int G, bool Square = false>
INLINE void dot_rows(VecF (&acc)[LANES], const float* q, int64_t q_stride,
                     const T* const (&row)[LANES / G], int64_t dim, int64_t ahead = 0) {
  constexpr int kRows = LANES / G;
  int64_t d = 0;
  for (; d + LANES <= dim; d += LANES) {
    VecF x[kRows];
    UNROLL for (int j = 0; j < kRows; ++j) {
      fetch(row[j] + d, ahead);
      x[j] = load(row[j] + d);
      if (Square) x[j] *= x[j];
    }
    UNROLL for (int g = 0; g < G; ++g) {
      VecF qg = load(q + g * q_stride + d);
      UNROLL for (int j = 0; j < kRows; ++j) acc[g * kRows + j] += qg * x[j];
    }
  }
  if (d < dim) {
    UNROLL for (int j = 0; j < kRows; ++j) {
      VecF x = load_first(row[j] + d, static_cast<int>(dim - d));
      if (Square) x *= x;
      UNROLL for (int g = 0; g < G; ++g) acc[g * kRows + j] += load(q + g * q_stride + d) * x;
    }
  }
}

#if defined(__AVX512BF16__)
INLINE __m512bh load_pairs(const BF16* p, __mmask32 mask) {
  return reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, p));
}

// As above, two products per lane and instruction; products of bfloat16 are exact in float32.
template <typename T, int G>
INLINE void dot_rows(VecF (&acc)[LANES], const BF16* q, int64_t q_stride,
                     const BF16* const (&row)[LANES / G], int64_t dim, int64_t ahead = 0) {
  constexpr int kRows = LANES / G;
  for (int64_t d = 0; d < dim; d += 2 * LANES) {
    __mmask32 mask = dim - d >= 2 * LANES ? ~0u : (1u << (dim - d)) - 1;
    __m512bh x[kRows];
    UNROLL for (int j = 0; j < kRows; ++j) {
      fetch(row[j] + d, ahead);
      x[j] = load_pairs(row[j] + d, mask);
    }
    UNROLL for (int g = 0; g < G; ++g) {
      __m512bh qg = load_pairs(q + g * q_stride + d, mask);
      UNROLL for (int j = 0; j < kRows; ++j) {
        int i = g * kRows + j;
        acc[i] = _mm512_dpbf16_ps(acc[i], x[j], qg);
      }
    }
  }
}

// acc[g * rows + j] += sum over d of q[g][d] * (q[g][d] < 0 ? low[j][d] : high[j][d]).
template <int G>
INLINE void dot_bounds(VecF (&acc)[LANES], const BF16* q, int64_t q_stride,
                       const BF16* const (&low)[LANES / G], const BF16* const (&high)[LANES / G],
                       int64_t dim) {
  constexpr int kRows = LANES / G;
  for (int64_t d = 0; d < dim; d += 2 * LANES) {
    __mmask32 mask = dim - d >= 2 * LANES ? ~0u : (1u << (dim - d)) - 1;
    __m512bh below[kRows], above[kRows];
    UNROLL for (int j = 0; j < kRows; ++j) {
      below[j] = load_pairs(low[j] + d, mask);
      above[j] = load_pairs(high[j] + d, mask);
    }
    UNROLL for (int g = 0; g < G; ++g) {
      __m512bh qg = load_pairs(q + g * q_stride + d, mask);
      __mmask32 negative = _mm512_movepi16_mask(reinterpret_cast<__m512i>(qg));
      UNROLL for (int j = 0; j < kRows; ++j) {
        __m512i x = _mm512_mask_blend_epi16(negative, reinterpret_cast<__m512i>(above[j]),
                                            reinterpret_cast<__m512i>(below[j]));
        int i = g * kRows + j;
        acc[i] = _mm512_dpbf16_ps(acc[i], reinterpret_cast<__m512bh>(x), qg);
      }
    }
  }
}
#endif

// LANES elements from p, or the first n of them and zeros.
template <typename T>
INLINE VecF load_at_most(const T* p, int64_t n) {
  return n >= LANES ? load(p) : load_first(p, static_cast<int>(n));
}

// Copies the query heads of one KV head to [group, padded(dim)], zeros at the end.
template <typename T>
INLINE void copy_queries(Query<T>* to, const T* from, int64_t group, int64_t stride, int64_t dim) {
  for (int64_t g = 0; g < group; ++g) {
    for (int64_t d = 0; d < dim; d += LANES) {
      store(to + g * padded(dim) + d, load_at_most(from + g * stride + d, dim - d));
    }
  }
}

// Calls visit.template operator()<n>(g) for g = 0, 4, ...: n heads at a time, 4 then 2 then 1.
template <typename Visit>
INLINE void for_query_blocks(int64_t group, const Visit& visit) {
  int64_t g = 0;
  for (; g + 4 <= group; g += 4) visit.template operator()<4>(g);
  if (g + 2 <= group) {
    visit.template operator()<2>(g);
    g += 2;
  }
  if (g < group) visit.template operator()<1>(g);
}
