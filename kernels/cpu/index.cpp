// Records of segments: k-means of the keys of each (segment, KV head, sub-vector), and the code of
// each token. One worker does a whole set, so nothing depends on the threads or on other sets.

#include "args.h"
#include "kmeans.h"
#include "parallel.h"

namespace {

Kmeans kmeans_of(const IndexArgs& a) {
  Kmeans set = {};
  set.count = a.segment, set.dim = a.dim / a.subspaces, set.clusters = a.entries;
  set.cosine = a.cosine;
  return set;
}

int64_t pieces_of(const IndexArgs& a) { return a.capacity > 0 ? a.segment / a.capacity : 0; }

// Quiet keys get a cluster where k-means has one left besides.
bool has_quiet(const IndexArgs& a) { return a.cosine && a.entries - pieces_of(a) > 1; }

int64_t scratch_of(const IndexArgs& a) { return kmeans_of(a).lay_out(nullptr); }

template <typename T>
INLINE T* book_of(const IndexArgs& a, int64_t set) {
  return static_cast<T*>(a.codebooks) + set * a.entries * (a.dim / a.subspaces);
}

// Rows of the segment's tokens; elements that are not finite count as zero.
template <typename T>
void gather(const IndexArgs& a, const Kmeans& set, int64_t segment, int64_t offset) {
  for (int64_t t = 0; t < set.count; ++t) {
    const T* key = static_cast<const T*>(a.keys) + a.slots[segment * a.segment + t] * a.k_slot;
    for (int64_t d = 0; d < set.dim; d += LANES) {
      VecF x = load_at_most(key + offset + d, set.dim - d);
      store(set.row(t) + d, x - x == 0 ? x : VecF{});
    }
  }
}

// Stores x / by as centroid c of a codebook, and leaves in x what is stored.
template <typename T>
void store_centroid(const Kmeans& set, T* book, int64_t c, float* x, float by) {
  for (int64_t d = 0; d < set.dim; d += LANES) {
    T stored[LANES];
    int64_t n = set.dim - d < LANES ? set.dim - d : LANES;
    store(stored, load(x + d) / by);
    __builtin_memcpy(book + c * set.dim + d, stored, n * sizeof(T));
    store(x + d, load(stored));
  }
}

// Cosine: clusters of limited size, centroids being the mean row; what was skipped goes to the
// nearest of them. Else centroids are rounded first, and every token gets the nearest one stored.
template <typename T>
void finish(const IndexArgs& a, Kmeans& set, T* book) {
  if (set.cosine) {
    set.assign(set.count);
    if (has_quiet(a)) set.gather_quiet();
    if (a.capacity > 0) {
      set.add_members(false);
      set.split(a.capacity);
    }
    set.grow(a.entries);
    set.add_members(false);
  } else {
    for (int64_t c = 0; c < set.clusters; ++c) {
      for (int64_t d = 0; d < set.dim; ++d) set.sum(c)[d] = set.centroids[d * set.width() + c];
    }
  }
  for (int64_t c = 0; c < set.clusters; ++c) {
    float members = static_cast<float>(set.sizes[c] > 0 ? set.sizes[c] : 1);
    store_centroid(set, book, c, set.sum(c), set.cosine ? members : 1);
    set.set_centroid(c, set.sum(c), set.cosine ? set.inverse_length(set.sum(c)) : 1);
  }
}

template <typename T>
void index_set(const IndexArgs& a, int64_t i, float* scratch) {
  int64_t part = i % a.subspaces, head = i / a.subspaces % a.heads;
  int64_t segment = i / a.subspaces / a.heads;
  Kmeans set = kmeans_of(a);
  set.first = a.skips[segment];
  set.lay_out(scratch);
  // The rest of the codes is for quiet keys and for what is split.
  set.clusters -= pieces_of(a) + has_quiet(a);
  gather<T>(a, set, segment, head * a.k_head + part * set.dim);
  set.add_points();
  set.start();
  for (int64_t step = 0; step < a.iterations; ++step) {
    set.assign(set.count);
    set.update();
  }
  int64_t to = (a.records[segment] * a.heads + head) * a.subspaces + part;
  finish(a, set, book_of<T>(a, to));
  uint8_t* codes = a.codes + to * a.segment;
  for (int64_t t = set.first; t < set.count; ++t) codes[t] = static_cast<uint8_t>(set.labels[t]);
  set.assign(set.cosine ? set.first : set.count);
  int64_t nearest = set.cosine ? set.first : set.count;
  for (int64_t t = 0; t < nearest; ++t) codes[t] = static_cast<uint8_t>(set.labels[t]);
}

template <typename T>
void index_segments(const IndexArgs& a) {
  int64_t sets = a.count * a.heads * a.subspaces, next = 0;
  parallel_for(a.threads < sets ? a.threads : sets, a.threads, [&](int64_t worker, int64_t) {
    float* scratch = a.scratch + worker * scratch_of(a);
    for (int64_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < sets;) {
      index_set<T>(a, i, scratch);
    }
  });
}

}  // namespace

extern "C" int64_t index_segments(const IndexArgs* a) {
  int64_t needed = a->threads * scratch_of(*a);
  if (needed > a->scratch_size) return needed;
  for_dtype(a->dtype, [&]<typename T>() { index_segments<T>(*a); });
  return 0;
}
