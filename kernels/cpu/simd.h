// Vector types, element types and the few math functions the kernels need.
// The only file that knows the vector width; everything else counts in LANES.
#pragma once

#include <stdint.h>
#if defined(__AVX512F__)
#define __MM_MALLOC_H  // the one part of immintrin.h that needs a C library
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")

typedef float VecF __attribute__((vector_size(LANES * 4)));
typedef int32_t VecI __attribute__((vector_size(LANES * 4)));
typedef uint32_t VecU __attribute__((vector_size(LANES * 4)));
typedef uint16_t VecH __attribute__((vector_size(LANES * 2)));

constexpr float kInf = __builtin_inff();
constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

enum DType : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Calls visit.template operator()<T>() with the element type.
template <typename Visit>
INLINE void for_dtype(int64_t dtype, const Visit& visit) {
  switch (dtype) {
    case kBFloat16: return visit.template operator()<BF16>();
    case kFloat16: return visit.template operator()<F16>();
    default: return visit.template operator()<float>();
  }
}

INLINE VecF splat(float x) { return x - VecF{}; }  // x - 0 keeps the sign of a zero
INLINE VecU splat_bits(uint32_t x) { return x | VecU{}; }
INLINE VecF as_float(VecU x) { return reinterpret_cast<VecF>(x); }
INLINE VecU as_bits(VecF x) { return reinterpret_cast<VecU>(x); }

// ---- conversions; rounding is to nearest even ----

INLINE VecF widen(VecH raw, const BF16*) {
  return as_float(__builtin_convertvector(raw, VecU) << 16);
}

INLINE VecH narrow(VecF x, const BF16*) {
  VecU bits = as_bits(x);
  VecU rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = x == x ? rounded : (bits >> 16) | 0x40;
  return __builtin_convertvector(rounded, VecH);
}

#if defined(__F16C__) || defined(__aarch64__)
typedef _Float16 VecHalf __attribute__((vector_size(LANES * 2)));

INLINE VecF widen(VecH raw, const F16*) {
  return __builtin_convertvector(reinterpret_cast<VecHalf>(raw), VecF);
}

INLINE VecH narrow(VecF x, const F16*) {
  return reinterpret_cast<VecH>(__builtin_convertvector(x, VecHalf));
}
#else
INLINE VecF widen(VecH raw, const F16*) {
  VecU bits = __builtin_convertvector(raw, VecU);
  VecU magnitude = (bits & 0x7fff) << 13;
  VecU scaled = as_bits(as_float(magnitude) * 0x1p112f);  // exact, subnormals included
  VecU special = (VecU)((bits & 0x7c00) == 0x7c00);
  return as_float(scaled | (special & 0x7f800000) | ((bits & 0x8000) << 16));
}

INLINE VecH narrow(VecF x, const F16*) {
  VecU bits = as_bits(x), sign = bits & 0x80000000;
  VecU magnitude = bits ^ sign;
  VecU normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  VecU subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000;
  VecU overflow = magnitude > 0x7f800000 ? splat_bits(0x7e00) : splat_bits(0x7c00);
  VecU half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x47800000 ? overflow : half;
  return __builtin_convertvector(half | (sign >> 16), VecH);
}
#endif

// ---- loads and stores of LANES elements, or of the first n of them ----

template <typename T>
INLINE VecF load(const T* p) {
  VecH raw;
  __builtin_memcpy(&raw, p, sizeof raw);
  return widen(raw, p);
}

template <>
inline __attribute__((always_inline)) VecF load<float>(const float* p) {
  VecF x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

template <typename T>
INLINE void store(T* p, VecF x) {
  VecH raw = narrow(x, p);
  __builtin_memcpy(p, &raw, sizeof raw);
}

template <>
inline __attribute__((always_inline)) void store<float>(float* p, VecF x) {
  __builtin_memcpy(p, &x, sizeof x);
}

template <typename T>
INLINE VecF load_first(const T* p, int n) {
  T buffer[LANES] = {};
  __builtin_memcpy(buffer, p, n * sizeof(T));
  return load(buffer);
}

template <typename T>
INLINE void store_first(T* p, VecF x, int n) {
  T buffer[LANES];
  store(buffer, x);
  __builtin_memcpy(p, buffer, n * sizeof(T));
}

template <typename T>
INLINE void prefetch_row(const T* row, int64_t length) {
  const char* p = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < length * (int64_t)sizeof(T); byte += 64) {
    __builtin_prefetch(p + byte, 0, 2);
  }
}

// ---- reductions in a fixed order ----

INLINE float sum_lanes(VecF x) {
  float lane[LANES];
  __builtin_memcpy(lane, &x, sizeof x);
  for (int width = LANES / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

INLINE float max_lanes(VecF x) {
  float lane[LANES];
  __builtin_memcpy(lane, &x, sizeof x);
  for (int width = LANES / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  }
  return lane[0];
}

INLINE VecI lane_numbers() {
  VecI x;
  for (int i = 0; i < LANES; ++i) x[i] = i;
  return x;
}

// Writes the lanes whose bits are set side by side; up to LANES elements may be written.
INLINE void put_lanes(int32_t* p, VecI x, uint32_t bits) {
#if defined(__AVX512F__)
  __m512i packed = _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), (__m512i)x);
  __builtin_memcpy(p, &packed, sizeof packed);
#else
  for (; bits; bits &= bits - 1) *p++ = x[__builtin_ctz(bits)];
#endif
}

