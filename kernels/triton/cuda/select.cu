// Exact top-k of one row and KV head, and its page table, by one block of threads.
//
// The meaning is that of ../select.py, to the last tie: scores become integers that sort like them,
// a radix descent of 8-bit digits finds the k-th largest, and of those equal to it the lowest units
// are taken. Here a thread keeps its keys in registers through all of it and histograms lie in
// shared memory, so nothing is read twice and no block waits for another.
//
// Unit u is key u / THREADS of thread u % THREADS: loads and stores are coalesced, and a short row
// busies every thread before any takes a second key.
//
// NVRTC compiles this for a GPU, and a C++ compiler for the tests, under emulation.h.

constexpr int THREADS = SELECT_THREADS;  // of a block
constexpr int KEYS = SELECT_KEYS;        // of a thread, at most
constexpr int GROUP = SELECT_GROUP;      // query heads per KV head
constexpr int BLOCK = SELECT_BLOCK;      // scores whose maximum and sum lie together in `parts`
constexpr bool MEAN = SELECT_MEAN;       // reduction over the group by mean, else by maximum
constexpr bool PAGED = SELECT_PAGED;     // for a stock kernel: dense rows are listed as well

#if SELECT_PAGED
using Offset = int;
#else
using Offset = long long;
#endif

// Arguments as in ../select.py; mirrored field by field in select.py.
struct Arguments {
  const float* logits;  // [rows, H, G, width]
  const float* parts;   // [rows, H, blocks, 2, G]; null: the logits are final scores, G is 1
  const int* table;     // [rows, stride_table]
  const int *formulas, *begins, *ends, *num_units, *counts, *dense_layers;  // [rows]
  int* physical;
  int* logical;           // [rows, H, widest], or null
  const Offset* offsets;  // [rows, H]
  int layer, blocks, width, widest, stride_table, entry_scale;
};
static_assert(sizeof(Arguments) == SELECT_BYTES);

constexpr int WARP = 32, WARPS = THREADS / WARP;
constexpr int BITS = 8, DIGITS = 1 << BITS, PASSES = 32 / BITS;
constexpr int AHEAD = KEYS <= 8 ? 24 / KEYS : 1;  // query heads whose logits are asked for ahead
constexpr int EARLY = GROUP < AHEAD ? GROUP : AHEAD;
constexpr int TOGETHER = 4;  // sums of blocks that a lane asks for at once
constexpr unsigned ALL = 0xffffffff, ALWAYS = 0xffffffff;
constexpr int NOTHING = 0, POSITION = 1;  // formulas, see ../spec.py
constexpr int UNIT_BITS = 0x7fffffff;     // of an entry of the table; the sign is the stamp's
constexpr float LARGEST = 3.4028234663852886e38f, LOG2E = 1.4426950408889634f;

static_assert(THREADS % WARP == 0 && WARPS <= WARP);
static_assert(KEYS * THREADS < 1 << 16, "two counts of units share a word");

struct Row {
  int formula, total, count, begin, end;
  bool dense;
  const int* table;
  int *physical, *logical;
  int scale, offset;

  // Entries are `physical unit * scale + offset`.
  __device__ void put(int place, int unit, int entry) const {
    physical[place] = (entry & UNIT_BITS) * scale + offset;
    if (logical) logical[place] = unit;
  }
};

// What is known of the k-th largest key, and of the keys that begin as it does.
struct Threshold {
  unsigned digits;  // the first ones
  int shift;        // bits behind them
  int left;         // how many of the keys that begin so are kept
  int equals;       // how many there are
};

struct alignas(16) Shared {
  int histogram[PASSES][DIGITS];
  float normaliser[GROUP];
  Threshold least;
  unsigned before[KEYS * WARPS];  // per key and warp: larger keys << 16 | equal ones
};

__device__ Row row_of(const Arguments& a, int row, int head, long long pair) {
  const int formula = a.formulas[row], total = a.num_units[row], count = a.counts[row];
  const int begin = a.begins[row], end = a.ends[row], dense_layers = a.dense_layers[row];
  const bool dense = (formula == NOTHING) | (a.layer < dense_layers);  // both are asked for at once
  int* logical = a.logical && !dense ? a.logical + pair * a.widest : nullptr;
  return {formula, total, count, begin, end, dense,
          a.table + static_cast<long long>(row) * a.stride_table, a.physical + a.offsets[pair],
          logical, a.entry_scale, a.entry_scale == 1 ? 0 : head};
}

// Every unit of a dense row; else the first and the newest.
__device__ void list_by_place(const Row& row, int thread) {
  const int left_out = row.dense ? 0 : row.total - row.count;
  for (int unit = thread; unit < row.total; unit += THREADS) {
    if (unit >= row.begin && unit < row.begin + left_out) continue;
    row.put(unit < row.begin ? unit : unit - left_out, unit, row.table[unit]);
  }
}

