// How many units each (row, KV head) reads.

#include "allot.h"

extern "C" int64_t allot(const AllotArgs* a) {
  int64_t needed = pool_floats(*a);
  if (needed > a->scratch_size) return needed;
  allot_all(*a);
  return 0;
}