// Writes the first `count` lanes, or all if there are fewer.
INLINE void put_first(float* p, VecF x, int64_t count) {
#if defined(__AVX512F__)
  __mmask16 mask = static_cast<__mmask16>(count < LANES ? (1u << count) - 1 : 0xffff);
  _mm512_mask_storeu_ps(p, mask, (__m512)x);
#else
  __builtin_memcpy(p, &x, (count < LANES ? count : LANES) * sizeof(float));
#endif
}

INLINE void put_first(int32_t* p, VecI x, int64_t count) {
  put_first(reinterpret_cast<float*>(p), reinterpret_cast<VecF>(x), count);
}

// The first `count` numbers from p on, or as many as there are lanes.
INLINE VecI load_first(const int16_t* p, int64_t count) {
#if defined(__AVX512VL__)
  typedef int16_t Shorts __attribute__((vector_size(LANES * 2)));
  __mmask16 mask = static_cast<__mmask16>(count < LANES ? (1u << count) - 1 : 0xffff);
  __m256i raw = _mm256_maskz_loadu_epi16(mask, p);
  return __builtin_convertvector(reinterpret_cast<Shorts>(raw), VecI);
#else
  VecI x = {};
  for (int64_t i = 0; i < (count < LANES ? count : LANES); ++i) x[i] = p[i];
  return x;
#endif
}

INLINE VecF vmax(VecF a, VecF b) { return a > b ? a : b; }

// Lane i of the result is the sum over the lanes of x[i]: a transpose that adds as it goes.
INLINE VecF sum_each(const VecF (&x)[LANES]) {
#if LANES == 4
  VecF a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5) +
           __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
  VecF b = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5) +
           __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
  return __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
#elif LANES == 8
  VecF quad[2];
  UNROLL for (int i = 0; i < 2; ++i) {
    const VecF *p = x + 4 * i;
    VecF a = __builtin_shufflevector(p[0], p[1], 0, 8, 1, 9, 4, 12, 5, 13) +
             __builtin_shufflevector(p[0], p[1], 2, 10, 3, 11, 6, 14, 7, 15);
    VecF b = __builtin_shufflevector(p[2], p[3], 0, 8, 1, 9, 4, 12, 5, 13) +
             __builtin_shufflevector(p[2], p[3], 2, 10, 3, 11, 6, 14, 7, 15);
    quad[i] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
              __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  return __builtin_shufflevector(quad[0], quad[1], 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(quad[0], quad[1], 4, 5, 6, 7, 12, 13, 14, 15);
#else
  VecF quad[4], pair[2];
  UNROLL for (int i = 0; i < 4; ++i) {
    const VecF *p = x + 4 * i;
    VecF a = __builtin_shufflevector(p[0], p[1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28,
                                     13, 29) +
             __builtin_shufflevector(p[0], p[1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14,
                                     30, 15, 31);
    VecF b = __builtin_shufflevector(p[2], p[3], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28,
                                     13, 29) +
             __builtin_shufflevector(p[2], p[3], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14,
                                     30, 15, 31);
    quad[i] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28,
                                      29) +
              __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15,
                                      30, 31);
  }
  UNROLL for (int i = 0; i < 2; ++i) {
    pair[i] = __builtin_shufflevector(quad[2 * i], quad[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17,
                                      18, 19, 20, 21, 22, 23) +
              __builtin_shufflevector(quad[2 * i], quad[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15,
                                      24, 25, 26, 27, 28, 29, 30, 31);
  }
  return __builtin_shufflevector(pair[0], pair[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24,
                                 25, 26, 27) +
         __builtin_shufflevector(pair[0], pair[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28,
                                 29, 30, 31);
#endif
}

// ---- exp2 and log2, relative error below 2e-7 ----

INLINE VecF exp2_fraction(VecF f) {  // Taylor of 2^f on [-0.5, 0.5], in powers of ln 2
  VecF p = splat(1.5403530e-4f);
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  return p * f + 1.0f;
}

#if defined(__AVX512DQ__)
INLINE VecF exp2_vec(VecF x) {  // infinities and NaN give what they should
  __m512 whole = _mm512_roundscale_ps((__m512)x, 0), f = _mm512_reduce_ps((__m512)x, 0);
  return (VecF)_mm512_scalef_ps((__m512)exp2_fraction((VecF)f), whole);
}
#else
INLINE VecF exp2_vec(VecF x) {
  const VecF magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  x = x < -127.0f ? splat(-127.0f) : x;   // 2^-127 becomes 0 below; NaN passes
  x = x > 127.0f ? splat(127.0f) : x;
  VecF shifted = x + magic;
  VecU exponent = (as_bits(shifted) - 0x4b400000u + 127) << 23;
  return exp2_fraction(x - (shifted - magic)) * as_float(exponent);
}
#endif

INLINE VecF log2_vec(VecF x) {  // x positive and normal
  VecU bits = as_bits(x);
  VecU offset = (bits - 0x3f3504f3u);  // mantissa into [sqrt(1/2), sqrt(2))
  VecI e = reinterpret_cast<VecI>(offset) >> 23;
  VecF m = as_float(bits - (reinterpret_cast<VecU>(e) << 23));
  VecF t = (m - 1.0f) / (m + 1.0f), s = t * t;  // ln m = 2 atanh t
  VecF p = splat(2.0f / 9);
  p = p * s + 2.0f / 7;
  p = p * s + 2.0f / 5;
  p = p * s + 2.0f / 3;
  p = p * s * t + 2.0f * t;
  return __builtin_convertvector(e, VecF) + p * kLog2E;
}

INLINE float exp2_one(float x) { return exp2_vec(splat(x))[0]; }
INLINE float log2_one(float x) { return log2_vec(splat(x))[0]; }
