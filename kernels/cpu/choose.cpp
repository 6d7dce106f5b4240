// A step's choice by records of clusters: the best tokens of the ranked list with sinks and window,
// in ascending order, and what the unread tokens of clusters weigh.

#include "cluster_weights.h"

namespace {

struct Choice : Probe {
  const ChooseArgs& args;

  explicit Choice(const ChooseArgs& c) : Probe(c.codes), args(c) {}
};

// What is taken of a list: shares above `least`, and of those equal to it the first `equal` tokens.
struct Cut {
  float least;
  int64_t equal, surplus;
};

// Where the best `wanted` of n keys end; 0 < wanted <= n. Bit by bit, and what is decided is dropped
// on the way, so that the keys are lost.
Cut cut_at(int32_t* keys, int64_t n, uint32_t differ, int64_t wanted) {
  constexpr uint32_t kSign = 0x80000000u;
  int width = differ ? 32 - __builtin_clz(differ) : 0;
  uint32_t low = width == 32 ? ~0u : (1u << width) - 1;
  uint32_t key = (static_cast<uint32_t>(keys[0]) ^ kSign) & ~low;
  for (uint32_t bit = width ? 1u << (width - 1) : 0; bit != 0; bit >>= 1) {
    int32_t least = static_cast<int32_t>((key | bit) ^ kSign);
    int64_t count = count_at_least(keys, n, least), kept = 0;
    bool upper = count >= wanted;
    if (upper) key |= bit;
    else wanted -= count;
    if (count == 0 || count == n) continue;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
      VecI x = load_keys(keys + i);
      uint32_t which = lane_bits(upper ? x >= least : x < least);
      put_lanes(keys + kept, x, which);
      kept += __builtin_popcount(which);
    }
    for (; i < n; ++i) {
      int32_t x = keys[i];
      keys[kept] = x;
      kept += upper ? x >= least : x < least;
    }
    n = kept;
  }
  return {score_of(static_cast<int32_t>(key ^ kSign))[0], wanted, n - wanted};
}

void set_bit(uint64_t* bits, int64_t token) { bits[token / 64] |= 1ull << (token % 64); }

bool has_bit(const uint64_t* bits, int64_t token) { return bits[token / 64] >> (token % 64) & 1; }

void set_where(uint64_t* bits, uint32_t which, const int32_t* tokens) {
  for (; which; which &= which - 1) set_bit(bits, tokens[__builtin_ctz(which)]);
}

// Sets the bits of what is taken of the list. They are written side by side first: a loop over the bits of
// each few would mispredict its end as often. `room` is as long as the list.
void set_taken(const Cut& cut, const float* shares, const int32_t* tokens, int64_t count, int32_t* room,
               uint64_t* bits, uint64_t* equal) {
  bool with_equal = cut.equal && !cut.surplus;
  int64_t taken = 0;
  for (int64_t i = 0; i < count; i += LANES) {
    VecF x = known(load(shares + i));
    uint32_t which = lane_bits(with_equal ? x >= cut.least : x > cut.least);
    put_lanes(room + taken, load_keys(tokens + i), which);
    taken += __builtin_popcount(which);
    if (cut.surplus) set_where(equal, lane_bits(x == cut.least), tokens + i);
  }
  for (int64_t i = 0; i < taken; ++i) set_bit(bits, room[i]);
}

// Marks the best `wanted` of the candidates; the first ones among equals, and where too few have a
// share the first of the others.
Cut mark(const Probe& a, int64_t row, int64_t head, int64_t count, int64_t wanted) {
  const float* shares = a.shares(row, head);
  const int32_t* tokens = a.tokens(row, head);
  int32_t* keys = a.keys_of(row, head);
  uint64_t *bits = a.bits(row, head), *equal = bits + a.words;
  for (int64_t i = 0; i < 2 * a.words; ++i) bits[i] = 0;
  if (wanted <= 0) return {kInf, 0, 0};
  int64_t some = 0;
  for (int64_t i = 0; i < count; i += LANES) {
    VecF x = load(shares + i);
    uint32_t which = lane_bits(~(x == -kInf));
    put_lanes(keys + some, order_keys(x), which);
    some += __builtin_popcount(which);
  }
  Cut cut = {-kInf, 0, 0};
  if (some > wanted) {
    VecI varied = {};
    uint32_t differ = 0;
    int64_t i = 0;
    for (; i + LANES <= some; i += LANES) varied |= load_keys(keys + i) ^ keys[0];
    for (; i < some; ++i) differ |= static_cast<uint32_t>(keys[i] ^ keys[0]);
    cut = cut_at(keys, some, differ | any_bits(varied), wanted);
  }
  set_taken(cut, shares, tokens, count, keys, bits, equal);
  int64_t left = cut.surplus ? cut.equal : 0;
  for (int64_t w = a.begin[row] / 64; left > 0 && w < a.words; ++w) {
    for (uint64_t x = equal[w]; x && left > 0; x &= x - 1, --left) bits[w] |= x & -x;
  }
  for (int64_t t = a.begin[row]; some < wanted && t < a.end[row]; ++t) {
    if (has_bit(bits, t)) continue;
    set_bit(bits, t);
    take_from_shut(a, row, head, t);
    ++some;
  }
  return cut;
}

