// Table look-up of coded tokens where an instruction looks up a whole vector of them: AVX-512, up
// to 64 entries. Does what `Lookup` does; a table holds the entries of one query head side by side.
#pragma once

#include "lookup.h"

#if LANES != 16
constexpr int64_t kPermuted = 0;  // entries at most
#else
constexpr int64_t kPermuted = 64;

// Codes [m, S] of one KV head and tables [4, m, 16 R] to look them up in; M is m, or 0 for any.
// Packed: see Lookup; R is 1.
template <int M, int R, bool Packed = false>
struct Permuted {
  static constexpr bool kPacked = Packed;
  static constexpr int64_t kEntries = LANES * R;
  static constexpr int64_t kRun = 16 * LANES;  // tokens whose scores stay in the L1 cache
  const uint8_t* codes;
  int64_t length;     // S
  int64_t subspaces;  // m
  int64_t entries;    // 16 R

  int64_t parts() const { return M ? M : subspaces; }

  // Codes of the tokens [t, t + LANES), zeros from `count` of them on.
  static __attribute__((always_inline)) VecI codes_at(const uint8_t* from, int64_t count) {
    typedef uint8_t Bytes __attribute__((vector_size(LANES)));
    uint32_t mask = count < LANES ? (1u << count) - 1 : (1u << LANES) - 1;
    __m128i raw = _mm_maskz_loadu_epi8(static_cast<__mmask16>(mask), from);
    return __builtin_convertvector(reinterpret_cast<Bytes>(raw), VecI);
  }

  // Codes of part j of the tokens [t, t + LANES); of packed ones the low four bits count.
  __attribute__((always_inline)) VecI part(int64_t j, int64_t t, int64_t count) const {
    if constexpr (!Packed) return codes_at(codes + j * length + t, count);
    VecI both = codes_at(codes + j / 2 * length + t, count);
    return j % 2 ? both >> 4 : both;
  }

  static __attribute__((always_inline)) VecF pick(const float* table, VecI code) {
    __m512i index = reinterpret_cast<__m512i>(code);
    if constexpr (R == 1) return _mm512_permutexvar_ps(index, load(table));
    VecF low = _mm512_permutex2var_ps(load(table), index, load(table + 16));
    if constexpr (R == 2) return low;
    VecF high = _mm512_permutex2var_ps(load(table + 32), index, load(table + 48));
    return code >= 32 ? high : low;
  }

  // Heads looked up together: as many as have their tables in registers.
  static constexpr int kHeads = M > 0 && M * R <= 5 ? 4 : M > 0 && M * R <= 9 && Packed ? 2 : 1;

  // The entries of LANES tokens from t on and N heads, combined over the sub-vectors.
  template <int N, typename Combine>
  __attribute__((always_inline)) void combined(const float* tables, int64_t t, int64_t count,
                                               Combine combine, VecF (&x)[N]) const {
    for (int64_t j = 0; j < parts(); ++j) {
      VecI code = part(j, t, count);
      UNROLL for (int g = 0; g < N; ++g) {
        VecF entry = pick(tables + (g * parts() + j) * kEntries, code);
        x[g] = j == 0 ? entry : combine(x[g], entry);
      }
    }
  }

