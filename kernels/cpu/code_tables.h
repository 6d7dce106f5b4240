// Tables of scaled q . centroid, to look codes up in: one entry for every part of a key and code.
#pragma once

#include "code_scene.h"
#include "permute.h"

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

// The tables of a record for one block of query heads.
template <typename T, typename Tables>
void fill_table(const Scene& a, int64_t row, int64_t head, int64_t record, int64_t block,
                float* table) {
  const Query<T>* q = queries_of<T>(a, row, head) + block * 4 * padded(a.sub_dim);
  int64_t at = (record * a.heads + head) * a.entries * a.dim;
  const T* book = static_cast<const T*>(a.codebooks) + at;
  fill_codebooks<T, Tables>(a, q, book, heads_of(a, block), table);
}

template <typename Tables>
Tables tables_at(const Scene& a, const Span& span, int64_t head) {
  const uint8_t* codes = a.codes + (span.record * a.heads + head) * a.subspaces * a.segment;
  return {codes, a.segment, a.subspaces, a.padded_entries};
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

template <typename Visit>
INLINE void for_tables(const Scene& a, const Visit& visit) {
  switch (a.subspaces) {
    case 1: return for_entries<1>(a, visit);
    case 2: return for_entries<2>(a, visit);
    case 4: return for_entries<4>(a, visit);
    default: return for_entries<0>(a, visit);
  }
}