// Writes the numbers of the bits that are set, in ascending order, and up to 7 more behind; returns how
// many they are.
int64_t list_bits(const uint64_t* bits, int64_t words, int32_t* to) {
  int64_t n = 0;
  for (int64_t w = 0; w < words; ++w) {
    int32_t first = static_cast<int32_t>(w * 64);
    uint64_t x = bits[w];
    int64_t end = n + __builtin_popcountll(x);
    for (; n < end; n += 8) {
      UNROLL for (int i = 0; i < 8; ++i) {
        to[n + i] = first + __builtin_ctzll(x | 1ull << 63);
        x &= x - 1;
      }
    }
    n = end;
  }
  return n;
}

// Writes sinks, what is marked, and the window; returns their number.
int64_t list_marked(const Probe& a, int64_t row, int64_t head, int64_t total, int64_t wanted,
                    int32_t* to) {
  int32_t* marked = a.keys_of(row, head);  // no longer needed
  int64_t count = list_bits(a.bits(row, head), a.words, marked);
  int64_t sinks = a.begin[row] < total ? a.begin[row] : total, n = 0;
  int64_t window = a.end[row] > sinks ? a.end[row] : sinks;
  if (window > total) window = total;
  for (int64_t t = 0; t < sinks && n < wanted; ++t) to[n++] = static_cast<int32_t>(t);
  if (count > wanted - n) count = wanted - n;
  for (int64_t i = 0; i < count; ++i) to[n + i] = marked[i];
  n += count;
  for (int64_t t = window; t < total && n < wanted; ++t) to[n++] = static_cast<int32_t>(t);
  return n;
}

void choose_head(const Probe& a, const ChooseArgs& args, int64_t row, int64_t head) {
  int64_t total = args.num_units[row], wanted = args.counts[row], count = rank(a, row, head);
  int64_t ranked = a.end[row] > a.begin[row] ? a.end[row] - a.begin[row] : 0, at = row * a.heads + head;
  int64_t room = wanted - (total - ranked);
  Cut cut = mark(a, row, head, count, room < ranked ? room : ranked);
  int32_t *logical = args.logical + at * args.n, *physical = args.physical + at * args.n;
  int64_t n = list_marked(a, row, head, total, wanted, logical);
  const int32_t* slots = a.slots + row * a.s_row;
  for (int64_t i = 0; i < n; ++i) physical[i] = slots[logical[i]];
  for (int64_t i = n; i < args.n; ++i) {
    logical[i] = -1;
    physical[i] = 0;
  }
  const float* shares = a.shares(row, head);
  const int32_t* tokens = a.tokens(row, head);
  const uint64_t* bits = a.bits(row, head);
  int64_t stride = a.segments * kClusters;
  weigh(a, row, head, {args.weights + at * a.group * stride, stride, args.gains},
        [&](int64_t i) __attribute__((always_inline)) {
          VecF x = known(load(shares + i));
          VecI unread = x < cut.least;
          uint32_t equal = lane_bits(x == cut.least);
          for (; equal; equal &= equal - 1) {
            int lane = __builtin_ctz(equal);
            unread[lane] = has_bit(bits, tokens[i + lane]) ? 0 : -1;
          }
          return unread;
        });
}

template <typename T>
void choose(const Choice& a) {
  for_lists<T>(a, [&](const Probe& own, int64_t row, int64_t head) {
    choose_head(own, a.args, row, head);
  });
}

}  // namespace

extern "C" int64_t choose(const ChooseArgs* a) {
  Choice scene(*a);
  int64_t needed = scene.floats;
  if (needed > a->codes.scratch_size) return needed;
  for_dtype(a->codes.dtype, [&]<typename T>() { choose<T>(scene); });
  return 0;
}
