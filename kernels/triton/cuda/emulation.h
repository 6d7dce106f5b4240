// Blocks of CUDA threads on a CPU: the part of the language that kernels here use.
//
// Every thread of a block has a stack of its own. One runs until it waits: at a barrier for the
// whole block, at a warp's primitive for its lanes. Who waits for somebody that waits elsewhere, or
// has ended, is told so instead of hanging. Warps take turns in an order that is asked for: what
// depends on it lacks a barrier. Shared memory is garbage when a block begins.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shared_memory")))

struct Place {
  int x, y, z;
};
inline Place threadIdx, blockIdx, gridDim;

// The linker marks where the section begins and ends.
extern "C" char __start_shared_memory[], __stop_shared_memory[];

namespace emulation {

constexpr int LANES = 32, MOST_THREADS = 1024, STACK = 1 << 16, GARBAGE = 0x7f;
enum State { READY, AT_WARP, AT_BLOCK, ENDED };

struct Thread {
  State state;
  int line;            // of the source, where it waits
  unsigned exchanges;  // warp primitives that it has passed
  bool started;
  jmp_buf context;
};

inline Thread threads[MOST_THREADS];
inline unsigned long long exchanged[2][MOST_THREADS];
inline char stacks[MOST_THREADS][STACK];
inline int current, size;
inline jmp_buf scheduler;
inline void (*body)();
inline char message[200];

inline void leave(State state, int line) {
  threads[current].state = state;
  threads[current].line = line;
  if (!_setjmp(threads[current].context)) _longjmp(scheduler, 1);
}

inline void begin() {
  body();
  threads[current].state = ENDED;
  _longjmp(scheduler, 1);
}

// Runs a thread until it waits or ends.
inline void resume(int thread) {
  current = threadIdx.x = thread;
  if (_setjmp(scheduler)) return;
  if (threads[thread].started) _longjmp(threads[thread].context, 1);
  threads[thread].started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack = {stacks[thread], 0, STACK};
  makecontext(&context, begin, 0);
  setcontext(&context);
}

// Whether threads wait at the same place; else says who does not.
inline bool together(const char* whose, int first, int count) {
  for (int i = first + 1; i < first + count; ++i) {
    const Thread &one = threads[first], &other = threads[i];
    if (one.state == other.state && (one.state == ENDED || one.line == other.line)) continue;
    const auto where = [](const Thread& it) { return it.state == ENDED ? 0 : it.line; };
    snprintf(message, sizeof message,
             "block (%d, %d): threads %d and %d of one %s wait at lines %d and %d (0: has ended)",
             blockIdx.x, blockIdx.y, first, i, whose, where(one), where(other));
    return false;
  }
  return true;
}

// Runs a warp until all its lanes wait for the block, or have ended.
inline bool run_warp(int first, bool backwards) {
  for (;;) {
    bool waits = false;
    for (int i = 0; i < LANES; ++i) {
      const int thread = first + (backwards ? LANES - 1 - i : i);
      if (threads[thread].state == READY) resume(thread);
      waits |= threads[thread].state == AT_WARP;
    }
    if (!waits) return true;
    if (!together("warp", first, LANES)) return false;
    for (int i = 0; i < LANES; ++i) threads[first + i].state = READY;
  }
}

// Order 0: warps and lanes ascend; 1: they descend; else warps are shuffled by it.
inline bool run_block(unsigned order) {
  const int warps = size / LANES;
  memset(__start_shared_memory, GARBAGE, __stop_shared_memory - __start_shared_memory);
  for (int i = 0; i < size; ++i) threads[i] = {};
  do {
    int turns[MOST_THREADS / LANES];
    for (int i = 0; i < warps; ++i) {
      const int other = order < 2 ? i : static_cast<int>(rand_r(&order) % (i + 1));
      turns[i] = turns[other];
      turns[other] = i;
    }
    for (int i = 0; i < size; ++i)
      if (threads[i].state == AT_BLOCK) threads[i].state = READY;
    for (int i = 0; i < warps; ++i)
      if (!run_warp(LANES * turns[order == 1 ? warps - 1 - i : i], order == 1)) return false;
    if (!together("block", 0, size)) return false;
  } while (threads[0].state != ENDED);
  return true;
}

// Runs a grid, block after block; null, or what went wrong.
inline const char* run(void (*kernel)(), Place grid, int block, unsigned order) {
  body = kernel;
  gridDim = grid;
  size = block;
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
      if (!run_block(order)) return message;
  return nullptr;
}

// Every lane gives a value and waits; then any may look at any other's. The values of one exchange
// stay until all lanes have come to the next.
template <class T>
struct Exchange {
  unsigned long long* values;

  Exchange(T value, int line) {
    const unsigned turn = threads[current].exchanges++ % 2;
    values = exchanged[turn] + current / LANES * LANES;
    memcpy(&values[current % LANES], &value, sizeof value);
    leave(AT_WARP, line);
  }

  T of(int lane) const {
    T value;
    memcpy(&value, &values[lane], sizeof value);
    return value;
  }
};

}  // namespace emulation

inline void __syncthreads(int line = __builtin_LINE()) {
  emulation::leave(emulation::AT_BLOCK, line);
}

template <class T>
T __shfl_down_sync(unsigned, T value, int step, int line = __builtin_LINE()) {
  const int lane = emulation::current % emulation::LANES, from = lane + step;
  return emulation::Exchange<T>(value, line).of(from < emulation::LANES ? from : lane);
}

template <class T>
T __shfl_up_sync(unsigned, T value, int step, int line = __builtin_LINE()) {
  const int lane = emulation::current % emulation::LANES;
  return emulation::Exchange<T>(value, line).of(lane < step ? lane : lane - step);
}

inline unsigned __ballot_sync(unsigned, bool vote, int line = __builtin_LINE()) {
  const emulation::Exchange<bool> votes(vote, line);
  unsigned bits = 0;
  for (int lane = 0; lane < emulation::LANES; ++lane)
    bits |= static_cast<unsigned>(votes.of(lane)) << lane;
  return bits;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

// Threads take turns where they wait, so nobody comes between.
inline int atomicAdd(int* at, int value) {
  const int before = *at;
  *at += value;
  return before;
}

inline int __float_as_int(float value) {
  int bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float __int_as_float(int bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
