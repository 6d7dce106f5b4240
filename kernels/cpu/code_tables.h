// Tables of scaled q . centroid, to look codes up in: one entry for every part of a key and code.
#pragma once

#include "code_scene.h"
#include "permute.h"

constexpr int64_t kWidest = 512;   // channels of a key whose clusters are in 8 bits
constexpr int64_t kMostParts = 17;  // of such a key: its cluster and 16 sub-vectors

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
  if (a.centroids) copy_queries<T>(to, q, a.group, a.q_group, a.dim);
}

// Rows [entries, dim] of one part of a codebook, and what each is to be multiplied with; in int8
// they are widened to T, exactly, into `wide`.
template <typename T>
struct Book {
  const T* rows;
  const int8_t* bytes;  // null where the rows are there
  const float* scales;  // null for 1
  int64_t scale_step;   // 0: one for all rows
  int64_t dim;

  const T* row(int64_t k, T* wide) const {
    if (!bytes) return rows + k * dim;
    for (int64_t d = 0; d < dim; d += LANES) {
      typedef int8_t Bytes __attribute__((vector_size(LANES)));
      Bytes raw = {};
      int64_t n = dim - d < LANES ? dim - d : LANES;
      __builtin_memcpy(&raw, bytes + k * dim + d, n);
      store(wide + d, __builtin_convertvector(raw, VecF));
    }
    return wide;
  }

  float scale(int64_t k) const { return scales ? scales[k * scale_step] : 1.0f; }
};

// Entries of part j for four query heads `q` [4, padded(dim)], of which `heads` are there; what
// pads the entries repeats the last code.
template <typename T, typename Tables>
void fill_part(const Scene& a, const Query<T>* q, const Book<T>& book, int64_t j, int64_t heads,
               float* table) {
  constexpr int kRows = LANES / 4;
  constexpr int64_t kAhead = 4096 / sizeof(T);  // elements; codebooks lie side by side
  int64_t last = a.entries - 1;
  T wide[kRows][kWidest];
  for (int64_t k = 0; k < a.padded_entries; k += kRows) {
    const T* row[kRows];
    for (int i = 0; i < kRows; ++i) row[i] = book.row(k + i < last ? k + i : last, wide[i]);
    if (!book.bytes) prefetch_row(row[0] + kAhead, kRows * book.dim);
    VecF acc[LANES] = {};
    dot_rows<T, 4>(acc, q, padded(book.dim), row, book.dim);
    for (int i = 0; book.bytes && i < kRows; ++i) {
      float scale = book.scale(k + i < last ? k + i : last);
      for (int g = 0; g < 4; ++g) acc[g * kRows + i] *= scale;
    }
    for (int64_t g = heads; j == 0 && g < 4; ++g) {  // heads that pad the block
      for (int i = 0; i < kRows; ++i) acc[g * kRows + i] = splat(-kInf);
    }
    Tables::put(table, a.parts, a.padded_entries, j, k, acc, static_cast<float>(a.scale));
  }
}

// The tables of a record for one block of query heads.
template <typename T, typename Tables>
void fill_table(const Scene& a, int64_t row, int64_t head, int64_t record, int64_t block,
                float* table) {
  int64_t at = record * a.heads + head, size = a.entries * a.sub_dim, heads = heads_of(a, block);
  int64_t first = a.centroids != nullptr;
  const Query<T>* q = queries_of<T>(a, row, head);
  const float* scales = a.scales + at * (2 * a.entries + a.subspaces);
  for (int64_t j = 0; j < a.subspaces; ++j) {
    int64_t part = (at * a.subspaces + j) * size;
    Book<T> book = {static_cast<const T*>(a.codebooks) + part, nullptr, nullptr, 0, a.sub_dim};
    if (a.centroids) {
      book.bytes = static_cast<const int8_t*>(a.codebooks) + part;
      book.scales = scales + 2 * a.entries + j;
    }
    fill_part<T, Tables>(a, q + block * 4 * padded(a.sub_dim), book, first + j, heads, table);
    q += a.blocks * 4 * padded(a.sub_dim);
  }
  if (!a.centroids) return;
  const int8_t* centroids = a.centroids + at * a.entries * a.dim;
  Book<T> book = {nullptr, centroids, scales, 1, a.dim};
  fill_part<T, Tables>(a, q + block * 4 * padded(a.dim), book, 0, heads, table);
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
