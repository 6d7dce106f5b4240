// Records of clusters: their tokens by cluster, and tables of scaled q . centroid and q . code.
#pragma once

#include "code_scene.h"
#include "permute.h"

constexpr int64_t kWidest = 512;     // channels of a key
constexpr int64_t kMostParts = 16;   // sub-vectors of what is left of one
constexpr int64_t kBlock = 4;        // query heads at a time
constexpr int kClusters = 16;        // of a record, and codes of a sub-vector
constexpr int kVectors = kClusters / LANES;

typedef VecF PerCluster[kBlock][kVectors];  // a number for each query head of a block and cluster

// A scene whose records hold clusters. Scaled queries in float32 lie behind what all scenes have.
struct Clustered : Scene {
  int64_t width_of_query, wide_at, free_at;

  explicit Clustered(const CodeArgs& args) : Scene(args) {
    width_of_query = padded(dim);
    wide_at = padded(lay_out(*this, false));
    free_at = wide_at + rows * heads * blocks * kBlock * width_of_query;
  }

  float* wide_of(int64_t row, int64_t head) const {
    return scratch + wide_at + (row * heads + head) * blocks * kBlock * width_of_query;
  }
};

// A record of one KV head. Cluster c has the tokens places[i], i from begin_of(c) to ends[c].
struct Record {
  const int8_t *centroids, *books;
  const uint8_t* codes;
  const int16_t *places, *ends;
  const uint8_t* labels;
  const float* scales;  // of centroids, values, codebooks

  Record(const Clustered& a, const Span& span, int64_t head) {
    int64_t at = span.record * a.heads + head;
    centroids = a.centroids + at * a.dim * kClusters;
    books = static_cast<const int8_t*>(a.codebooks) + at * a.dim * kClusters;
    codes = a.codes + at * ((a.subspaces + 1) / 2) * a.segment;
    places = a.places + at * a.segment;
    ends = a.ends + at * kClusters;
    labels = a.labels + at * (a.segment / 2);
    scales = a.scales + at * (2 * kClusters + a.subspaces);
  }

  int64_t begin_of(int c) const { return c ? ends[c - 1] : 0; }
  int label(int64_t place) const { return labels[place / 2] >> (place % 2 * 4) & 15; }
};

// Candidates of each cluster of the record of segment s.
template <typename Number>
void count_candidates(const Clustered& a, int64_t s, const Span& span, const Record& record,
                      Number* sizes) {
  int64_t first = s * a.segment;
  bool whole = span.count() == a.segment;
  for (int c = 0; c < kClusters; ++c) {
    sizes[c] = whole ? static_cast<Number>(record.ends[c] - record.begin_of(c)) : 0;
  }
  for (int64_t t = span.first; t < span.last && !whole; ++t) ++sizes[record.label(t - first)];
}

// Writes a row's queries of one KV head to where `wide_of` says.
template <typename T>
void widen_queries(const Clustered& a, int64_t row, int64_t head) {
  const T* q = static_cast<const T*>(a.q) + row * a.q_row + head * a.q_head;
  float* to = a.wide_of(row, head);
  for (int64_t g = 0; g < a.blocks * kBlock; ++g, to += a.width_of_query) {
    for (int64_t d = 0; d < a.dim; d += LANES) {
      VecF x = g < a.group ? load_at_most(q + g * a.q_group + d, a.dim - d) : VecF{};
      store(to + d, x * static_cast<float>(a.scale));
    }
  }
}

// For four query heads: sums over channels of q[g][d] * rows[d][k], times scales[k]. What belongs to
// one channel lies side by side, so nothing is added across lanes. Rows that lie `ahead` bytes behind
// are fetched.
INLINE void sum_channels(const float* q, int64_t q_stride, const int8_t* rows, int64_t dim,
                         int64_t ahead, const VecF (&scales)[kVectors], PerCluster& sums) {
  typedef int8_t Bytes __attribute__((vector_size(LANES)));
  PerCluster acc[2] = {};  // even and odd channels
  auto add = [&](PerCluster& to, int64_t d) __attribute__((always_inline)) {
    if (d % 4 == 0) __builtin_prefetch(rows + d * kClusters + ahead, 0, 2);
    UNROLL for (int v = 0; v < kVectors; ++v) {
      Bytes raw;
      __builtin_memcpy(&raw, rows + d * kClusters + v * LANES, sizeof raw);
      VecF row = __builtin_convertvector(raw, VecF);
      UNROLL for (int g = 0; g < kBlock; ++g) to[g][v] += q[g * q_stride + d] * row;
    }
  };
  int64_t d = 0;
  for (; d + 2 <= dim; d += 2) {
    add(acc[0], d);
    add(acc[1], d + 1);
  }
  if (d < dim) add(acc[0], d);
  for (int g = 0; g < kBlock; ++g) {
    for (int v = 0; v < kVectors; ++v) sums[g][v] = (acc[0][g][v] + acc[1][g][v]) * scales[v];
  }
}

// Scaled q . centroid of a record, for one block of query heads; those of `next` are fetched.
INLINE void dot_centroids(const Clustered& a, const float* wide, int64_t block, const Record& record,
                          const int8_t* next, PerCluster& sums) {
  VecF by[kVectors];
  for (int v = 0; v < kVectors; ++v) by[v] = load(record.scales + v * LANES);
  sum_channels(wide + block * kBlock * a.width_of_query, a.width_of_query, record.centroids, a.dim,
               next - record.centroids, by, sums);
}

// The tables of what is left of keys; the codebooks `next` are fetched.
template <typename Tables>
void fill_books(const Clustered& a, const float* wide, int64_t block, const Record& record,
                const int8_t* next, float* table) {
  wide += block * kBlock * a.width_of_query;
  for (int64_t j = 0; j < a.subspaces; ++j) {
    PerCluster sums;
    VecF by[kVectors];
    for (VecF& one : by) one = splat(record.scales[2 * kClusters + j]);
    int64_t first = j * a.sub_dim;
    sum_channels(wide + first, a.width_of_query, record.books + first * kClusters, a.sub_dim,
                 next - record.books, by, sums);
    Tables::put_part(table, a.subspaces, j, sums);
  }
}

template <typename Tables>
Tables codes_of(const Clustered& a, const Record& record) {
  return {record.codes, a.segment, a.subspaces, kClusters};
}

template <int M, typename Visit>
INLINE void for_packed(const Visit& visit) {
#if LANES == 16
  visit.template operator()<Permuted<M, 1, true>>();
#else
  visit.template operator()<Lookup<M, true>>();
#endif
}

// Calls visit.template operator()<Tables>() for as many sub-vectors as there are.
template <typename Visit>
INLINE void for_subspaces(const Clustered& a, const Visit& visit) {
  switch (a.subspaces) {
    case 4: return for_packed<4>(visit);
    case 8: return for_packed<8>(visit);
    default: return for_packed<0>(visit);
  }
}
