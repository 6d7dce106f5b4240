// Task loops on the caller's OpenMP pool: torch's own, handed over once, so no second pool exists.
#pragma once

#include <stdint.h>

typedef void (*ParallelRegion)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
extern __attribute__((visibility("hidden"))) ParallelRegion parallel_region;

// Runs task(i, next) for i in [0, count), each once, on at most `threads` threads. Which thread
// runs a task is left to chance, so a task must compute the same whoever runs it. `next` is the
// task the same thread runs afterwards, for prefetching; `count` when there is none, or too few are
// left for every thread to have one: what is claimed ahead keeps others idle.
template <typename Task>
static void parallel_for(int64_t count, int64_t threads, const Task& task) {
  struct Job {
    const Task* task;
    int64_t count, threads, next;
    int64_t claim() {
      int64_t i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      return i < count ? i : count;
    }
    int64_t claim_ahead() {
      return __atomic_load_n(&next, __ATOMIC_RELAXED) + threads <= count ? claim() : count;
    }
  };
  auto body = [](void* data) {
    Job* job = static_cast<Job*>(data);
    for (int64_t i = job->claim(); i < job->count;) {
      int64_t next = job->claim_ahead();
      (*job->task)(i, next);
      i = next < job->count ? next : job->claim();
    }
  };
  if (threads > count) threads = count;
  Job job = {&task, count, threads, 0};
  if (threads <= 1) {
    body(&job);
  } else {
    parallel_region(body, &job, static_cast<unsigned>(threads), 0);
  }
}

// As parallel_for, with task(i, worker): workers are numbered below min(threads, count), and one runs
// one task at a time.
template <typename Task>
static void parallel_workers(int64_t count, int64_t threads, const Task& task) {
  int64_t workers = threads < count ? threads : count, next = 0;
  parallel_for(workers, workers, [&](int64_t worker, int64_t) {
    for (;;) {
      int64_t i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (i >= count) return;
      task(i, worker);
    }
  });
}
