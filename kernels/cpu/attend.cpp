// Decode attention over listed units: flash decoding, split by token count alone.
//
// A row's tokens are cut into chunks of kChunk; each chunk is walked in tiles of kTile with an
// online softmax in base 2, and the chunks of a (row, KV head) are merged at the end. Nothing of
// this depends on the batch, the threads, or on whether the KV heads share one list; sharing only
// changes the order of the walk (all heads of a tile, then the next tile), which then follows
// memory: slots hold the rows of all heads side by side. Nor does it depend on who shares a prefix:
// rows that read everything and begin alike take turns at each tile of what they have in common.

#include "args.h"
#include "dot.h"
#include "parallel.h"
#include "runs.h"

namespace {

constexpr int64_t kChunk = 512;  // tokens per task
constexpr int kTile = 64;        // tokens per softmax step: K and V of one head fit the L1 cache

#if LANES == 16 || defined(__aarch64__)
constexpr int kOutBlock = 4;  // 4 queries x 4 vectors of output stay in registers
#else
constexpr int kOutBlock = 2;
#endif

// Single rows come from anywhere and nothing but us fetches them: both K and V while values are
// added, which takes longest, so that the requests spread evenly.
bool scattered(const AttendArgs& a) { return a.unit < 8; }

int64_t units_per_chunk(const AttendArgs& a) { return a.unit < kChunk ? kChunk / a.unit : 1; }

int64_t chunks_of(const AttendArgs& a, int64_t units) {
  return (units + units_per_chunk(a) - 1) / units_per_chunk(a);
}

// One chunk's state for one KV head: unnormalised out [G, padded(Dv)], then maxima and sums [G].
int64_t state_size(const AttendArgs& a) { return a.group * (padded(a.vdim) + 2); }

float* state_of(const AttendArgs& a, int64_t row, int64_t chunk, int64_t head) {
  int64_t chunks = chunks_of(a, a.width);
  return a.scratch + ((row * chunks + chunk) * a.heads + head) * state_size(a);
}

// Queries [rows, H, G, padded(D)] behind the states, as Query<T>.
template <typename T>
Query<T>* queries_of(const AttendArgs& a, int64_t row, int64_t head) {
  int64_t states = a.rows * chunks_of(a, a.width) * a.heads * state_size(a);
  int64_t index = (row * a.heads + head) * a.group * padded(a.dim);
  return reinterpret_cast<Query<T>*>(a.scratch + states) + index;
}

// Lists of a row, each of so many KV heads.
int64_t heads_of(const AttendArgs& a) { return a.t_head == 0 ? a.heads : 1; }
int64_t lists_of(const AttendArgs& a) { return a.heads / heads_of(a); }

// Behind the queries what a row has in common with the row before it, and the runs of each list.
int32_t* common_of(const AttendArgs& a) {
  int64_t row = chunks_of(a, a.width) * state_size(a) + a.group * padded(a.dim);
  return reinterpret_cast<int32_t*>(a.scratch + a.rows * a.heads * row);
}

int64_t floats_of(const AttendArgs& a) {
  int64_t chunks = chunks_of(a, a.width), runs = lists_of(a) * chunks;
  int64_t row = a.heads * (chunks * state_size(a) + a.group * padded(a.dim));
  return a.rows * (row + 1 + runs * static_cast<int64_t>(sizeof(Run) / sizeof(float)));
}

// Slots of a tile; from `count` on the last one repeats, so that whole vectors can be computed.
struct Tile {
  int64_t slot[kTile];
  int count;
  int64_t head;  // the first KV head it is for
};

// The chunk `chunk` of the rows [row, end), for the KV heads [head, last) that share its list.
struct Task {
  int64_t row, end, chunk, head, last;
};

int64_t count_of(const AttendArgs& a, int64_t row, int64_t head) {
  return a.counts[row * a.c_row + head * a.c_head];
}

int64_t tokens_of(const AttendArgs& a, const Task& task) {
  int64_t tail = a.lists ? 1 : a.tails[task.row];
  return (count_of(a, task.row, task.head) - 1) * a.unit + tail;
}

// Chunks that a row has whole and in common with the row before it, which has them whole too; all
// heads share one list.
int32_t whole_chunks_in_common(const AttendArgs& a, int64_t row) {
  const int32_t* table = a.table + row * a.t_row;
  int64_t tokens = in_common(table - a.t_row, table, a.width) * a.unit;
  for (int64_t r = row - 1; r <= row; ++r) {
    int64_t own = tokens_of(a, {r, r + 1, 0, 0, a.heads});
    tokens = own < tokens ? own : tokens;
  }
  return static_cast<int32_t>(tokens / (units_per_chunk(a) * a.unit));
}

// The tile of a task that begins at token `first` of the row, within the task's chunk.
Tile make_tile(const AttendArgs& a, const Task& task, int64_t first) {
  int64_t end = (task.chunk + 1) * units_per_chunk(a) * a.unit, tokens = tokens_of(a, task);
  int64_t left = (end < tokens ? end : tokens) - first;
  Tile tile;
  tile.count = static_cast<int>(left < kTile ? left : kTile);
  tile.head = task.head;
  if (a.lists) {
    const TokenList& list = a.lists[task.row];
    const int32_t* places = list.places + task.head * list.stride + first;
    for (int t = 0; t < tile.count; ++t) tile.slot[t] = list.slots[places[t]];
  } else {
    const int32_t* units = a.table + task.row * a.t_row + task.head * a.t_head;
    int64_t unit = first / a.unit, offset = first % a.unit;
    for (int t = 0; t < tile.count; ++t) {
      tile.slot[t] = static_cast<int64_t>(units[unit]) * a.unit + offset;
      if (++offset == a.unit) {
        offset = 0;
        ++unit;
      }
    }
  }
  for (int t = tile.count; t < kTile; ++t) tile.slot[t] = tile.slot[tile.count - 1];
  return tile;
}

// scores[g][t] = q[g] . k[t]
template <typename T, int G>
INLINE void score_tile(float (*scores)[kTile], const Query<T>* q, const T* keys,
                       const AttendArgs& a, const Tile& tile, const Tile* ahead) {
  constexpr int kRows = LANES / G;
  for (int t = 0; t < tile.count; t += kRows) {
    const T* row[kRows];
    for (int j = 0; j < kRows; ++j) row[j] = keys + tile.slot[t + j] * a.k_slot;
    if (ahead && !scattered(a)) {
      const T* next = keys + (ahead->head - tile.head) * a.k_head;
      for (int j = 0; j < kRows; ++j) prefetch_row(next + ahead->slot[t + j] * a.k_slot, a.dim);
    }
    VecF acc[LANES] = {};
    dot_rows<T, G>(acc, q, padded(a.dim), row, a.dim);
    float sums[LANES];
    store(sums, sum_each(acc));
    for (int g = 0; g < G; ++g) {
      __builtin_memcpy(scores[g] + t, sums + g * kRows, kRows * sizeof(float));
    }
  }
}

// Turns scores into weights 2^(s - max) and updates the running maximum and sum; returns the
// factor that rescales what was summed before.
INLINE float weigh_tile(float* scores, int count, float scale, float* max, float* sum) {
  for (int t = count; t < kTile; ++t) scores[t] = -kInf;
  int end = static_cast<int>(padded(count));
  VecF best = splat(*max);
  for (int t = 0; t < end; t += LANES) {
    VecF s = load(scores + t) * scale;
    store(scores + t, s);
    best = vmax(best, s);
  }
  float new_max = max_lanes(best);
  VecF total = {};
  for (int t = 0; t < end; t += LANES) {
    VecF weight = exp2_vec(load(scores + t) - new_max);
    store(scores + t, weight);
    total += weight;
  }
  float factor = exp2_one(*max - new_max);
  *sum = *sum * factor + sum_lanes(total);
  *max = new_max;
  return factor;
}

// out[g][d .. d + N vectors) = out * factor[g] + sum over t of weights[g][t] * v[t]
// Partial: N is 1 and the vector reaches beyond the row; kept apart, as it costs registers.
template <typename T, int G, int N, bool Partial = false>
INLINE void add_values(float* out, int64_t out_stride, const float (*weights)[kTile],
                       const float* factor, const T* keys, const T* values, const AttendArgs& a,
                       const Tile& tile, const Tile* ahead, int64_t d) {
  VecF acc[G][N];
  UNROLL for (int g = 0; g < G; ++g) {
    UNROLL for (int n = 0; n < N; ++n) {
      acc[g][n] = load(out + g * out_stride + d + n * LANES) * factor[g];
    }
  }
  int64_t head = ahead ? ahead->head - tile.head : 0;
  const T *next = values + head * a.v_head + d, *next_key = keys + head * a.k_head + d;
  for (int t = 0; t < tile.count; ++t) {
    const T* row = values + tile.slot[t] * a.v_slot + d;
    if (ahead) {
      prefetch_row(next + ahead->slot[t] * a.v_slot, N * LANES);
      if (scattered(a)) prefetch_row(next_key + ahead->slot[t] * a.k_slot, N * LANES);
    }
    VecF v[N];
    UNROLL for (int n = 0; n < N; ++n) {
      v[n] = Partial ? load_first(row, static_cast<int>(a.vdim - d)) : load(row + n * LANES);
    }
    UNROLL for (int g = 0; g < G; ++g) {
      UNROLL for (int n = 0; n < N; ++n) acc[g][n] += weights[g][t] * v[n];
    }
  }
  UNROLL for (int g = 0; g < G; ++g) {
    UNROLL for (int n = 0; n < N; ++n) store(out + g * out_stride + d + n * LANES, acc[g][n]);
  }
}

template <typename T, int G>
INLINE void attend_tile(float* state, int64_t g, const Query<T>* q, const T* keys, const T* values,
                        const AttendArgs& a, const Tile& tile, const Tile* ahead) {
  float scores[G][kTile], factor[G];
  int64_t stride = padded(a.vdim);
  float* max = state + a.group * stride + g;
  float* sum = max + a.group;
  if (g > 0) ahead = nullptr;  // the first block of queries has asked for it
  score_tile<T, G>(scores, q + g * padded(a.dim), keys, a, tile, ahead);
  for (int i = 0; i < G; ++i) {
    factor[i] = weigh_tile(scores[i], tile.count, static_cast<float>(a.scale) * kLog2E, max + i,
                           sum + i);
  }
  float* out = state + g * stride;
  int64_t d = 0;
  for (; d + kOutBlock * LANES <= a.vdim; d += kOutBlock * LANES) {
    add_values<T, G, kOutBlock>(out, stride, scores, factor, keys, values, a, tile, ahead, d);
  }
  for (; d + LANES <= a.vdim; d += LANES) {
    add_values<T, G, 1>(out, stride, scores, factor, keys, values, a, tile, ahead, d);
  }
  if (d < a.vdim) {
    add_values<T, G, 1, true>(out, stride, scores, factor, keys, values, a, tile, ahead, d);
  }
}

void clear_state(const AttendArgs& a, float* state) {
  int64_t size = a.group * padded(a.vdim);
  for (int64_t i = 0; i < size; ++i) state[i] = 0;
  for (int64_t g = 0; g < a.group; ++g) {
    state[size + g] = -kInf;
    state[size + a.group + g] = 0;
  }
}

// One task: all heads of a tile before the next tile. The tile ahead is prefetched meanwhile; the
// last one fetches for the task that this thread runs next, if any.
template <typename T>
void attend_chunk(const AttendArgs& a, const Task& task, const Task* next) {
  int64_t span = units_per_chunk(a) * a.unit, first = task.chunk * span;
  int64_t tokens = tokens_of(a, task);
  int64_t end = first + span < tokens ? first + span : tokens;
  for (int64_t row = task.row; row < task.end; ++row) {
    for (int64_t h = task.head; h < task.last; ++h) {
      clear_state(a, state_of(a, row, task.chunk, h));
    }
  }
  Tile tiles[2];
  tiles[0] = make_tile(a, task, first);
  for (int64_t t = first, i = 0; t < end; t += kTile, ++i) {
    const Tile& tile = tiles[i & 1];
    Tile* ahead = &tiles[(i + 1) & 1];
    if (t + kTile < end) {
      *ahead = make_tile(a, task, t + kTile);
    } else if (next) {
      *ahead = make_tile(a, *next, next->chunk * span);
    } else {
      ahead = nullptr;
    }
    for (int64_t h = task.head; h < task.last; ++h) {
      const T* keys = static_cast<const T*>(a.keys) + h * a.k_head;
      const T* values = static_cast<const T*>(a.values) + h * a.v_head;
      for (int64_t row = task.row; row < task.end; ++row) {
        const Tile* unasked = row == task.row ? ahead : nullptr;
        for_query_blocks(a.group, [&]<int G>(int64_t g) {
          attend_tile<T, G>(state_of(a, row, task.chunk, h), g, queries_of<T>(a, row, h), keys,
                            values, a, tile, unasked);
        });
      }
    }
  }
}

// Joins the chunks of one (row, KV head) and writes out and lse.
template <typename T>
void merge_chunks(const AttendArgs& a, int64_t row, int64_t head) {
  int64_t chunks = chunks_of(a, count_of(a, row, head)), stride = padded(a.vdim);
  for (int64_t g = 0; g < a.group; ++g) {
    float best = -kInf, total = 0;
    for (int64_t c = 0; c < chunks; ++c) {
      float max = state_of(a, row, c, head)[a.group * stride + g];
      best = max > best ? max : best;
    }
    for (int64_t c = 0; c < chunks; ++c) {
      const float* stats = state_of(a, row, c, head) + a.group * stride + g;
      total += stats[a.group] * exp2_one(stats[0] - best);
    }
    int64_t at = (row * a.heads + head) * a.group + g;
    a.lse[at] = (best + log2_one(total)) * kLn2;
    for (int64_t d = 0; d < a.vdim; d += LANES) {
      VecF out = {};
      for (int64_t c = 0; c < chunks; ++c) {
        const float* state = state_of(a, row, c, head);
        float weight = exp2_one(state[a.group * stride + g] - best);
        out += load(state + g * stride + d) * weight;
      }
      out /= total;
      T* to = static_cast<T*>(a.out) + at * a.vdim + d;
      if (a.vdim - d >= LANES) {
        store(to, out);
      } else {
        store_first(to, out, static_cast<int>(a.vdim - d));
      }
    }
  }
}

// The runs of all lists, list by list; of one list, a chunk of every row before the next chunk, so
// that what several rows read of one region is read at about the same time.
template <typename T>
void attend(const AttendArgs& a) {
  int64_t heads = heads_of(a), span = units_per_chunk(a), count = 0;
  int32_t* common = common_of(a);
  Run* runs = reinterpret_cast<Run*>(common + a.rows);
  bool alike = lists_of(a) == 1 && !a.lists;
  parallel_for(a.rows, a.threads, [&](int64_t row, int64_t) {
    common[row] = row && alike ? whole_chunks_in_common(a, row) : 0;
  });
  for (int64_t list = 0; list < lists_of(a); ++list) {
    auto has = [&](int64_t row, int64_t b) { return b * span < count_of(a, row, list * heads); };
    count += find_runs(runs + count, a.rows, chunks_of(a, a.width), list, a.threads, has,
                       [&](int64_t row) { return common[row]; });
  }
  auto task = [&](int64_t i) {
    const Run& run = runs[i];
    int64_t head = run.list * heads;
    return Task{run.row, run.row + run.rows, run.block, head, head + heads};
  };
  parallel_for(a.rows * a.heads, 1, [&](int64_t i, int64_t) {
    int64_t row = i / a.heads, head = i % a.heads;
    const T* q = static_cast<const T*>(a.q) + row * a.q_row + head * a.q_head;
    copy_queries(queries_of<T>(a, row, head), q, a.group, a.q_group, a.dim);
  });
  parallel_for(count, a.threads, [&](int64_t i, int64_t after) {
    Task next = task(after < count ? after : i);
    attend_chunk<T>(a, task(i), after < count ? &next : nullptr);
  });
  parallel_for(a.rows * a.heads, a.threads,
               [&](int64_t i, int64_t) { merge_chunks<T>(a, i / a.heads, i % a.heads); });
}

}  // namespace

extern "C" int64_t attend(const AttendArgs* a) {
  int64_t needed = floats_of(*a);
  if (needed > a->scratch_size) return needed;
  for_dtype(a->dtype, [&]<typename T>() { attend<T>(*a); });
  return 0;
}
