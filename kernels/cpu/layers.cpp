// What stands between the matrices of a layer: norms, gates and rotary embeddings.
//
// They round where the steps of torch do, to the dtype of the layer.

#include "args.h"
#include "parallel.h"
#include "simd.h"

namespace {

constexpr int64_t kAlone = 1 << 14;  // elements that one thread handles sooner than two begin

// Calls visit(row) for every row; few elements are not worth a second thread.
template <typename Visit>
INLINE void for_rows(int64_t rows, int64_t elements, int64_t threads, const Visit& visit) {
  int64_t run = elements < kAlone ? kAlone / elements : 1;
  parallel_for((rows + run - 1) / run, threads, [&](int64_t task, int64_t) {
    int64_t end = (task + 1) * run < rows ? (task + 1) * run : rows;
    for (int64_t row = task * run; row < end; ++row) visit(row);
  });
}

// Calls visit(i, n) for vectors of n elements from i on: LANES of them, and fewer at the end.
template <typename Visit>
INLINE void for_vectors(int64_t dim, const Visit& visit) {
  int64_t i = 0;
  for (; i + LANES <= dim; i += LANES) visit(i, LANES);
  if (i < dim) visit(i, static_cast<int>(dim - i));
}

template <typename T>
INLINE VecF take(const T* p, int n) {
  return n == LANES ? load(p) : load_first(p, n);
}

template <typename T>
INLINE void put(T* p, VecF x, int n) {
  if (n == LANES) {
    store(p, x);
  } else {
    store_first(p, x, n);
  }
}

template <typename T>
INLINE VecF rounded(VecF x) {
  T one[LANES];
  store(one, x);
  return load(one);
}

// x + residual, not rounded.
template <typename T>
INLINE VecF sum_of(const T* x, const T* residual, int64_t i, int n) {
  VecF sum = take(x + i, n);
  return residual ? sum + take(residual + i, n) : sum;
}

template <typename T>
void norm_row(const NormArgs& a, int64_t row) {
  const T *x = static_cast<const T*>(a.x) + row * a.x_row, *residual = nullptr;
  if (a.residual) residual = static_cast<const T*>(a.residual) + row * a.r_row;
  VecF squares = {};
  for_vectors(a.dim, [&](int64_t i, int n) {
    VecF sum = sum_of(x, residual, i, n);
    if (residual) put(static_cast<T*>(a.sum) + row * a.dim + i, sum, n);
    squares += sum * sum;
  });
  float mean = sum_lanes(squares) / static_cast<float>(a.dim);
  float factor = 1 / __builtin_elementwise_sqrt(mean + static_cast<float>(a.epsilon));
  for_vectors(a.dim, [&](int64_t i, int n) {
    VecF y = sum_of(x, residual, i, n) * factor * take(static_cast<const T*>(a.weight) + i, n);
    put(static_cast<T*>(a.out) + row * a.dim + i, y, n);
  });
}

template <typename T>
void gate_row(const GateArgs& a, int64_t row) {
  const T *gate = static_cast<const T*>(a.x) + row * a.x_row, *up = gate + a.dim;
  for_vectors(a.dim, [&](int64_t i, int n) {
    VecF g = take(gate + i, n);
    VecF open = rounded<T>(g / (1.0f + exp2_vec(g * -kLog2E)));
    put(static_cast<T*>(a.out) + row * a.dim + i, open * take(up + i, n), n);
  });
}

// One head: each pair (i, i + half) turns by the angle of its cosine and sine.
template <typename T>
INLINE void rotate_head(const RotateArgs& a, const T* x, T* out, const T* cosines) {
  const T* sines = cosines + a.half;
  for_vectors(a.half, [&](int64_t i, int n) {
    VecF cosine = take(cosines + i, n), sine = take(sines + i, n);
    VecF one = take(x + i, n), two = take(x + a.half + i, n);
    put(out + i, rounded<T>(one * cosine) - rounded<T>(two * sine), n);
    put(out + a.half + i, rounded<T>(two * cosine) + rounded<T>(one * sine), n);
  });
  for (int64_t i = 2 * a.half; i < a.dim; ++i) out[i] = x[i];
}

template <typename T>
void rotate_row(const RotateArgs& a, int64_t row) {
  const T* cosines = static_cast<const T*>(a.table) + a.positions[row] * a.t_row;
  const T *q = static_cast<const T*>(a.q) + row * a.q_row, *k = static_cast<const T*>(a.k);
  T* q_out = static_cast<T*>(a.q_out) + row * a.q_heads * a.dim;
  T* k_out = static_cast<T*>(a.k_out) + row * a.k_heads * a.dim;
  k += row * a.k_row;
  for (int64_t h = 0; h < a.q_heads; ++h) {
    rotate_head(a, q + h * a.dim, q_out + h * a.dim, cosines);
  }
  for (int64_t h = 0; h < a.k_heads; ++h) {
    rotate_head(a, k + h * a.dim, k_out + h * a.dim, cosines);
  }
}

}  // namespace

extern "C" int64_t norm(const NormArgs* a) {
  for_dtype(a->dtype, [&]<typename T>() {
    for_rows(a->rows, a->dim, a->threads, [&](int64_t row) { norm_row<T>(*a, row); });
  });
  return 0;
}

extern "C" int64_t gate(const GateArgs* a) {
  for_dtype(a->dtype, [&]<typename T>() {
    for_rows(a->rows, a->dim, a->threads, [&](int64_t row) { gate_row<T>(*a, row); });
  });
  return 0;
}

extern "C" int64_t rotate(const RotateArgs* a) {
  int64_t elements = (a->q_heads + a->k_heads) * a->dim;
  for_dtype(a->dtype, [&]<typename T>() {
    for_rows(a->rows, elements, a->threads, [&](int64_t row) { rotate_row<T>(*a, row); });
  });
  return 0;
}
