// Queries in sub-vectors, and logits of tokens whose segments have no record: from their keys.
#pragma once

#include "code_scene.h"

constexpr int64_t kRun = 128;  // tokens scored by their keys per task

// Copies the queries of one (row, KV head) to where `queries_of` says.
template <typename T>
void prepare_queries(const Scene& a, int64_t row, int64_t head) {
  const T* q = static_cast<const T*>(a.q) + row * a.q_row + head * a.q_head;
  Query<T>* to = queries_of<T>(a, row, head);
  for (int64_t i = 0; i < a.query; ++i) to[i] = Query<T>{};
  for (int64_t j = 0; j < a.subspaces; ++j) {
    copy_queries<T>(to, q + j * a.sub_dim, a.group, a.q_group, a.sub_dim);
    to += a.blocks * 4 * padded(a.sub_dim);
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
