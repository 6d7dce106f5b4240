// What scoring by codes works on: sizes, candidate tokens by segment, and the parts of its scratch.
#pragma once

#include "args.h"
#include "dot.h"
#include "permute.h"

// The arguments, sizes that follow from them, and where things begin in scratch, in floats.
struct Scene : CodeArgs {
  int64_t sub_dim, blocks, spans, padded_entries, query, table;
  int64_t tables_at, masses_at, lse_at, places_at, logits_at;

  explicit Scene(const CodeArgs& args) : CodeArgs(args) {
    sub_dim = dim / subspaces;
    blocks = (group + 3) / 4;
    spans = (width + segment - 1) / segment;
    padded_entries = (entries + 3) / 4 * 4;
    for (int64_t size = kPermuted; size >= 16 && entries <= size; size /= 2) padded_entries = size;
    query = subspaces * blocks * 4 * padded(sub_dim);
    table = centroids ? 0 : subspaces * padded_entries * 4;
    tables_at = rows * heads * query;
    masses_at = tables_at + rows * spans * heads * blocks * 2 * table;
    lse_at = masses_at + rows * heads * spans * blocks * 8;
    places_at = lse_at + rows * heads * blocks * 4;
    logits_at = places_at + rows * spans * 2;
  }
};

// Candidate tokens [first, last) of a segment, and its record; -1 without one.
struct Span {
  int64_t first, last, record;
  int64_t count() const { return last > first ? last - first : 0; }
};

INLINE Span span_of(const Scene& a, int64_t row, int64_t s) {
  int64_t first = s * a.segment, last = first + a.segment;
  if (first < a.begin[row]) first = a.begin[row];
  if (last > a.end[row]) last = a.end[row];
  return {first, last, s < a.segments ? a.records[row * a.r_row + s] : -1};
}

// Query heads of a block of four.
INLINE int64_t heads_of(const Scene& a, int64_t block) {
  return a.group - 4 * block < 4 ? a.group - 4 * block : 4;
}

// Queries [m, 4 * blocks, padded(D / m)].
template <typename T>
Query<T>* queries_of(const Scene& a, int64_t row, int64_t head) {
  return reinterpret_cast<Query<T>*>(a.scratch) + (row * a.heads + head) * a.query;
}

// For each block of query heads its tables, then their exponentials.
INLINE float* tables_of(const Scene& a, int64_t row, int64_t s, int64_t head) {
  return a.scratch + a.tables_at + ((row * a.spans + s) * a.heads + head) * a.blocks * 2 * a.table;
}

// For each segment and block of query heads four maxima, then four sums.
INLINE float* masses_of(const Scene& a, int64_t row, int64_t head) {
  return a.scratch + a.masses_at + (row * a.heads + head) * a.spans * a.blocks * 8;
}

INLINE float* lse_of(const Scene& a, int64_t row, int64_t head) {
  return a.scratch + a.lse_at + (row * a.heads + head) * a.blocks * 4;
}

// Where the logits of a segment without a record begin.
INLINE int64_t* place_of(const Scene& a, int64_t row, int64_t s) {
  return reinterpret_cast<int64_t*>(a.scratch + a.places_at) + row * a.spans + s;
}

INLINE float* logits_of(const Scene& a, int64_t row, int64_t s, int64_t head, const Span& span) {
  return a.scratch + *place_of(a, row, s) + head * a.group * logit_stride(span.count());
}

// Floats of scratch; writes the places of logits where they are to be `placed`.
INLINE int64_t lay_out(const Scene& a, bool placed) {
  int64_t next = a.logits_at;
  for (int64_t row = 0; row < a.rows; ++row) {
    for (int64_t s = 0; s < a.spans; ++s) {
      Span span = span_of(a, row, s);
      if (placed) *place_of(a, row, s) = next;
      if (span.record < 0) next += a.heads * a.group * logit_stride(span.count());
    }
  }
  return next;
}
