// How far a row reads to cover a share of attention.

#include "sample.h"

extern "C" int64_t sample(const SampleArgs* a) {
  int64_t needed = a->rows * a->heads * floats_of(*a);
  if (needed > a->scratch_size) return needed;
  for_dtype(a->dtype, [&]<typename T>() { sample_all<T>(*a, a->lowest); });
  return 0;
}
