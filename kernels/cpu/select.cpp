// The best candidates of each (row, KV head).

#include "select.h"

extern "C" int64_t select_units(const SelectArgs* a) {
  int64_t needed = a->rows * a->heads * 2 * a->width;
  if (needed > a->scratch_size) return needed;
  select_all(*a);
  return 0;
}
