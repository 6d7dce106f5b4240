// A step's choice by shares of attention: a sample says how far down scores are read, heads are
// allotted as many units, and these are selected.

#include "allot.h"
#include "sample.h"
#include "select.h"

namespace {

AllotArgs allotment(const CoverArgs& a, const float* lowest, float* scratch) {
  const SampleArgs& s = a.sample;
  AllotArgs all = {};
  all.scratch = scratch, all.scores = s.scores, all.begin = s.begin, all.end = s.end;
  all.num_units = a.num_units, all.counts = a.ceilings, all.pooled = a.pooled;
  all.lowest = lowest, all.out = a.counts;
  all.rows = s.rows, all.heads = s.heads, all.width = s.width, all.threads = s.threads;
  all.least = a.least;
  return all;
}

SelectArgs selection(const CoverArgs& a, float* scratch) {
  const SampleArgs& s = a.sample;
  SelectArgs all = {};
  all.scratch = scratch, all.scores = s.scores, all.table = s.table, all.begin = s.begin;
  all.end = s.end, all.num_units = a.num_units, all.counts = a.counts;
  all.logical = a.units, all.physical = a.units + s.rows * s.heads * s.width;
  all.rows = s.rows, all.heads = s.heads, all.width = s.width, all.threads = s.threads;
  all.t_row = s.t_row, all.c_row = s.heads, all.c_head = 1;
  for (int64_t i = 0; i < s.rows * s.heads; ++i) all.n = a.counts[i] > all.n ? a.counts[i] : all.n;
  return all;
}

}  // namespace

extern "C" int64_t cover(const CoverArgs* a) {
  const SampleArgs& s = a->sample;
  int64_t lists = s.rows * s.heads, own = lists * floats_of(s);
  int64_t needed = own + lists + lists * 2 * s.width;
  if (needed > s.scratch_size) return needed;
  float *lowest = s.scratch + own, *rest = lowest + lists;
  for_dtype(s.dtype, [&]<typename T>() { sample_all<T>(s, lowest); });
  allot_all(allotment(*a, lowest, rest));
  select_all(selection(*a, rest));
  return 0;
}
