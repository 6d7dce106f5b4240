// How many units each (row, KV head) reads: until its estimated share of attention is covered, and
// of a pool that the KV heads of a row share.

#include "args.h"
#include "order.h"
#include "parallel.h"

namespace {

// Scores that the search has not settled: sort keys and weights [n], in the order of units.
struct Active {
  int32_t* keys;
  float* weights;
  int64_t n;
};

// Keeps the entries whose keys are, or are not, at least `pivot`.
void narrow(Active* active, int32_t pivot, bool upper) {
  int64_t kept = 0, u = 0;
  for (; u + LANES <= active->n; u += LANES) {
    VecI keys = load_keys(active->keys + u), weights = load_keys(bits_of(active->weights + u));
    uint32_t which = at_least(keys, pivot);
    if (!upper) which = ~which & ((1u << LANES) - 1);
    put_lanes(active->keys + kept, keys, which);
    put_lanes(bits_of(active->weights + kept), weights, which);
    kept += __builtin_popcount(which);
  }
  for (; u < active->n; ++u) {
    active->keys[kept] = active->keys[u];
    active->weights[kept] = active->weights[u];
    kept += (active->keys[u] >= pivot) == upper;
  }
  active->n = kept;
}

// Sum of the weights whose keys are at least `pivot`, and their number.
struct Above {
  double weight;
  int64_t count;
};

Above weigh(const Active& active, int32_t pivot) {
  VecF total = {};
  VecI counts = {};
  int64_t u = 0;
  for (; u + LANES <= active.n; u += LANES) {
    VecI inside = load_keys(active.keys + u) >= pivot;
    total += reinterpret_cast<VecF>(load_keys(bits_of(active.weights + u)) & inside);
    counts -= inside;
  }
  Above found = {sum_lanes(total), 0};
  for (int i = 0; i < LANES; ++i) found.count += counts[i];
  for (; u < active.n; ++u) {
    bool inside = active.keys[u] >= pivot;
    found.weight += inside ? active.weights[u] : 0.0f;
    found.count += inside;
  }
  return found;
}

// Fewest of the largest weights that reach `wanted` together, at most all of them. Found bit by bit
// of the keys; in every step the half that cannot hold the last one taken is put aside.
int64_t fewest(Active active, uint32_t differ, double wanted) {
  constexpr uint32_t kSign = 0x80000000u;
  if (wanted <= 0 || active.n == 0) return 0;
  int64_t taken = 0;
  int width = differ ? 32 - __builtin_clz(differ) : 0;
  uint32_t low = width == 32 ? ~0u : (1u << width) - 1;
  uint32_t key = (static_cast<uint32_t>(active.keys[0]) ^ kSign) & ~low;
  for (uint32_t bit = width ? 1u << (width - 1) : 0; bit != 0 && active.n > 0; bit >>= 1) {
    int32_t pivot = static_cast<int32_t>((key | bit) ^ kSign);
    Above upper = weigh(active, pivot);
    bool enough = upper.weight >= wanted;
    if (enough) {
      key |= bit;
    } else {
      wanted -= upper.weight;
      taken += upper.count;
    }
    narrow(&active, pivot, enough);
  }
  for (int64_t u = 0; u < active.n && wanted > 0; ++u) {  // what is left is equal
    wanted -= active.weights[u];
    ++taken;
  }
  return taken;
}

// The candidates [begin, end) of a row and what it reads besides.
struct Row {
  int64_t begin, end, always, room;
};

Row row_of(const AllotArgs& a, int64_t row) {
  int64_t total = a.num_units[row], begin = a.begin[row] < total ? a.begin[row] : total;
  int64_t end = a.end[row] > begin ? a.end[row] : begin;
  if (end > total) end = total;
  int64_t always = total - (end - begin), room = a.counts[row] - always;
  if (room > end - begin) room = end - begin;
  return {begin, end, always, room > 0 ? room : 0};
}

// Candidates that cover the rest of a row's goal: shares exp(score), flattened to exp(flat * score)
// with the same sum, add up to it.
int64_t covering(const AllotArgs& a, const Row& r, int64_t row, int64_t head) {
  const float* scores = a.scores + (row * a.heads + head) * a.width + r.begin;
  int32_t* scratch = a.scratch + (row * a.heads + head) * 2 * a.width;
  int64_t n = r.end - r.begin;
  Active active = {scratch, reinterpret_cast<float*>(scratch + a.width), n};
  uint32_t differ = write_keys(scores, n, active.keys);
  float flat = static_cast<float>(a.flat) * kLog2E;
  VecF shares = {}, flattened = {};
  for (int64_t u = 0; u < n; u += LANES) {
    VecF score = splat(-kInf);
    int64_t lanes = n - u < LANES ? n - u : LANES;
    __builtin_memcpy(&score, scores + u, lanes * sizeof(float));
    score = score == score ? score : splat(-kInf);
    VecF weight = exp2_vec(score * flat);
    shares += exp2_vec(score * kLog2E);
    flattened += weight;
    __builtin_memcpy(active.weights + u, &weight, lanes * sizeof(float));
  }
  double mass = sum_lanes(shares), sum = sum_lanes(flattened);
  if (!(mass > 0)) return 0;
  return fewest(active, differ, (a.coverage[row] - (1 - mass)) * sum / mass);
}

// What each KV head may read of the pool heads * room: at least `least`, then the largest shares of
// all heads. Equal shares go to the lower head.
void pool(const AllotArgs& a, const Row& r, int64_t row, int32_t* rooms) {
  constexpr uint32_t kSign = 0x80000000u;
  int64_t n = r.end - r.begin, total = r.room * a.heads;
  int64_t least = static_cast<int64_t>(static_cast<double>(r.room) * a.least);
  auto keys_of = [&](int64_t head) { return a.scratch + (row * a.heads + head) * 2 * a.width; };
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

}  // namespace

extern "C" void allot(const AllotArgs* a) {
  parallel_for(a->rows, a->threads, [&](int64_t row, int64_t) {
    Row r = row_of(*a, row);
    int32_t* out = a->out + row * a->heads;
    for (int64_t h = 0; h < a->heads; ++h) out[h] = static_cast<int32_t>(r.room);
    if (a->pooled[row] && r.room < r.end - r.begin) pool(*a, r, row, out);
  });
  parallel_for(a->rows * a->heads, a->threads, [&](int64_t i, int64_t) {
    int64_t row = i / a->heads, head = i % a->heads;
    Row r = row_of(*a, row);
    int64_t room = a->out[i];
    if (a->coverage[row] < 1) {
      int64_t wanted = covering(*a, r, row, head);
      room = wanted < room ? wanted : room;
    }
    a->out[i] = static_cast<int32_t>(r.always + room);
  });
}