// exp(x - highest): 1 where they are equal, so that an infinity is one among equals.
__device__ float share_of(float x, float highest) {
  return x == highest ? 1.0f : exp2f((x - highest) * LOG2E);
}

// Log-sum-exp of one query head over all candidates, from the sums of its blocks; by one warp,
// whose first lane has the result.
__device__ float normaliser(const float* parts, const Row& row, int lane) {
  float highest = __int_as_float(0xff800000), total = 0.0f;
  const auto join = [&](float best, float sum) {
    const float higher = fmaxf(highest, best);
    total = total * share_of(highest, higher) + sum * share_of(best, higher);
    highest = higher;
  };
  for (int first = row.begin / BLOCK + lane; first * BLOCK < row.end; first += TOGETHER * WARP) {
    float best[TOGETHER], sum[TOGETHER];
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) {
      const int block = first + i * WARP;
      const bool written = block * BLOCK < row.end;
      best[i] = written ? parts[block * 2 * GROUP] : highest;
      sum[i] = written ? parts[(block * 2 + 1) * GROUP] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) join(best[i], sum[i]);
  }
  for (int step = WARP / 2; step > 0; step /= 2) {
    const float best = __shfl_down_sync(ALL, highest, step);
    join(best, __shfl_down_sync(ALL, total, step));
  }
  return highest + logf(total);
}

// One query head's logits of this thread's units; the nearest candidate's for a unit that is none.
__device__ void load(const float* logits, const Row& row, int thread, float (&x)[KEYS]) {
  const int last = max(row.end - 1, 0);
#pragma unroll
  for (int i = 0; i < KEYS; ++i) x[i] = logits[min(max(i * THREADS + thread, row.begin), last)];
}

// Log of the softmax, reduced over the group; NaN where one is NaN.
struct Ranks {
  float best[KEYS], sum[KEYS];

  __device__ void join(bool first, const float (&logit)[KEYS], float normaliser) {
#pragma unroll
    for (int i = 0; i < KEYS; ++i) {
      const float share = logit[i] - normaliser;
      const float higher = first || share > best[i] || share != share ? share : best[i];
      if (MEAN)
        sum[i] = first ? 1.0f : sum[i] * share_of(best[i], higher) + share_of(share, higher);
      best[i] = higher;
    }
  }

  __device__ float operator[](int i) const {
    return MEAN ? best[i] + logf(sum[i] / GROUP) : best[i];
  }
};

// Of the same order; both zeros are one, what is not a number is large.
__device__ unsigned sortable(float score) {
  const int bits = score == 0.0f ? 0 : __float_as_int(score <= LARGEST ? score : LARGEST);
  return static_cast<unsigned>(bits ^ ((bits >> 31) & 0x7fffffff)) ^ 0x80000000;
}

// Keys of this thread's units, by a block whose histograms are cleared on the way. All loads are
// asked for before the first wait, as far as registers allow.
__device__ void make_keys(const Arguments& a, const Row& row, long long pair, int thread,
                          Shared& shared, unsigned (&key)[KEYS]) {
  const int lane = thread % WARP, warp = thread / WARP;
  const long long head_logits = a.width;
  const float* logits = a.logits + pair * GROUP * head_logits;
  float early[EARLY][KEYS];
#pragma unroll
  for (int g = 0; g < EARLY; ++g) load(logits + g * head_logits, row, thread, early[g]);
  for (int i = thread; i < PASSES * DIGITS; i += THREADS)
    shared.histogram[i / DIGITS][i % DIGITS] = 0;
  for (int g = warp; g < GROUP; g += WARPS) {
    const float* parts = a.parts + pair * a.blocks * 2 * GROUP + g;
    const float log_sum = a.parts ? normaliser(parts, row, lane) : 0.0f;
    if (lane == 0) shared.normaliser[g] = log_sum;
  }
  __syncthreads();
  Ranks ranks;
#pragma unroll
  for (int g = 0; g < EARLY; ++g) ranks.join(g == 0, early[g], shared.normaliser[g]);
#pragma unroll 1
  for (int g = EARLY; g < GROUP; ++g) {
    load(logits + g * head_logits, row, thread, early[0]);
    ranks.join(false, early[0], shared.normaliser[g]);
  }
#pragma unroll
  for (int i = 0; i < KEYS; ++i) {
    const int unit = i * THREADS + thread;
    key[i] = unit >= row.begin && unit < row.end ? sortable(ranks[i]) : ALWAYS;
  }
}

