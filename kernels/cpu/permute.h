// Table look-up of coded tokens where an instruction looks up a whole vector of them: AVX-512, up
// to 64 entries. Does what `Lookup` does; a table holds the entries of one query head side by side.
#pragma once

#include "lookup.h"

#if LANES != 16
constexpr int64_t kPermuted = 0;  // entries at most
#else
constexpr int64_t kPermuted = 64;

// Codes [m, S] of one KV head and tables [4, m, 16 R] to look them up in; M is m, or 0 for any.
template <int M, int R>
struct Permuted {
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
    Bytes raw = {};
    __builtin_memcpy(&raw, from, count < LANES ? count : LANES);
    return __builtin_convertvector(raw, VecI);
  }

  static __attribute__((always_inline)) VecF pick(const float* table, VecI code) {
    __m512i index = reinterpret_cast<__m512i>(code);
    if constexpr (R == 1) return _mm512_permutexvar_ps(index, load(table));
    VecF low = _mm512_permutex2var_ps(load(table), index, load(table + 16));
    if constexpr (R == 2) return low;
    VecF high = _mm512_permutex2var_ps(load(table + 32), index, load(table + 48));
    return code >= 32 ? high : low;
  }

  // Calls visit(x, i) with the entries of LANES tokens combined over the sub-vectors, i counting
  // tokens from `first` on; the last x is `rest` behind the last token.
  template <typename Combine, typename Visit>
  __attribute__((always_inline)) void each(const float* table, int64_t first, int64_t count,
                                           float rest, Combine combine, Visit visit) const {
    auto at = [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      VecF x = pick(table, codes_at(codes + first + i, n));
      for (int64_t j = 1; j < parts(); ++j) {
        x = combine(x, pick(table + j * kEntries, codes_at(codes + j * length + first + i, n)));
      }
      return x;
    };
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) visit(at(i, LANES), i);
    if (i == count) return;
    VecF x = at(i, count - i);
    for (int64_t lane = count - i; lane < LANES; ++lane) x[lane] = rest;
    visit(x, i);
  }

  template <typename Visit>
  __attribute__((always_inline)) void sums(const float* table, int64_t first, int64_t count,
                                           Visit visit) const {
    each(table, first, count, -kInf,
         [](VecF a, VecF b) __attribute__((always_inline)) { return a + b; }, visit);
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
  void subtract(float* table, const float* lse) const {
    for (int g = 0; g < 4; ++g) {
      float* entry = table + g * parts() * kEntries;
      for (int i = 0; i < kEntries; i += LANES) store(entry + i, load(entry + i) - lse[g]);
    }
  }

  // See Lookup.
  void mass(const float* tables, float* exps, int64_t first, int64_t count, int64_t heads,
            Vec4* max, Vec4* total) const {
    *max = *total = Vec4{};
    for (int64_t g = 0; g < heads; ++g) {
      const float* table = tables + g * parts() * kEntries;
      Mass found = {0, 0};
      for (int64_t j = 0; j < parts(); ++j) {
        const float* from = table + j * kEntries;
        VecF best = load(from);
        for (int i = LANES; i < kEntries; i += LANES) best = vmax(best, load(from + i));
        float top = max_lanes(best);
        for (int i = 0; i < kEntries; i += LANES) {
          store(exps + j * kEntries + i, exp2_vec((load(from + i) - top) * kLog2E));
        }
        found.max += top;
      }
      VecF weights = {};
      each(exps, first, count, 0,
           [](VecF a, VecF b) __attribute__((always_inline)) { return a * b; },
           [&](VecF x, int64_t) __attribute__((always_inline)) { weights += x; });
      found.sum = sum_lanes(weights);
      if (!(found.sum > kVanishing)) found = exact_mass(table, first, count);
      (*max)[g] = found.max;
      (*total)[g] = found.sum;
    }
  }

  Mass exact_mass(const float* table, int64_t first, int64_t count) const {
    VecF best = splat(-kInf), weights = {};
    sums(table, first, count, [&](VecF x, int64_t) { best = vmax(best, x); });
    float max = max_lanes(best);
    sums(table, first, count, [&](VecF x, int64_t) { weights += exp2_vec((x - max) * kLog2E); });
    return {max, sum_lanes(weights)};
  }

  // See Lookup.
  void reduce(const float* tables, int64_t stride, int64_t group, bool mean, int64_t first,
              int64_t count, float* out) const {
    for (; count > 0; first += kRun, out += kRun, count -= kRun) {
      int64_t n = count < kRun ? count : kRun;
      float best[kRun], total[kRun];
      auto table = [&](int64_t g) { return tables + g / 4 * stride + g % 4 * parts() * kEntries; };
      sums(tables, first, n, [&](VecF x, int64_t i) { store(best + i, x); });
      for (int64_t g = 1; g < group; ++g) {
        sums(table(g), first, n,
             [&](VecF x, int64_t i) { store(best + i, vmax(x, load(best + i))); });
      }
      for (int64_t i = 0; mean && i < n; i += LANES) store(total + i, VecF{});
      for (int64_t g = 0; mean && g < group; ++g) {
        sums(table(g), first, n, [&](VecF x, int64_t i) {
          store(total + i, load(total + i) + exp2_vec((x - load(best + i)) * kLog2E));
        });
      }
      for (int64_t i = 0; mean && i < n; i += LANES) {
        VecF share = log2_vec(load(total + i) / static_cast<float>(group)) * kLn2;
        store(best + i, load(best + i) + share);
      }
      __builtin_memcpy(out, best, n * sizeof(float));
    }
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
