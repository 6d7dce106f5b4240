// What the unread tokens of clusters weigh beside a given selection.

#include "cluster_weights.h"

namespace {

struct Weighing : Probe {
  const WeighArgs& args;

  explicit Weighing(const WeighArgs& w) : Probe(w.codes), args(w) {}
};

void weigh_head(const Probe& a, const WeighArgs& args, int64_t row, int64_t head) {
  int64_t at = row * a.heads + head, stride = a.segments * kClusters;
  int64_t count = args.counts[row * args.c_row + head * args.c_head];
  const int32_t *units = args.logical + at * args.n, *tokens = a.tokens(row, head);
  uint64_t* bits = a.bits(row, head);
  for (int64_t i = 0; i < a.words; ++i) bits[i] = 0;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t t = units[i] * args.unit, end = t + args.unit; t < end; ++t) {
      if (t < a.begin[row] || t >= a.end[row]) continue;
      bits[t / 64] |= 1ull << (t % 64);
      take_from_shut(a, row, head, t);
    }
  }
  exponentiate(a, row, head, entered_of(a, row, head));
  weigh(a, row, head, {args.weights + at * a.group * stride, stride, args.gains}, [&](int64_t i) {
    VecI unread;
    for (int lane = 0; lane < LANES; ++lane) {
      int32_t t = tokens[i + lane];
      unread[lane] = bits[t / 64] >> (t % 64) & 1 ? 0 : -1;
    }
    return unread;
  });
}

template <typename T>
void weigh(const Weighing& a) {
  for_lists<T>(a, [&](const Probe& own, int64_t row, int64_t head) {
    weigh_head(own, a.args, row, head);
  });
}

}  // namespace

extern "C" int64_t weigh(const WeighArgs* a) {
  Weighing scene(*a);
  int64_t needed = scene.floats;
  if (needed > a->codes.scratch_size) return needed;
  for_dtype(a->codes.dtype, [&]<typename T>() { weigh<T>(scene); });
  return 0;
}
