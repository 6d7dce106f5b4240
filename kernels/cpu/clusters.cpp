// Scores of single tokens by records of clusters: those of open clusters by their codes, those of
// segments without a record by their keys. The others have no score, or that of their centroids
// where scores are to be shares of all attention.

#include "cluster_steps.h"

namespace {

// Scores of all tokens as their centroids'.
void put_shut(const Probe& a, int64_t row, int64_t head, float* out) {
  float* ranks = a.ranks(row, head);
  reduce(a, a.logits(row, head), a.cells, lse_of(a, row, head), a.cells, ranks);
  for (int64_t s = 0; s < a.spans; ++s) {
    Span span = span_of(a, row, s);
    if (span.record < 0 || !span.count()) continue;
    Record record(a, span, head);
    for (int64_t t = span.first; t < span.last; ++t) {
      out[t] = ranks[s * kClusters + record.label(t - s * a.segment)];
    }
  }
}

void put_scores(const Probe& a, int64_t row, int64_t head) {
  int64_t count = rank(a, row, head);
  float *out = a.out + (row * a.heads + head) * a.width, *shares = a.shares(row, head);
  const Opened* opened = a.opened(row, head);
  const int32_t* tokens = a.tokens(row, head);
  for (int64_t u = 0; u < a.width; ++u) out[u] = -kInf;
  if (a.known) put_shut(a, row, head, out);
  for (int64_t s = 0; s < a.spans; ++s) {
    for (int64_t i = opened[s].first, end = i + opened[s].count; i < end; ++i) {
      if (tokens[i] >= a.begin[row] && tokens[i] < a.end[row]) out[tokens[i]] = shares[i];
    }
  }
  for (int64_t i = entered_of(a, row, head); i < count; ++i) {
    if (shares[i] > -kInf || shares[i] != shares[i]) out[tokens[i]] = shares[i];
  }
}

template <typename T>
void score_clusters(const Probe& a) {
  for_lists<T>(a, put_scores);
}

}  // namespace

extern "C" int64_t score_clusters(const CodeArgs* a) {
  Probe scene(*a);
  int64_t needed = scene.floats;
  if (needed > a->scratch_size) return needed;
  for_dtype(a->dtype, [&]<typename T>() { score_clusters<T>(scene); });
  return 0;
}
