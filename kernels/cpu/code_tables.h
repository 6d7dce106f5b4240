// Tables of scaled q . centroid, to look codes up in: one entry for every part of a key and code.
#pragma once

#include "code_scene.h"
#include "permute.h"

constexpr int64_t kWidest = 512;    // channels of a key whose clusters are in 8 bits
constexpr int64_t kMostParts = 17;  // of such a key: its cluster and 16 sub-vectors
constexpr int kNibble = 16;         // entries of each of its parts
constexpr int kNibbleVectors = kNibble / LANES;

INLINE int64_t heads_of(const Scene& a, int64_t block) {
  return a.group - 4 * block < 4 ? a.group - 4 * block : 4;
}

// Copies the queries of one (row, KV head) to where `queries_of` says.
template <typename T>
void prepare_queries(const Scene& a, int64_t row, int64_t head) {
  const T* q = static_cast<const T*>(a.q) + row * a.q_row + head * a.q_head;
  Query<T>* to = queries_of<T>(a, row, head);
  for (int64_t i = 0; i < a.query; ++i) to[i] = Query<T>{};
  for (int64_t j = 0; j < a.subspaces; ++j) {
    copy_queries<T>(to, q + j * a.sub_dim, a.group, a.q_group, a.sub_dim);
    to += a.blocks * 4 * padded(a.sub_dim);
  }
}

// Scaled q . centroid for every sub-vector and code; what pads the entries repeats the last code.
template <typename T, typename Tables>
void fill_codebooks(const Scene& a, const Query<T>* q, const T* book, int64_t heads, float* table) {
  constexpr int kRows = LANES / 4;
  constexpr int64_t kAhead = 4096 / sizeof(T);  // elements; codebooks lie side by side
  int64_t stride = padded(a.sub_dim), last = a.entries - 1;
  for (int64_t j = 0; j < a.subspaces; ++j) {
    for (int64_t k = 0; k < a.padded_entries; k += kRows) {
      const T* row[kRows];
      for (int i = 0; i < kRows; ++i) row[i] = book + (k + i < last ? k + i : last) * a.sub_dim;
      prefetch_row(row[0] + kAhead, kRows * a.sub_dim);
      VecF acc[LANES] = {};
      dot_rows<T, 4>(acc, q, stride, row, a.sub_dim);
      if (j == 0) {  // heads that pad the block
        for (int64_t g = heads; g < 4; ++g) {
          for (int i = 0; i < kRows; ++i) acc[g * kRows + i] = splat(-kInf);
        }
      }
      Tables::put(table, a.subspaces, a.padded_entries, j, k, acc, static_cast<float>(a.scale));
    }
    book += a.entries * a.sub_dim;
    q += a.blocks * 4 * stride;
  }
}

// Entries of one part for four query heads: sums over its channels of q[g][d] * rows[d][k], times
// scales[k]. The codes of a channel lie side by side, so nothing is added across lanes. Rows that lie
// `ahead` bytes behind are fetched: of the record that comes after the next.
INLINE void sum_channels(const float* q, int64_t q_stride, const int8_t* rows, int64_t dim,
                         int64_t ahead, const VecF (&scales)[kNibbleVectors], VecF (&sums)[4][kNibbleVectors]) {
  typedef int8_t Bytes __attribute__((vector_size(LANES)));
  VecF acc[2][4][kNibbleVectors] = {};  // even and odd channels
  auto add = [&](VecF(&to)[4][kNibbleVectors], int64_t d) __attribute__((always_inline)) {
    if (d % 4 == 0) __builtin_prefetch(rows + d * kNibble + ahead, 0, 2);
    UNROLL for (int v = 0; v < kNibbleVectors; ++v) {
      Bytes raw;
      __builtin_memcpy(&raw, rows + d * kNibble + v * LANES, sizeof raw);
      VecF row = __builtin_convertvector(raw, VecF);
      UNROLL for (int g = 0; g < 4; ++g) to[g][v] += q[g * q_stride + d] * row;
    }
  };
  int64_t d = 0;
  for (; d + 2 <= dim; d += 2) {
    add(acc[0], d);
    add(acc[1], d + 1);
  }
  if (d < dim) add(acc[0], d);
  for (int g = 0; g < 4; ++g) {
    for (int v = 0; v < kNibbleVectors; ++v) sums[g][v] = (acc[0][g][v] + acc[1][g][v]) * scales[v];
  }
}

