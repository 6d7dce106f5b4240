// Scores of single tokens by what their codes stand for: q . key is a sum of one table entry per
// sub-vector. Tokens of segments without a record are scored by their keys.
//
//   prepare  (row, segment, KV head)  tables of q . centroid and, by their exponentials, the mass
//            of the segment: a token costs no exp. Without a record: the logits of keys.
//   merge    (row, KV head)           log-sum-exp over the segments, in order
//   finish   (row, segment, KV head)  shares, reduced over the group
//
// No logit of a coded token is stored. Query heads go in blocks of four; a group that is no
// multiple of four is padded with heads of no weight.

#include "code_keys.h"
#include "code_tables.h"
#include "parallel.h"

namespace {

constexpr int kCodes = 256;    // codes that a byte can hold

bool mean_of(const Scene& a) { return a.reduction == kMeanSoftmax; }

template <typename T, typename Tables>
void prepare_codes(const Scene& a, int64_t row, int64_t s, int64_t head, const Span& span) {
  for (int64_t block = 0; block < a.blocks; ++block) {
    float* table = tables_of(a, row, s, head) + block * 2 * a.table;
    int64_t heads = heads_of(a, block);
    fill_table<T, Tables>(a, row, head, span.record, block, table);
    if (a.reduction == kMax) continue;
    Vec4 max, sum;
    tables_at<Tables>(a, span, head).mass(table, table + a.table, span.first - s * a.segment,
                                          span.count(), heads, &max, &sum);
    float* mass = masses_of(a, row, head) + (s * a.blocks + block) * 8;
    store4(mass, max);
    store4(mass + 4, sum);
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
  if (a.reduction == kMax) return;
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
    if (a.known) whole = joined(whole, {a.known[(row * a.heads + head) * a.group + g], 1});
    lse[g] = log_sum_exp(whole);
  }
}

template <typename Tables>
void finish_codes(const Scene& a, int64_t row, int64_t s, int64_t head, const Span& span) {
  float* tables = tables_of(a, row, s, head);
  float* out = a.out + (row * a.heads + head) * a.width + span.first;
  Tables lookup = tables_at<Tables>(a, span, head);
  for (int64_t block = 0; block < a.blocks; ++block) {
    lookup.subtract(tables + block * 2 * a.table, lse_of(a, row, head) + block * 4);
  }
  int64_t first = span.first - s * a.segment;
  if (a.subspaces > 1) {
    lookup.reduce(tables, 2 * a.table, a.group, mean_of(a), first, span.count(), out);
    return;
  }
  float share[kCodes];  // tokens of one code have one score
  uint8_t every[kCodes];
  for (int k = 0; k < kCodes; ++k) every[k] = static_cast<uint8_t>(k);
  Tables{every, 0, 1, a.padded_entries}.reduce(tables, 2 * a.table, a.group, mean_of(a), 0,
                                               a.padded_entries, share);
  lookup.copy(share, first, span.count(), out);
}

template <typename T>
void score_codes(const Scene& a) {
  lay_out(a, true);
  parallel_for(a.rows * a.heads, 1,
               [&](int64_t i, int64_t) { prepare_queries<T>(a, i / a.heads, i % a.heads); });
  int64_t runs = (a.segment + kRun - 1) / kRun, parts = runs > a.heads ? runs : a.heads;
  parallel_for(a.rows * a.spans * parts, a.threads, [&](int64_t i, int64_t) {
    int64_t row = i / parts / a.spans, s = i / parts % a.spans, part = i % parts;
    Span span = span_of(a, row, s);
    if (span.record < 0 && part * kRun < span.count()) {
      prepare_keys<T>(a, row, s, part, span);
    } else if (span.record >= 0 && part < a.heads && span.count()) {
      for_tables(a, [&]<typename Tables>() { prepare_codes<T, Tables>(a, row, s, part, span); });
    }
  });
  parallel_for(a.rows * a.heads, a.threads,
               [&](int64_t i, int64_t) { merge(a, i / a.heads, i % a.heads); });
  parallel_for(a.rows * a.spans * a.heads, a.threads, [&](int64_t i, int64_t) {
    int64_t row = i / a.heads / a.spans, s = i / a.heads % a.spans, head = i % a.heads;
    Span span = span_of(a, row, s);
    if (!span.count()) return;
    if (span.record >= 0) {
      for_tables(a, [&]<typename Tables>() { finish_codes<Tables>(a, row, s, head, span); });
      return;
    }
    reduce_logits(logits_of(a, row, s, head, span), logit_stride(span.count()), a.group,
                  lse_of(a, row, head), mean_of(a), span.count(),
                  a.out + (row * a.heads + head) * a.width + span.first);
  });
}

}  // namespace

extern "C" int64_t score_codes(const CodeArgs* a) {
  Scene scene(*a);
  int64_t needed = lay_out(scene, false);
  if (needed > a->scratch_size) return needed;
  for_dtype(a->dtype, [&]<typename T>() { score_codes<T>(scene); });
  return 0;
}
