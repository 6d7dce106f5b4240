// A few rows times a weight matrix, as it lies in the checkpoint: its bytes are all that counts.
//
// A task is a run of the matrix, which one thread reads from its first row to its last. Every sum
// is taken in the order of the inputs, lane by lane, however many rows there are: a row gives the
// same bits alone and in any batch.

#include "args.h"
#include "dot.h"
#include "parallel.h"

namespace {

constexpr int64_t kTasks = 8;  // of a thread, so that none waits long for another
constexpr int64_t kRun = 512;  // most outputs of a task

template <typename T>
Query<T>* rows_of(const LinearArgs& a) {
  return reinterpret_cast<Query<T>*>(a.scratch);
}

// G rows from `row` on times LANES rows of the matrix from `first` on.
template <typename T, int G>
INLINE void multiply(const LinearArgs& a, int64_t row, int64_t first) {
  constexpr int kRows = LANES / G;
  const T* weight = static_cast<const T*>(a.weight);
  const Query<T>* x = rows_of<T>(a) + row * padded(a.inputs);
  int64_t count = a.outputs - first < LANES ? a.outputs - first : LANES;
  VecF sums[G][LANES];
  for (int some = 0; some < LANES; some += kRows) {
    const T* lines[kRows];
    for (int j = 0; j < kRows; ++j) {  // behind the last one, it repeats
      int64_t line = first + (some + j < count ? some + j : count - 1);
      lines[j] = weight + line * a.w_row;
    }
    VecF acc[LANES] = {};
    // The next lines. What the first rows have fetched lies in a cache for the others.
    int64_t ahead = row ? 0 : LANES * a.w_row * static_cast<int64_t>(sizeof(T));
    dot_rows<T, G>(acc, x, padded(a.inputs), lines, a.inputs, ahead);
    UNROLL for (int g = 0; g < G; ++g) {
      UNROLL for (int j = 0; j < kRows; ++j) sums[g][some + j] = acc[g * kRows + j];
    }
  }
  VecF bias = {};
  if (a.bias) bias = load_at_most(static_cast<const T*>(a.bias) + first, count);
  for (int g = 0; g < G; ++g) {
    T* out = static_cast<T*>(a.out) + (row + g) * a.outputs + first;
    VecF y = sum_each(sums[g]) + bias;
    if (count == LANES) {
      store(out, y);
    } else {
      store_first(out, y, static_cast<int>(count));
    }
  }
}

template <typename T>
void linear(const LinearArgs& a) {
  copy_queries<T>(rows_of<T>(a), static_cast<const T*>(a.x), a.rows, a.x_row, a.inputs);
  int64_t run = a.outputs / (kTasks * a.threads) / LANES * LANES;
  run = run < LANES ? LANES : run > kRun ? kRun : run;
  parallel_for((a.outputs + run - 1) / run, a.threads, [&](int64_t task, int64_t) {
    int64_t end = (task + 1) * run < a.outputs ? (task + 1) * run : a.outputs;
    for (int64_t first = task * run; first < end; first += LANES) {
      for_query_blocks(a.rows, [&]<int G>(int64_t row) { multiply<T, G>(a, row, first); });
    }
  });
}

}  // namespace

extern "C" int64_t linear(const LinearArgs* a) {
  int64_t needed = a->rows * padded(a->inputs);
  if (needed > a->scratch_size) return needed;
  for_dtype(a->dtype, [&]<typename T>() { linear<T>(*a); });
  return 0;
}
