// Scores as integers that sort like them.
#pragma once

#include "simd.h"

constexpr float kLargest = 0x1.fffffep127f;  // rank of what is not a number, and of infinity

INLINE VecF known(VecF scores) { return scores < kLargest ? scores : splat(kLargest); }

// Order-preserving map of float to int32 and back; -0 and +0 are equal.
INLINE VecI order_keys(VecF scores) {
  VecI bits = reinterpret_cast<VecI>(known(scores) + 0.0f);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

INLINE VecF score_of(int32_t key) {
  return as_float(splat_bits(static_cast<uint32_t>(key ^ ((key >> 31) & 0x7fffffff))));
}

INLINE VecI load_keys(const int32_t* p) {
  VecI x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

INLINE uint32_t any_bits(VecI x) {
  uint32_t bits = 0;
  for (int i = 0; i < LANES; ++i) bits |= static_cast<uint32_t>(x[i]);
  return bits;
}

// Keys of n scores; returns the bits in which any two of them differ.
static inline uint32_t write_keys(const float* scores, int64_t n, int32_t* keys) {
  VecI differ = {};
  uint32_t bits = 0;
  int64_t u = 0;
  for (; u + LANES <= n; u += LANES) {
    VecI x = order_keys(load(scores + u));
    __builtin_memcpy(keys + u, &x, sizeof x);
    differ |= x ^ keys[0];
  }
  for (; u < n; ++u) {
    keys[u] = order_keys(splat(scores[u]))[0];
    bits |= static_cast<uint32_t>(keys[u] ^ keys[0]);
  }
  return bits | any_bits(differ);
}

static inline int64_t count_at_least(const int32_t* keys, int64_t n, int32_t key) {
  VecI counts = {};
  int64_t u = 0, count = 0;
  for (; u + LANES <= n; u += LANES) counts -= load_keys(keys + u) >= key;
  for (int i = 0; i < LANES; ++i) count += counts[i];
  for (; u < n; ++u) count += keys[u] >= key;
  return count;
}

// Bit i is set where lane i of a comparison holds.
INLINE uint32_t lane_bits(VecI holds) {
  typedef bool Flags __attribute__((ext_vector_type(LANES)));
  Flags flags = __builtin_convertvector(holds, Flags);
  uint32_t bits = 0;
  __builtin_memcpy(&bits, &flags, (LANES + 7) / 8);
  return bits & ((1u << LANES) - 1);
}

INLINE uint32_t at_least(VecI keys, int32_t pivot) { return lane_bits(keys >= pivot); }

INLINE int32_t* bits_of(float* p) { return reinterpret_cast<int32_t*>(p); }
