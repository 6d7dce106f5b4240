// The log-sum-exp of scaled q . k over what a row reads in any case.

#include "args.h"
#include "exact.h"
#include "parallel.h"

namespace {

template <typename T>
void find_known(const KnownArgs& a, int64_t row, int64_t head) {
  int64_t at = row * a.heads + head, stride = padded(a.dim);
  Query<T>* query = reinterpret_cast<Query<T>*>(a.scratch + at * a.group * stride);
  const T* q = static_cast<const T*>(a.q) + row * a.q_row + head * a.q_head;
  const T* keys = static_cast<const T*>(a.keys) + head * a.k_head;
  const int32_t* units = a.table + row * a.t_row;
  int64_t tokens = (a.counts[row] - 1) * a.unit + a.tails[row];
  auto key_at = [&](int64_t t) {
    if (t >= tokens) t = tokens - 1;
    return keys + (static_cast<int64_t>(units[t / a.unit]) * a.unit + t % a.unit) * a.k_slot;
  };
  for (int64_t t = 0; t < tokens && t < 2 * LANES; ++t) prefetch_row(key_at(t), a.dim);
  copy_queries(query, q, a.group, a.q_group, a.dim);
  for_query_blocks(a.group, [&]<int G>(int64_t g) {
    Running<G> all;
    for (int64_t t = 0; t < tokens; t += LANES) {
      int64_t count = tokens - t < LANES ? tokens - t : LANES;
      for (int i = 0; i < LANES; ++i) prefetch_row(key_at(t + 2 * LANES + i), a.dim);
      add_keys<T, G>(all, query + g * stride, count, a.dim, static_cast<float>(a.scale),
                     [&](int64_t i) { return key_at(t + i); });
    }
    for (int i = 0; i < G; ++i) a.lse[at * a.group + g + i] = all.lse(i);
  });
}

}  // namespace

extern "C" int64_t known(const KnownArgs* a) {
  int64_t lists = a->rows * a->heads, needed = lists * a->group * padded(a->dim);
  if (needed > a->scratch_size) return needed;
  for_dtype(a->dtype, [&]<typename T>() {
    parallel_for(lists, a->threads,
                 [&](int64_t i, int64_t) { find_known<T>(*a, i / a->heads, i % a->heads); });
  });
  return 0;
}
