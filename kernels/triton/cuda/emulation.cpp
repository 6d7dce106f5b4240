// `select.cu` as a library of the CPU.

#include "emulation.h"

#include "select.cu"

namespace {
const Arguments* given;
}

extern "C" __attribute__((visibility("default")))
const char* emulate(const Arguments* arguments, int heads, int rows, unsigned order) {
  given = arguments;
  return emulation::run([] { select_units(*given); }, {heads, rows, 1}, THREADS, order);
}