// The digit in which the `least.left`-th largest key lies; by one warp, for all to read.
__device__ void next_digit(const int* histogram, Threshold least, int lane, Threshold& found) {
  constexpr int OWN = DIGITS / WARP;
  int bins[OWN], sum = 0;
#pragma unroll
  for (int bin = 0; bin < OWN; ++bin) sum += bins[bin] = histogram[lane * OWN + bin];
  int from_here = sum;  // keys whose digit is one of this lane's, or larger
  for (int step = 1; step < WARP; step *= 2) {
    const int further = __shfl_down_sync(ALL, from_here, step);
    if (lane + step < WARP) from_here += further;
  }
  int left = least.left - (from_here - sum);
  if (left < 1 || left > sum) return;  // another lane's
  int digit = lane * OWN + OWN - 1, equals = bins[OWN - 1];
#pragma unroll
  for (int bin = OWN - 2; bin >= 0; --bin) {
    if (left <= equals) continue;
    left -= equals;
    equals = bins[bin];
    digit = lane * OWN + bin;
  }
  found = {least.digits << BITS | static_cast<unsigned>(digit), least.shift - BITS, left, equals};
}

// The threshold of the `count` largest keys, digit by digit; no further than until all keys that
// begin alike are kept.
__device__ Threshold descend(const unsigned (&key)[KEYS], const Row& row, int thread,
                             Shared& shared) {
  Threshold least = {0, 32, row.count, row.total};
#pragma unroll 1
  for (int pass = 0; pass < PASSES; ++pass) {
    const int shift = least.shift - BITS;
#pragma unroll
    for (int i = 0; i < KEYS; ++i)
      if (i * THREADS + thread < row.total && key[i] >> shift >> BITS == least.digits)
        atomicAdd(&shared.histogram[pass][key[i] >> shift & (DIGITS - 1)], 1);
    __syncthreads();
    if (thread < WARP) next_digit(shared.histogram[pass], least, thread, shared.least);
    __syncthreads();
    least = shared.least;
    if (least.left == least.equals) break;
  }
  return least;
}

// Of a warp's lanes, those whose key is above the threshold, and those at it.
struct Votes {
  unsigned larger, equal;

  __device__ Votes(bool exists, unsigned key, const Threshold& least)
      : larger(__ballot_sync(ALL, exists && key >> least.shift > least.digits)),
        equal(__ballot_sync(ALL, exists && key >> least.shift == least.digits)) {}
};

// Counts become sums of all that stand before; by one warp.
__device__ void add_up(unsigned* counts, int size, int lane) {
  const int own = (size + WARP - 1) / WARP, first = lane * own, last = min(first + own, size);
  unsigned sum = 0;
  for (int i = first; i < last; ++i) sum += counts[i];
  unsigned before = sum;
  for (int step = 1; step < WARP; step *= 2) {
    const unsigned further = __shfl_up_sync(ALL, before, step);
    if (lane >= step) before += further;
  }
  before -= sum;
  for (int i = first; i < last; ++i) {
    const unsigned count = counts[i];
    counts[i] = before;
    before += count;
  }
}

// Lists the kept units in ascending order: one scan over the block's warps and keys.
__device__ void list_kept(const unsigned (&key)[KEYS], const int (&entry)[KEYS], const Row& row,
                          const Threshold& least, int thread, Shared& shared) {
  const int lane = thread % WARP, warp = thread / WARP;
#pragma unroll
  for (int i = 0; i < KEYS && i * THREADS < row.total; ++i) {
    const Votes votes(i * THREADS + thread < row.total, key[i], least);
    if (lane == 0)
      shared.before[i * WARPS + warp] = __popc(votes.larger) << 16 | __popc(votes.equal);
  }
  __syncthreads();
  if (warp == 0) add_up(shared.before, (row.total + THREADS - 1) / THREADS * WARPS, lane);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < KEYS && i * THREADS < row.total; ++i) {
    const Votes votes(i * THREADS + thread < row.total, key[i], least);
    const unsigned me = 1u << lane, before = shared.before[i * WARPS + warp];
    const int larger = static_cast<int>(before >> 16) + __popc(votes.larger & (me - 1));
    const int equals = static_cast<int>(before & 0xffff) + __popc(votes.equal & (me - 1));
    if (votes.larger & me || (votes.equal & me && equals < least.left))
      row.put(larger + min(equals, least.left), i * THREADS + thread, entry[i]);
  }
}

// Grid [H, rows].
extern "C" __global__ void __launch_bounds__(THREADS, 1) select_units(const Arguments a) {
  __shared__ Shared shared;
  const int thread = threadIdx.x;
  const long long pair = static_cast<long long>(blockIdx.y) * gridDim.x + blockIdx.x;
  const Row row = row_of(a, blockIdx.y, blockIdx.x, pair);
  if (row.dense || row.formula == POSITION) {
    if (PAGED || !row.dense) list_by_place(row, thread);
    return;
  }
  unsigned key[KEYS];
  make_keys(a, row, pair, thread, shared, key);
  int entry[KEYS];  // asked for before it is known which are kept
#pragma unroll
  for (int i = 0; i < KEYS; ++i) {
    const int unit = i * THREADS + thread;
    entry[i] = unit < row.total ? row.table[unit] : 0;
  }
  const Threshold least = descend(key, row, thread, shared);
  list_kept(key, entry, row, least, thread, shared);
}