  // Calls visit(x, i) with the entries of LANES tokens and N heads, combined over the sub-vectors;
  // i counts tokens from `first` on. Lanes behind the last token are `rest`.
  template <int N, typename Combine, typename Visit>
  __attribute__((always_inline)) void each(const float* tables, int64_t first, int64_t count,
                                           float rest, Combine combine, Visit visit) const {
    VecF x[N];
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
      combined<N>(tables, first + i, LANES, combine, x);
      visit(x, i);
    }
    if (i == count) return;
    combined<N>(tables, first + i, count - i, combine, x);
    VecI there = lane_numbers() < static_cast<int32_t>(count - i);
    UNROLL for (int g = 0; g < N; ++g) x[g] = there ? x[g] : splat(rest);
    visit(x, i);
  }

  template <int N, typename Visit>
  __attribute__((always_inline)) void sums(const float* tables, int64_t first, int64_t count,
                                           Visit visit) const {
    each<N>(tables, first, count, -kInf,
            [](VecF a, VecF b) __attribute__((always_inline)) { return a + b; }, visit);
  }

  // Calls visit.template operator()<N>(g) for the heads g = 0, N, ... of a block. What pads a block
  // is looked up too, except for a single head.
  template <typename Visit>
  static __attribute__((always_inline)) void for_heads(int64_t heads, const Visit& visit) {
    if (heads == 1) return visit.template operator()<1>(0);
    for (int64_t g = 0; g < heads; g += kHeads) visit.template operator()<kHeads>(g);
  }

  // See Lookup.
  static void put(float* table, int64_t parts, int64_t, int64_t j, int64_t k,
                  const VecF (&acc)[LANES], float scale) {
    VecF dots = sum_each(acc) * scale;
    for (int g = 0; g < 4; ++g) {
      __builtin_memcpy(table + (g * parts + j) * kEntries + k,
                       reinterpret_cast<float*>(&dots) + 4 * g, 16);
    }
  }

  // See Lookup.
  static void put_part(float* table, int64_t parts, int64_t j, const VecF (&sums)[4][1]) {
    for (int g = 0; g < 4; ++g) store(table + (g * parts + j) * kEntries, sums[g][0]);
  }

  // See Lookup.
  void subtract(float* table, const float* lse) const {
    for (int g = 0; g < 4; ++g) {
      float* entry = table + g * parts() * kEntries;
      for (int i = 0; i < kEntries; i += LANES) store(entry + i, load(entry + i) - lse[g]);
    }
  }

  // See Lookup.
  Vec4 exponentiate(const float* tables, float* exps) const {
    Vec4 max = {};
    for (int64_t i = 0; i < 4 * parts(); ++i) {
      const float* from = tables + i * kEntries;
      VecF best = load(from);
      for (int k = LANES; k < kEntries; k += LANES) best = vmax(best, load(from + k));
      float top = max_lanes(best);
      for (int k = 0; k < kEntries; k += LANES) {
        store(exps + i * kEntries + k, exp2_vec((load(from + k) - top) * kLog2E));
      }
      max[i / parts()] += top;
    }
    return max;
  }

  // See Lookup.
  void mass(const float* tables, float* exps, int64_t first, int64_t count, int64_t heads,
            Vec4* max, Vec4* total) const {
    *max = exponentiate(tables, exps);
    *total = Vec4{};
    for_heads(heads, [&]<int N>(int64_t head) __attribute__((always_inline)) {
      VecF weights[N] = {};
      each<N>(exps + head * parts() * kEntries, first, count, 0,
              [](VecF a, VecF b) __attribute__((always_inline)) { return a * b; },
              [&](const VecF(&x)[N], int64_t) __attribute__((always_inline)) {
                UNROLL for (int g = 0; g < N; ++g) weights[g] += x[g];
              });
      for (int g = 0; g < N; ++g) (*total)[head + g] = sum_lanes(weights[g]);
    });
    for (int64_t g = 0; g < heads; ++g) {
      if ((*total)[g] > kVanishing) continue;
      Mass found = exact_mass(tables + g * parts() * kEntries, first, count);
      (*max)[g] = found.max;
      (*total)[g] = found.sum;
    }
  }

  Mass exact_mass(const float* table, int64_t first, int64_t count) const {
    VecF best = splat(-kInf), weights = {};
    sums<1>(table, first, count, [&](const VecF(&x)[1], int64_t) { best = vmax(best, x[0]); });
    float max = max_lanes(best);
    sums<1>(table, first, count,
            [&](const VecF(&x)[1], int64_t) { weights += exp2_vec((x[0] - max) * kLog2E); });
    return {max, sum_lanes(weights)};
  }

  template <typename Visit>
  __attribute__((always_inline)) void for_group(const float* tables, int64_t stride, int64_t group,
                                                int64_t first, int64_t count,
                                                const Visit& visit) const {
    for (int64_t block = 0; block * 4 < group; ++block) {
      int64_t heads = group - block * 4 < 4 ? group - block * 4 : 4;
      for_heads(heads, [&]<int N>(int64_t head) __attribute__((always_inline)) {
        sums<N>(tables + block * stride + head * parts() * kEntries, first, count,
                [&](const VecF(&x)[N], int64_t i)
                    __attribute__((always_inline)) { visit.template operator()<N>(x, i); });
      });
    }
  }

  // See Lookup.
  void reduce(const float* tables, int64_t stride, int64_t group, bool mean, int64_t first,
              int64_t count, float* out) const {
    for (; count > 0; first += kRun, out += kRun, count -= kRun) {
      int64_t n = count < kRun ? count : kRun;
      float best[kRun], total[kRun];
      for (int64_t i = 0; i < n; i += LANES) store(best + i, splat(-kInf));
      for (int64_t i = 0; mean && i < n; i += LANES) store(total + i, VecF{});
      for_group(tables, stride, group, first, n, [&]<int N>(const VecF(&x)[N], int64_t i) {
        VecF top = load(best + i);
        UNROLL for (int g = 0; g < N; ++g) top = vmax(x[g], top);
        store(best + i, top);
      });
      if (mean) {
        for_group(tables, stride, group, first, n, [&]<int N>(const VecF(&x)[N], int64_t i) {
          VecF sum = load(total + i);
          UNROLL for (int g = 0; g < N; ++g) sum += exp2_vec((x[g] - load(best + i)) * kLog2E);
          store(total + i, sum);
        });
      }
      for (int64_t i = 0; mean && i < n; i += LANES) {
        VecF share = log2_vec(load(total + i) / static_cast<float>(group)) * kLn2;
        store(best + i, load(best + i) + share);
      }
      __builtin_memcpy(out, best, n * sizeof(float));
    }
  }

  // See Lookup. Runs are short, so one loop does all of one, the last vector as the others.
  template <typename Combine, typename Beside>
  __attribute__((always_inline)) void put_each(const float* tables, int64_t first, int64_t count,
                                               int64_t stride, Combine combine, Vec4 base,
                                               float* out, Beside beside) const {
    for_heads(4, [&]<int N>(int64_t head) __attribute__((always_inline)) {
      const float* own = tables + head * parts() * kEntries;
      for (int64_t i = 0; i < count; i += LANES) {
        VecF x[N];
        combined<N>(own, first + i, count - i, combine, x);
        UNROLL for (int g = 0; g < N; ++g) {
          VecF sum = combine(x[g], splat(base[head + g]));
          put_first(out + (head + g) * stride + i, sum, count - i);
        }
        if (head == 0) beside(i, count - i);
      }
    });
  }

  // See Lookup.
  void copy(const float* share, int64_t first, int64_t count, float* out) const {
    float table[kEntries];
    __builtin_memcpy(table, share, sizeof table);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
      store(out + i, pick(table, codes_at(codes + first + i, LANES)));
    }
    for (; i < count; ++i) out[i] = table[codes[first + i]];
  }
};
#endif
