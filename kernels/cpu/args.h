// Arguments of the kernels: one struct each, mirrored field by field in library.py.
// Every field is eight bytes. Strides count elements; the last dimension is contiguous.
#pragma once

#include <stdint.h>

// Scratch of so many floats. A kernel that needs more returns how many, and has done nothing; else 0.
struct Memory {
  float* scratch;
  int64_t scratch_size;
};

// Single tokens of a row, others for every KV head: the i-th has slot slots[places[head * stride + i]].
struct TokenList {
  const int32_t *places, *slots;
  int64_t stride;
};

struct AttendArgs : Memory {
  const void *q, *keys, *values;  // [rows, H, G, D], [slots, H, D], [slots, H, Dv]
  const int32_t *table, *counts, *tails;
  const TokenList* lists;  // [rows], in place of table and tails; unit is 1; null: none
  void* out;       // [rows, H, G, Dv] contiguous, q's dtype
  float* lse;      // [rows, H, G] contiguous
  int64_t rows, heads, group, dim, vdim, width, unit, dtype, threads;
  int64_t q_row, q_head, q_group, k_slot, k_head, v_slot, v_head, t_row, t_head, c_row, c_head;
  double scale;
};

struct ScoreArgs : Memory {
  const void *q, *data;  // [rows, H, G, D]; fields [units, H, planes, D], or keys
  const int32_t *table, *begin, *end;
  const float* known;  // [rows, H, G] contiguous, or null
  float* out;          // [rows, H, U] contiguous
  int64_t rows, heads, group, dim, width, unit, dtype, threads;
  int64_t formula;    // Formula
  int64_t reduction;  // Reduction
  int64_t q_row, q_head, q_group, d_item, d_head, d_plane, t_row;
  double scale, spread;
};

enum Formula : int64_t { kUpperBound = 0, kExpectedMaximum = 1, kExact = 2, kProduct = 3 };

// From the query heads of a group to one score: the maximum or mean of their softmaxes, or the
// maximum of their logits.
enum Reduction : int64_t { kMaxSoftmax = 0, kMeanSoftmax = 1, kMax = 2 };

struct CodeArgs : Memory {
  const void *q, *codebooks;  // [rows, H, G, D]; [records, H, m, K, D / m]
  const uint8_t* codes;       // [records, H, m, S]; as the codebooks contiguous
  // Keys coded as a cluster and what is left of it, or null: centroids int8 [records, H, D, 16],
  // codebooks int8 [records, H, m, D / m, 16], codes [records, H, (m + 1) / 2, S], two in a byte,
  // in the order of clusters; each ends at one of `ends` [records, H, 16], its tokens are `places`
  // [records, H, S]. Clusters in the order of tokens: `labels` [records, H, S / 2].
  const int8_t* centroids;
  const float* scales;             // [records, H, 32 + m]: of centroids, values, codebooks
  const uint8_t* labels;
  const int16_t *places, *ends;
  const int32_t *records, *slots;  // [rows, segments]; [rows, U]
  const int32_t *begin, *end;
  int64_t rows, heads, group, dim, width, segments, segment, subspaces, entries, dtype, threads;
  int64_t q_row, q_head, q_group, r_row, s_row;
  double scale;
  const void* keys;      // [slots, H, D], or null: nobody asks for shares of what has no record
  const int32_t* reach;  // [rows], tokens whose codes are looked at, or null: all
  const float* known;    // [rows, H, G] contiguous, or null
  float* out;            // [rows, H, U] contiguous
  int64_t k_slot, k_head;
  int64_t reduction;     // Reduction
};

// Added to logits of what is not read.
struct Gains {
  double by_code, by_centroid;
};

struct ChooseArgs {
  CodeArgs codes;  // without out
  const int32_t *num_units, *counts;
  int32_t *logical, *physical;  // [rows, H, n] contiguous
  float* weights;               // [rows, H, G, 16 segments] contiguous
  int64_t n;
  Gains gains;
};

struct WeighArgs {
  CodeArgs codes;  // without out
  const int32_t *logical, *counts;  // [rows, H, n] contiguous: units that are read
  float* weights;                   // as above
  int64_t n, unit, c_row, c_head;
  Gains gains;
};

struct EstimateArgs : Memory {
  const float* weights;    // [rows, H, G, 16 segments] contiguous
  const int8_t* values;    // [records, H, 16, Dv] contiguous
  const float* scales;     // [records, H, 32 + m]
  const int32_t* records;  // [rows, segments]
  const void* read;        // [rows, H, G, Dv] contiguous, q's dtype, with lse [rows, H, G]
  const float* read_lse;
  void* out;   // as they are; may be these
  float* lse;  // or null
  int64_t rows, heads, group, vdim, segments, subspaces, dtype, threads, r_row;
};

