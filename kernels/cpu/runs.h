// Rows of a batch that begin alike, one behind the other: what they have in common is read once.
// Found by comparing what they list, so nobody has to know, and nothing can be told wrongly.
#pragma once

#include "simd.h"

// `rows` rows from `row` on, which have the whole block `block` of their lists number `list` in common.
struct Run {
  int32_t row, rows, block, list;
};

// How many leading entries two lists of `count` have in common.
INLINE int64_t in_common(const int32_t* one, const int32_t* other, int64_t count) {
  constexpr int64_t kStep = 64;
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    int32_t differs = 0;
    for (int64_t j = 0; j < kStep; ++j) differs |= one[i + j] ^ other[i + j];
    if (differs) break;
  }
  while (i < count && one[i] == other[i]) ++i;
  return i;
}

// The runs of the first `blocks` blocks of `rows` rows, block by block. has(row, block): whether a row
// takes part in a block; whole(row): how many whole blocks it has in common with the row before it.
// A run ends early where that leaves each of `threads` threads several. At most rows x blocks are
// written; returns their number.
template <typename Has, typename Whole>
INLINE int64_t find_runs(Run* runs, int64_t rows, int64_t blocks, int64_t list, int64_t threads,
                         const Has& has, const Whole& whole) {
  constexpr int64_t kEach = 8;
  int64_t most = rows * blocks / (threads * kEach) + 1, count = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    Run* run = nullptr;
    for (int64_t r = 0; r < rows; ++r) {
      if (!has(r, b)) {
        run = nullptr;
      } else if (run && run->rows < most && whole(r) > b) {
        ++run->rows;
      } else {
        run = runs + count++;
        *run = {static_cast<int32_t>(r), 1, static_cast<int32_t>(b), static_cast<int32_t>(list)};
      }
    }
  }
  return count;
}
