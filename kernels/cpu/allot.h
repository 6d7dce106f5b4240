// How many units each (row, KV head) reads: down to its lowest score, and of a pool that the KV heads
// of a row share.
#pragma once

#include "args.h"
#include "order.h"
#include "parallel.h"

namespace {

inline int64_t pool_floats(const AllotArgs& a) { return a.rows * a.heads * a.width; }

// The candidates [begin, end) of a row and what it reads besides.
struct Row {
  int64_t begin, end, always, room;
};

inline Row row_of(const AllotArgs& a, int64_t row) {
  int64_t total = a.num_units[row], begin = a.begin[row] < total ? a.begin[row] : total;
  int64_t end = a.end[row] > begin ? a.end[row] : begin;
  if (end > total) end = total;
  int64_t always = total - (end - begin), room = a.counts[row] - always;
  if (room > end - begin) room = end - begin;
  return {begin, end, always, room > 0 ? room : 0};
}

// Scores that are at least `lowest`.
inline int64_t count_from(const float* scores, int64_t n, float lowest) {
  VecI counts = {};
  int64_t u = 0, found = 0;
  for (; u + LANES <= n; u += LANES) {
    VecF score;
    __builtin_memcpy(&score, scores + u, sizeof(score));
    counts -= score >= splat(lowest);
  }
  for (int i = 0; i < LANES; ++i) found += counts[i];
  for (; u < n; ++u) found += scores[u] >= lowest;
  return found;
}

// What each KV head may read of the pool heads * room: at least `least`, then the largest shares of
// all heads. Equal shares go to the lower head.
inline void pool(const AllotArgs& a, const Row& r, int64_t row, int32_t* rooms) {
  constexpr uint32_t kSign = 0x80000000u;
  int64_t n = r.end - r.begin, total = r.room * a.heads;
  int64_t least = static_cast<int64_t>(static_cast<double>(r.room) * a.least);
  auto keys_of = [&](int64_t head) { return bits_of(a.scratch) + (row * a.heads + head) * a.width; };
  for (int64_t h = 0; h < a.heads; ++h) {
    write_keys(a.scores + (row * a.heads + h) * a.width + r.begin, n, keys_of(h));
  }
  auto give = [&](int32_t key) {  // rooms by a least key; their sum
    int64_t sum = 0;
    for (int64_t h = 0; h < a.heads; ++h) {
      int64_t count = count_at_least(keys_of(h), n, key);
      rooms[h] = static_cast<int32_t>(count > least ? count : least);
      sum += rooms[h];
    }
    return sum;
  };
  uint32_t key = 0;
  for (uint32_t bit = kSign; bit != 0; bit >>= 1) {
    if (give(static_cast<int32_t>((key | bit) ^ kSign)) >= total) key |= bit;
  }
  int64_t missing = total;
  if (key != ~0u) {
    missing -= give(static_cast<int32_t>((key + 1) ^ kSign));
  } else {
    for (int64_t h = 0; h < a.heads; ++h) rooms[h] = static_cast<int32_t>(least);
    missing -= least * a.heads;
  }
  for (int64_t h = 0; h < a.heads && missing > 0; ++h) {  // units that have the key itself
    int64_t count = count_at_least(keys_of(h), n, static_cast<int32_t>(key ^ kSign));
    int64_t more = count - rooms[h] < missing ? count - rooms[h] : missing;
    if (more <= 0) continue;
    rooms[h] += static_cast<int32_t>(more);
    missing -= more;
  }
}

// What the KV heads of the rows read.
inline void allot_all(const AllotArgs& a) {
  parallel_for(a.rows, a.threads, [&](int64_t row, int64_t) {
    Row r = row_of(a, row);
    int32_t* out = a.out + row * a.heads;
    for (int64_t h = 0; h < a.heads; ++h) out[h] = static_cast<int32_t>(r.room);
    if (a.pooled[row] && r.room < r.end - r.begin) pool(a, r, row, out);
  });
  parallel_for(a.rows * a.heads, a.threads, [&](int64_t i, int64_t) {
    Row r = row_of(a, i / a.heads);
    int64_t room = a.out[i];
    const float* scores = a.scores + i * a.width + r.begin;
    int64_t wanted = count_from(scores, r.end - r.begin, a.lowest[i]);
    if (wanted < room) room = wanted;
    a.out[i] = static_cast<int32_t>(r.always + room);
  });
}

}  // namespace
