// Scores of single tokens by what their codes stand for: q . key is a sum of one table entry per
// sub-vector. Tokens of segments without a record are scored by their keys.
//
//   prepare  (row, segment, KV head)  tables of q . centroid and, by their exponentials, the mass of
//            the segment: a token costs no exp. Without a record: the logits of keys.
//   merge    (row, KV head)           log-sum-exp over the segments, in order
//   finish   (row, segment, KV head)  shares, reduced over the group
//
// No logit of a coded token is stored. Query heads go in blocks of four; a group that is no multiple
// of four is padded with heads of no weight.

#include "args.h"
#include "dot.h"
#include "lookup.h"
#include "parallel.h"

namespace {

constexpr int64_t kRun = 128;  // tokens scored by their keys per task
constexpr int kCodes = 256;    // codes that a byte can hold

// The arguments, sizes that follow from them, and where things begin in scratch, in floats.
struct Scene : CodeArgs {
  int64_t sub_dim, blocks, spans, padded_entries, query, table;
  int64_t tables_at, masses_at, lse_at, places_at, logits_at;

  explicit Scene(const CodeArgs& args) : CodeArgs(args) {
    sub_dim = dim / subspaces;
    blocks = (group + 3) / 4;
    spans = (width + segment - 1) / segment;
    padded_entries = (entries + 3) / 4 * 4;
    query = subspaces * blocks * 4 * padded(sub_dim);
    table = subspaces * padded_entries * 4;
    tables_at = rows * heads * query;
    masses_at = tables_at + rows * spans * heads * blocks * 2 * table;
    lse_at = masses_at + rows * heads * spans * blocks * 8;
    places_at = lse_at + rows * heads * blocks * 4;
    logits_at = places_at + rows * spans * 2;
  }
};

// Candidate tokens [first, last) of a segment, and its record; -1 without one.
struct Span {
  int64_t first, last, record;
  int64_t count() const { return last > first ? last - first : 0; }
};

Span span_of(const Scene& a, int64_t row, int64_t s) {
  int64_t first = s * a.segment, last = first + a.segment;
  if (first < a.begin[row]) first = a.begin[row];
  if (last > a.end[row]) last = a.end[row];
  return {first, last, s < a.segments ? a.records[row * a.r_row + s] : -1};
}

// Queries [m, 4 * blocks, padded(D / m)].
template <typename T>
Query<T>* queries_of(const Scene& a, int64_t row, int64_t head) {
  return reinterpret_cast<Query<T>*>(a.scratch) + (row * a.heads + head) * a.query;
}

// For each block of query heads tables [m, entries, 4], then their exponentials.
float* tables_of(const Scene& a, int64_t row, int64_t s, int64_t head) {
  return a.scratch + a.tables_at + ((row * a.spans + s) * a.heads + head) * a.blocks * 2 * a.table;
}

// For each segment and block of query heads four maxima, then four sums.
float* masses_of(const Scene& a, int64_t row, int64_t head) {
  return a.scratch + a.masses_at + (row * a.heads + head) * a.spans * a.blocks * 8;
}

float* lse_of(const Scene& a, int64_t row, int64_t head) {
  return a.scratch + a.lse_at + (row * a.heads + head) * a.blocks * 4;
}

// Where the logits of a segment without a record begin.
int64_t* place_of(const Scene& a, int64_t row, int64_t s) {
  return reinterpret_cast<int64_t*>(a.scratch + a.places_at) + row * a.spans + s;
}

float* logits_of(const Scene& a, int64_t row, int64_t s, int64_t head, const Span& span) {
  return a.scratch + *place_of(a, row, s) + head * a.group * logit_stride(span.count());
}

// Floats of scratch; writes the places if there is scratch.
int64_t lay_out(const Scene& a) {
  int64_t next = a.logits_at;
  for (int64_t row = 0; row < a.rows; ++row) {
    for (int64_t s = 0; s < a.spans; ++s) {
      Span span = span_of(a, row, s);
      if (a.scratch) *place_of(a, row, s) = next;
      if (span.record < 0) next += a.heads * a.group * logit_stride(span.count());
    }
  }
  return next;
}

template <typename T>
void prepare_queries(const Scene& a, int64_t row, int64_t head) {
  const T* q = static_cast<const T*>(a.q) + row * a.q_row + head * a.q_head;
  Query<T>* to = queries_of<T>(a, row, head);
  for (int64_t i = 0; i < a.query; ++i) to[i] = Query<T>{};
  for (int64_t j = 0; j < a.subspaces; ++j) {
    copy_queries<T>(to + j * a.blocks * 4 * padded(a.sub_dim), q + j * a.sub_dim, a.group,
                    a.q_group, a.sub_dim);
  }
}

// Scaled q . centroid for every sub-vector and code; what pads the entries repeats the last code.
template <typename T>
void fill_table(const Scene& a, const Query<T>* q, const T* book, int64_t heads, float* table) {
  constexpr int kRows = LANES / 4;
  int64_t stride = padded(a.sub_dim), last = a.entries - 1;
  for (int64_t j = 0; j < a.subspaces; ++j) {
    for (int64_t k = 0; k < a.padded_entries; k += kRows) {
      const T* row[kRows];
      for (int i = 0; i < kRows; ++i) row[i] = book + (k + i < last ? k + i : last) * a.sub_dim;
      VecF acc[LANES] = {}, by_code[LANES];
      dot_rows<T, 4>(acc, q, stride, row, a.sub_dim);
      UNROLL for (int i = 0; i < LANES; ++i) by_code[i] = acc[i % 4 * kRows + i / 4];
      store(table + (j * a.padded_entries + k) * 4,
            sum_each(by_code) * static_cast<float>(a.scale));
    }
    book += a.entries * a.sub_dim;
    q += a.blocks * 4 * stride;
  }
  for (int64_t g = heads; g < 4; ++g) {
    for (int64_t k = 0; k < a.padded_entries; ++k) table[k * 4 + g] = -kInf;
  }
}

template <int M>
Lookup<M> lookup_of(const Scene& a, const Span& span, int64_t head) {
  const uint8_t* codes = a.codes + (span.record * a.heads + head) * a.subspaces * a.segment;
  return {codes, a.segment, a.subspaces, a.padded_entries};
}

template <typename T, int M>
void prepare_codes(const Scene& a, int64_t row, int64_t s, int64_t head, const Span& span) {
  const T* book = static_cast<const T*>(a.codebooks);
  book += (span.record * a.heads + head) * a.subspaces * a.entries * a.sub_dim;
  for (int64_t block = 0; block < a.blocks; ++block) {
    const Query<T>* q = queries_of<T>(a, row, head) + block * 4 * padded(a.sub_dim);
    float* table = tables_of(a, row, s, head) + block * 2 * a.table;
    int64_t heads = a.group - 4 * block < 4 ? a.group - 4 * block : 4;
    fill_table<T>(a, q, book, heads, table);
    Vec4 max, sum;
    lookup_of<M>(a, span, head).mass(table, table + a.table, span.first - s * a.segment,
                                     span.last - s * a.segment, heads, &max, &sum);
    float* mass = masses_of(a, row, head) + (s * a.blocks + block) * 8;
    store4(mass, max);
    store4(mass + 4, sum);
  }
}

// Logits of one run of a segment's tokens from their keys, for all KV heads of a token in turn.
template <typename T>
void prepare_keys(const Scene& a, int64_t row, int64_t s, int64_t run, const Span& span) {
  constexpr int64_t kStep = LANES / kGroup;
  const int32_t* slots = a.slots + row * a.s_row;
  int64_t first = span.first + run * kRun, stride = logit_stride(span.count());
  int64_t last = first + kRun < span.last ? first + kRun : span.last;
  auto key_at = [&](int64_t t) {
    int64_t slot = slots[t < last ? t : last - 1];
    return static_cast<const T*>(a.keys) + slot * a.k_slot;
  };
  for (int64_t t = first; t < last; t += kStep) {
    for (int64_t h = 0; h < a.heads; ++h) {
      for (int64_t j = 0; j < kStep; ++j) {
        prefetch_row(key_at(t + kStep + j) + h * a.k_head, a.dim);
      }
      for_query_blocks(a.group, [&]<int G>(int64_t g) {
        constexpr int kRows = LANES / G;
        int64_t end = t + kStep < last ? t + kStep : last;
        float* logits = logits_of(a, row, s, h, span) + g * stride;
        for (int64_t u = t; u < end; u += kRows) {
          VecF sums = {};
          for (int64_t j = 0; j < a.subspaces; ++j) {
            const T* key[kRows];
            for (int i = 0; i < kRows; ++i) {
              key[i] = key_at(u + i < end ? u + i : end - 1) + h * a.k_head + j * a.sub_dim;
            }
            const Query<T>* q = queries_of<T>(a, row, h);
            q += (j * a.blocks * 4 + g) * padded(a.sub_dim);
            VecF acc[LANES] = {};
            dot_rows<T, G>(acc, q, padded(a.sub_dim), key, a.sub_dim);
            sums += sum_each(acc);
          }
          put_logits<G>(logits + u - span.first, stride, end - u,
                        sums * static_cast<float>(a.scale));
        }
      });
    }
  }
}

// Log-sum-exp of each query head over the segments; -inf outside the candidates.
void merge(const Scene& a, int64_t row, int64_t head) {
  float* out = a.out + (row * a.heads + head) * a.width;
  float* lse = lse_of(a, row, head);
  int64_t begin = a.begin[row], end = a.end[row] > begin ? a.end[row] : begin;
  for (int64_t t = 0; t < begin; ++t) out[t] = -kInf;
  for (int64_t t = end; t < a.width; ++t) out[t] = -kInf;
  for (int64_t g = 0; g < a.blocks * 4; ++g) lse[g] = 0;
  for (int64_t g = 0; g < a.group; ++g) {
    Mass whole = {-kInf, 0};
    for (int64_t s = 0; s < a.spans; ++s) {
      Span span = span_of(a, row, s);
      if (!span.count()) continue;
      const float* mass = masses_of(a, row, head) + (s * a.blocks + g / 4) * 8 + g % 4;
      Mass part = {mass[0], mass[4]};
      if (span.record < 0) {
        part = mass_of(logits_of(a, row, s, head, span) + g * logit_stride(span.count()),
                       span.count());
      }
      whole = joined(whole, part);
    }
    lse[g] = log_sum_exp(whole);
  }
}

template <int M>
void finish_codes(const Scene& a, int64_t row, int64_t s, int64_t head, const Span& span) {
  float* tables = tables_of(a, row, s, head);
  float* out = a.out + (row * a.heads + head) * a.width + span.first;
  for (int64_t i = 0; i < a.blocks * a.padded_entries; ++i) {
    float* entry = tables + i / a.padded_entries * 2 * a.table + i % a.padded_entries * 4;
    store4(entry, load4(entry) - load4(lse_of(a, row, head) + i / a.padded_entries * 4));
  }
  Lookup<M> lookup = lookup_of<M>(a, span, head);
  int64_t first = span.first - s * a.segment;
  if (M != 1) {
    lookup.reduce(tables, a.blocks, 2 * a.table, a.group, a.mean, first, span.count(), out);
    return;
  }
  float share[kCodes];  // one sub-vector: tokens of one code have one score
  uint8_t every[kCodes];
  for (int k = 0; k < kCodes; ++k) every[k] = static_cast<uint8_t>(k);
  Lookup<M> each = {every, 0, 1, a.padded_entries};
  each.reduce(tables, a.blocks, 2 * a.table, a.group, a.mean, 0, a.entries, share);
  for (int64_t t = 0; t < span.count(); ++t) out[t] = share[lookup.codes[first + t]];
}

// Calls visit.template operator()<M>() for m sub-vectors, M = 0 where there is no such code.
template <typename Visit>
INLINE void for_subspaces(int64_t m, const Visit& visit) {
  switch (m) {
    case 1: return visit.template operator()<1>();
    case 2: return visit.template operator()<2>();
    case 4: return visit.template operator()<4>();
    default: return visit.template operator()<0>();
  }
}

template <typename T>
void score_codes(const Scene& a) {
  lay_out(a);
  parallel_for(a.rows * a.heads, 1,
               [&](int64_t i, int64_t) { prepare_queries<T>(a, i / a.heads, i % a.heads); });
  int64_t runs = (a.segment + kRun - 1) / kRun, parts = runs > a.heads ? runs : a.heads;
  parallel_for(a.rows * a.spans * parts, a.threads, [&](int64_t i, int64_t) {
    int64_t row = i / parts / a.spans, s = i / parts % a.spans, part = i % parts;
    Span span = span_of(a, row, s);
    if (span.record < 0 && part * kRun < span.count()) {
      prepare_keys<T>(a, row, s, part, span);
    } else if (span.record >= 0 && part < a.heads && span.count()) {
      for_subspaces(a.subspaces, [&]<int M>() { prepare_codes<T, M>(a, row, s, part, span); });
    }
  });
  parallel_for(a.rows * a.heads, a.threads,
               [&](int64_t i, int64_t) { merge(a, i / a.heads, i % a.heads); });
  parallel_for(a.rows * a.spans * a.heads, a.threads, [&](int64_t i, int64_t) {
    int64_t row = i / a.heads / a.spans, s = i / a.heads % a.spans, head = i % a.heads;
    Span span = span_of(a, row, s);
    if (!span.count()) return;
    if (span.record >= 0) {
      for_subspaces(a.subspaces, [&]<int M>() { finish_codes<M>(a, row, s, head, span); });
      return;
    }
    reduce_logits(logits_of(a, row, s, head, span), logit_stride(span.count()), a.group,
                  lse_of(a, row, head), a.mean, span.count(),
                  a.out + (row * a.heads + head) * a.width + span.first);
  });
}

}  // namespace

extern "C" int64_t score_codes_scratch(const CodeArgs* a) {
  Scene scene(*a);
  return lay_out(scene);
}

extern "C" void score_codes(const CodeArgs* a) {
  Scene scene(*a);
  switch (a->dtype) {
    case kBFloat16: return score_codes<BF16>(scene);
    case kFloat16: return score_codes<F16>(scene);
    default: return score_codes<float>(scene);
  }
}