// Tables of a cluster and what is left of a key: centroids [D, 16], codebooks [m, D / m, 16].
template <typename T, typename Tables>
void fill_residuals(const Scene& a, const T* q, int64_t at, int64_t heads, float* table) {
  float wide[4 * kWidest] = {};
  for (int64_t g = 0; g < heads; ++g) {
    for (int64_t d = 0; d < a.dim; d += LANES) {
      VecF x = load_at_most(q + g * a.q_group + d, a.dim - d) * static_cast<float>(a.scale);
      store(wide + g * kWidest + d, x);
    }
  }
  const float* scales = a.scales + at * (2 * kNibble + a.subspaces);
  VecF by[kNibbleVectors], sums[4][kNibbleVectors];
  for (int v = 0; v < kNibbleVectors; ++v) by[v] = load(scales + v * LANES);
  int64_t size = a.dim * kNibble, codes = (a.parts + 1) / 2 * a.segment;
  prefetch_row(a.codes + (at + 2) * codes, codes);
  sum_channels(wide, kWidest, a.centroids + at * size, a.dim, 2 * size, by, sums);
  for (int64_t g = heads; g < 4; ++g) {  // heads that pad the block
    for (VecF& sum : sums[g]) sum = splat(-kInf);
  }
  Tables::put_part(table, a.parts, 0, sums);
  const int8_t* books = static_cast<const int8_t*>(a.codebooks) + at * size;
  for (int64_t j = 0; j < a.subspaces; ++j) {
    for (VecF& one : by) one = splat(scales[2 * kNibble + j]);
    int64_t first = j * a.sub_dim;
    sum_channels(wide + first, kWidest, books + first * kNibble, a.sub_dim, 2 * size, by, sums);
    Tables::put_part(table, a.parts, 1 + j, sums);
  }
}

// The tables of a record for one block of query heads.
template <typename T, typename Tables>
void fill_table(const Scene& a, int64_t row, int64_t head, int64_t record, int64_t block,
                float* table) {
  int64_t at = record * a.heads + head, heads = heads_of(a, block);
  if constexpr (Tables::kPacked) {
    const T* q = static_cast<const T*>(a.q) + row * a.q_row + head * a.q_head;
    fill_residuals<T, Tables>(a, q + block * 4 * a.q_group, at, heads, table);
  } else {
    const Query<T>* q = queries_of<T>(a, row, head) + block * 4 * padded(a.sub_dim);
    const T* book = static_cast<const T*>(a.codebooks) + at * a.entries * a.dim;
    fill_codebooks<T, Tables>(a, q, book, heads, table);
  }
}

template <typename Tables>
Tables tables_at(const Scene& a, const Span& span, int64_t head) {
  int64_t rows = a.centroids ? (a.parts + 1) / 2 : a.subspaces;
  const uint8_t* codes = a.codes + (span.record * a.heads + head) * rows * a.segment;
  return {codes, a.segment, a.parts, a.padded_entries};
}

// Calls visit.template operator()<Tables>() for as many parts and entries as there are.
template <int M, typename Visit>
INLINE void for_entries(const Scene& a, const Visit& visit) {
#if LANES == 16
  switch (a.padded_entries) {
    case 16: return visit.template operator()<Permuted<M, 1>>();
    case 32: return visit.template operator()<Permuted<M, 2>>();
    case 64: return visit.template operator()<Permuted<M, 4>>();
  }
#endif
  visit.template operator()<Lookup<M>>();
}

template <int M, typename Visit>
INLINE void for_packed(const Visit& visit) {
#if LANES == 16
  visit.template operator()<Permuted<M, 1, true>>();
#else
  visit.template operator()<Lookup<M, true>>();
#endif
}

template <typename Visit>
INLINE void for_packed_parts(const Scene& a, const Visit& visit) {
  switch (a.parts) {
    case 5: return for_packed<5>(visit);
    case 9: return for_packed<9>(visit);
    default: return for_packed<0>(visit);
  }
}

template <typename Visit>
INLINE void for_tables(const Scene& a, const Visit& visit) {
  if (a.centroids) return for_packed_parts(a, visit);
  switch (a.subspaces) {
    case 1: return for_entries<1>(a, visit);
    case 2: return for_entries<2>(a, visit);
    case 4: return for_entries<4>(a, visit);
    default: return for_entries<0>(a, visit);
  }
}
