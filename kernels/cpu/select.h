// The best candidates of each (row, KV head), with sinks and window, in ascending order.
#pragma once

#include "args.h"
#include "order.h"
#include "parallel.h"

namespace {

// A key that at least `wanted` of n keys reach, and no larger one unless exactly `wanted` reach it:
// found bit by bit below the bits that all keys share; 0 < wanted <= n. `reached` becomes the
// number of keys that reach it.
inline int32_t key_of_best(const int32_t* keys, int64_t n, uint32_t differ, int64_t wanted,
                  int64_t* reached) {
  constexpr uint32_t kSign = 0x80000000u;  // flipped while searching, so that order is unsigned
  int width = differ ? 32 - __builtin_clz(differ) : 0;
  uint32_t low = width == 32 ? ~0u : (1u << width) - 1;
  uint32_t key = (static_cast<uint32_t>(keys[0]) ^ kSign) & ~low;
  *reached = n;
  for (uint32_t bit = width ? 1u << (width - 1) : 0; bit != 0 && *reached != wanted; bit >>= 1) {
    int64_t count = count_at_least(keys, n, static_cast<int32_t>((key | bit) ^ kSign));
    if (count >= wanted) {
      key |= bit;
      *reached = count;
    }
  }
  return static_cast<int32_t>(key ^ kSign);
}

// Of n scores those that can be among the best `wanted`: writes their keys and, ascending, their
// places; returns how many. Maxima of `share` scores each are counted first: where `wanted` of them
// reach a key, so many scores do, and those below it cannot be wanted.
inline int64_t sieve(const float* scores, int64_t n, int64_t share, int64_t wanted, int32_t* keys,
              int32_t* places, uint32_t* differ) {
  int64_t maxima = n / (share * LANES) * LANES, reached, kept = 0, u = 0;
  VecI varied = {};
  for (int64_t i = 0; i < maxima; i += LANES) {
    const float* from = scores + i * share;
    VecF best = known(load(from));
    for (int64_t j = 1; j < share; ++j) best = vmax(known(load(from + j * LANES)), best);
    VecI key = order_keys(best);
    __builtin_memcpy(keys + i, &key, sizeof key);
    varied |= key ^ keys[0];
  }
  int32_t key = key_of_best(keys, maxima, any_bits(varied), wanted, &reached);
  int32_t lowest = order_keys(splat(-kInf))[0];  // keys below stand for no score
  VecF least = score_of(key > lowest ? key : lowest);
  for (; u + LANES <= n; u += LANES) {
    VecF x = known(load(scores + u));
    uint32_t which = lane_bits(x >= least);
    put_lanes(keys + kept, order_keys(x), which);
    put_lanes(places + kept, lane_numbers() + static_cast<int32_t>(u), which);
    kept += __builtin_popcount(which);
  }
  for (; u < n; ++u) {
    keys[kept] = order_keys(splat(scores[u]))[0];
    places[kept] = static_cast<int32_t>(u);
    kept += keys[kept] >= key;
  }
  uint32_t bits = 0;
  for (int64_t i = 0; i < kept; ++i) bits |= static_cast<uint32_t>(keys[i] ^ keys[0]);
  *differ = bits;
  return kept;
}

// Appends `wanted` units of [begin, end) to `to`, the best ones, lower units first among equals.
// Every unit is written to the next place, and stays if it is counted: no branch to mispredict.
inline int64_t take_best(const float* scores, int64_t begin, int64_t end, int64_t wanted, int32_t* keys,
                  int32_t* places, int32_t* to) {
  int64_t n = end - begin, reached;
  if (wanted > n) wanted = n;
  if (wanted <= 0) return 0;
  int64_t share = n / (4 * wanted) < 16 ? n / (4 * wanted) : 16;
  bool sieved = share >= 2 && n / (share * LANES) * LANES >= wanted;
  uint32_t differ;
  if (sieved) {
    n = sieve(scores + begin, n, share, wanted, keys, places, &differ);
  } else {
    differ = write_keys(scores + begin, n, keys);
  }
  int32_t key = key_of_best(keys, n, differ, wanted, &reached);
  int64_t surplus = reached - wanted;  // all of it equals the key
  int64_t equal_left = n;
  if (surplus > 0) {
    equal_left = -surplus;
    for (int64_t u = 0; u < n; ++u) equal_left += keys[u] == key;
  }
  int64_t taken = 0;
  for (int64_t u = 0; taken < wanted; ++u) {
    bool equal = keys[u] == key;
    to[taken] = static_cast<int32_t>(begin + (sieved ? places[u] : u));
    taken += (keys[u] > key) | (equal & (equal_left > 0));
    equal_left -= equal;
  }
  return taken;
}

inline void select_head(const SelectArgs& a, int64_t row, int64_t head) {
  const float* scores = a.scores + (row * a.heads + head) * a.width;
  const int32_t* table = a.table + row * a.t_row;
  int32_t* logical = a.logical + (row * a.heads + head) * a.n;
  int32_t* physical = a.physical + (row * a.heads + head) * a.n;
  int64_t total = a.num_units[row], wanted = a.counts[row * a.c_row + head * a.c_head];
  int64_t sinks = a.begin[row] < total ? a.begin[row] : total;
  int64_t window = a.end[row] > sinks ? a.end[row] : sinks;
  if (window > total) window = total;
  int64_t n = 0;
  for (int64_t u = 0; u < sinks && n < wanted; ++u) logical[n++] = static_cast<int32_t>(u);
  int32_t* keys = bits_of(a.scratch) + (row * a.heads + head) * 2 * a.width;
  n += take_best(scores, sinks, window, wanted - sinks - (total - window), keys, keys + a.width,
                 logical + n);
  for (int64_t u = window; u < total && n < wanted; ++u) logical[n++] = static_cast<int32_t>(u);
  for (int64_t i = 0; i < n; ++i) physical[i] = table[logical[i]];
  for (int64_t i = n; i < a.n; ++i) {
    logical[i] = -1;
    physical[i] = 0;
  }
}

inline void select_all(const SelectArgs& a) {
  parallel_for(a.rows * a.heads, a.threads,
               [&](int64_t i, int64_t) { select_head(a, i / a.heads, i % a.heads); });
}

}  // namespace
