// The best candidates of each (row, KV head), with sinks and window, in ascending order.

#include "args.h"
#include "parallel.h"
#include "simd.h"

namespace {

// Order-preserving map of float to int32; -0 and +0 are equal.
INLINE int32_t order_key(float x) {
  int32_t bits;
  x += 0.0f;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

INLINE VecI order_keys(const float* scores) {
  VecI bits = reinterpret_cast<VecI>(load(scores) + 0.0f);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

int64_t count_at_least(const float* scores, int64_t n, int32_t key) {
  VecI counts = {};
  int64_t u = 0, count = 0;
  for (; u + LANES <= n; u += LANES) counts -= order_keys(scores + u) >= key;
  for (int i = 0; i < LANES; ++i) count += counts[i];
  for (; u < n; ++u) count += order_key(scores[u]) >= key;
  return count;
}

// Largest key that at least `wanted` of n scores reach, found bit by bit; 0 < wanted <= n.
// `reached` becomes the number of scores that reach it.
int32_t threshold(const float* scores, int64_t n, int64_t wanted, int64_t* reached) {
  uint32_t key = 0;  // the sign bit is flipped while searching, so that order is unsigned
  *reached = n;
  for (uint32_t bit = 0x80000000u; bit != 0 && *reached != wanted; bit >>= 1) {
    int64_t count = count_at_least(scores, n, static_cast<int32_t>((key | bit) ^ 0x80000000u));
    if (count >= wanted) {
      key |= bit;
      *reached = count;
    }
  }
  return static_cast<int32_t>(key ^ 0x80000000u);
}

bool any_at_least(const float* scores, int32_t key) {
  VecI hit = order_keys(scores) >= key;
  int32_t any = 0;
  for (int i = 0; i < LANES; ++i) any |= hit[i];
  return any != 0;
}

// Appends `wanted` units of [begin, end) to `to`, the best ones, lower units first among equals.
int64_t take_best(const float* scores, int64_t begin, int64_t end, int64_t wanted, int32_t* to) {
  if (wanted <= 0) return 0;
  int64_t reached, taken = 0;
  int32_t key = threshold(scores + begin, end - begin, wanted, &reached);
  int64_t surplus = reached - wanted;  // only scores equal to the key can be in surplus
  int64_t equal = 0;
  if (surplus > 0) {
    for (int64_t u = begin; u < end; ++u) equal += order_key(scores[u]) == key;
  }
  int64_t equal_left = surplus > 0 ? equal - surplus : end - begin;
  for (int64_t u = begin; u < end && taken < wanted;) {
    if (end - u >= LANES && !any_at_least(scores + u, key)) {
      u += LANES;
      continue;
    }
    int64_t stop = end - u >= LANES ? u + LANES : end;
    for (; u < stop && taken < wanted; ++u) {
      int32_t x = order_key(scores[u]);
      if (x > key || (x == key && equal_left-- > 0)) to[taken++] = static_cast<int32_t>(u);
    }
  }
  return taken;
}

void select_head(const SelectArgs& a, int64_t row, int64_t head) {
  const float* scores = a.scores + (row * a.heads + head) * a.width;
  const int32_t* table = a.table + row * a.t_row;
  int32_t* logical = a.logical + (row * a.heads + head) * a.n;
  int32_t* physical = a.physical + (row * a.heads + head) * a.n;
  int64_t total = a.num_units[row], wanted = a.counts[row];
  int64_t sinks = a.begin[row] < total ? a.begin[row] : total;
  int64_t window = a.end[row] > sinks ? a.end[row] : sinks;
  if (window > total) window = total;
  int64_t n = 0;
  for (int64_t u = 0; u < sinks && n < wanted; ++u) logical[n++] = static_cast<int32_t>(u);
  n += take_best(scores, sinks, window, wanted - sinks - (total - window), logical + n);
  for (int64_t u = window; u < total && n < wanted; ++u) logical[n++] = static_cast<int32_t>(u);
  for (int64_t i = 0; i < n; ++i) physical[i] = table[logical[i]];
  for (int64_t i = n; i < a.n; ++i) {
    logical[i] = -1;
    physical[i] = 0;
  }
}

}  // namespace

extern "C" void select_units(const SelectArgs* a) {
  parallel_for(a->rows * a->heads, a->threads,
               [&](int64_t i, int64_t) { select_head(*a, i / a->heads, i % a->heads); });
}