struct AttendAllArgs {
  AttendArgs attend;
  const float* weights;  // from here on as of EstimateArgs
  const int8_t* values;
  const float* scales;
  const int32_t* records;
  int64_t segments, subspaces, r_row;
};

struct SelectArgs : Memory {
  const float* scores;  // [rows, H, U] contiguous
  const int32_t *table, *begin, *end, *num_units, *counts;
  int32_t *logical, *physical;  // [rows, H, n] contiguous
  int64_t rows, heads, width, n, threads, t_row, c_row, c_head;
};

struct AllotArgs : Memory {
  const float* scores;  // [rows, H, U] contiguous, logs of shares of attention
  const int32_t *begin, *end, *num_units, *counts, *pooled;
  const float* lowest;  // [rows, H] contiguous
  int32_t* out;         // [rows, H] contiguous
  int64_t rows, heads, width, threads;
  double least;
};

struct SampleArgs : Memory {
  const void *q, *keys;  // [rows, H, G, D], [slots, H, D]
  float* scores;         // [rows, H, U] contiguous, logs of shares of attention; moved
  const int32_t *table, *begin, *end;
  const float *known, *coverage;  // [rows, H, G] contiguous; [rows]
  float* lowest;                  // [rows, H] contiguous
  int64_t rows, heads, group, dim, width, unit, size, dtype, threads;
  int64_t q_row, q_head, q_group, k_slot, k_head, t_row;
  double scale;
};

struct CoverArgs {
  SampleArgs sample;                             // without lowest
  const int32_t *num_units, *ceilings, *pooled;  // [rows]
  int32_t* counts;                               // [rows, H] contiguous
  int32_t* units;  // room for 2 [rows, H, U]: logical and physical units as close as counts allow
  double least;
};

struct KnownArgs : Memory {
  const void *q, *keys;                   // [rows, H, G, D], [slots, H, D]
  const int32_t *table, *counts, *tails;  // [rows, n], [rows], [rows]
  float* lse;                             // [rows, H, G] contiguous
  int64_t rows, heads, group, dim, unit, dtype, threads;
  int64_t q_row, q_head, q_group, k_slot, k_head, t_row;
  double scale;
};

struct SummariseArgs : Memory {
  const void* keys;      // [slots, H, D]
  void* fields;          // [units, H, planes, D]; kMisfit: [units, H, 1, 1]
  const int64_t* units;  // [m]
  int64_t count, heads, dim, unit, dtype, threads;
  int64_t planes;  // Planes
  int64_t k_slot, k_head, f_unit, f_head, f_plane;
};

enum Planes : int64_t { kMinMax = 0, kMeanStd = 1, kMean = 2, kMisfit = 3 };

struct IndexArgs : Memory {
  const void* keys;                        // [slots, H, D]
  const int64_t *slots, *skips, *records;  // [n, S], [n], [n]
  uint8_t* codes;                          // [records, H, m, S]
  void* codebooks;                         // [records, H, m, K, D / m]
  int64_t count, heads, dim, segment, subspaces, entries, cosine, iterations;
  int64_t capacity;  // most tokens of a cluster; 0: no bound
  int64_t dtype, threads, k_slot, k_head;
};

// Of whole layers. Strides x_row, ... are of rows; what is written is contiguous, in the inputs' dtype.

struct LinearArgs : Memory {
  const void *x, *weight, *bias;  // [rows, K]; [N, K]; [N] contiguous, or null
  void* out;                      // [rows, N]
  int64_t rows, inputs, outputs, dtype, threads, x_row, w_row;
};

struct NormArgs : Memory {
  const void *x, *residual, *weight;  // [rows, D]; the same, or null; [D] contiguous
  void *out, *sum;                    // [rows, D]; x + residual, where there is one
  int64_t rows, dim, dtype, threads, x_row, r_row;
  double epsilon;
};

struct GateArgs : Memory {
  const void* x;  // [rows, 2 D]: gate, then what it lets through
  void* out;      // [rows, D]
  int64_t rows, dim, dtype, threads, x_row;
};

struct RotateArgs : Memory {
  const void *q, *k, *table;  // [rows, q_heads, D]; [rows, k_heads, D]; [positions, 2 half]
  const int64_t* positions;   // [rows]
  void *q_out, *k_out;        // as q and k
  int64_t rows, q_heads, k_heads, dim, half, dtype, threads, q_row, k_row, t_row;
};
