// K-means of one set of points, in float32 and in a fixed order of sums.
//
// Points are kept twice: as rows, for sums over members, and turned, kTokens of them side by side
// for each channel. So the product of a point and a centroid is a lane that adds up channel after
// channel, and finding the nearest centroid takes no step across lanes.
#pragma once

#include "dot.h"

constexpr int64_t kTokens = 2 * LANES;
#if LANES == 16 || defined(__aarch64__)
constexpr int kTile = 8;  // centroids per step: 8 x 2 vectors of sums stay in registers
#else
constexpr int kTile = 4;
#endif

// A key is quiet where it is no longer than this, in lengths of the segment's longest.
constexpr float kQuiet = 1.0f / 64;

INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Sizes of a set, and its arrays in a worker's scratch. Centroids do not learn from the points
// before `first`. With `cosine` points and centroids have length one, or zero.
struct Kmeans {
  int64_t count, dim, clusters, first;
  bool cosine;
  float* rows;             // [count, padded(dim)]
  float* turned;           // [count / kTokens, dim, kTokens]
  float *factor, *square;  // [count]: a point is row * factor, and half its square
  float *own, *misfit;     // [count]: similarity to its centroid; how badly that fits
  float* centroids;        // [dim, clusters]
  float* bias;             // [clusters]: similarity = x . c + bias
  float* sums;             // [clusters, padded(dim)]
  int32_t *labels, *sizes;

  int64_t points() const { return round_up(count, kTokens); }
  int64_t width() const { return round_up(clusters, kTile); }

  // Lays the arrays out from `scratch` on; returns how many floats they take.
  int64_t lay_out(float* scratch) {
    int64_t next = 0;
    auto take = [&](int64_t floats) {
      float* at = scratch + next;
      next += round_up(floats, LANES);
      return at;
    };
    rows = take(count * padded(dim));
    turned = take(points() * dim);
    factor = take(count), square = take(count), own = take(points()), misfit = take(points());
    centroids = take(dim * width()), bias = take(width()), sums = take(width() * padded(dim));
    labels = reinterpret_cast<int32_t*>(take(points()));
    sizes = reinterpret_cast<int32_t*>(take(width()));
    return next;
  }

  float* row(int64_t t) const { return rows + t * padded(dim); }
  float* sum(int64_t c) const { return sums + c * padded(dim); }

  // What brings x to length one; 0 for zeros. Works on x times a power of two near its inverse, so
  // that no square overflows or vanishes.
  float inverse_length(const float* x) const {
    VecF best = {}, total = {};
    for (int64_t d = 0; d < dim; d += LANES) {
      VecF y = load(x + d);
      best = vmax(best, vmax(y, -y));
    }
    uint32_t exponent = as_bits(splat(max_lanes(best)))[0] >> 23;
    float power = as_float(splat_bits((exponent < 253 ? 254 - exponent : 1) << 23))[0];
    for (int64_t d = 0; d < dim; d += LANES) {
      VecF y = load(x + d) * power;
      total += y * y;
    }
    float squares = sum_lanes(total);
    return squares > 0 ? power / __builtin_elementwise_sqrt(squares) : 0;
  }

  float half_square(const float* x) const {
    VecF total = {};
    for (int64_t d = 0; d < dim; d += LANES) total += load(x + d) * load(x + d);
    return sum_lanes(total) / 2;
  }

  // Prepares the rows, which are there.
  void add_points() {
    for (int64_t t = 0; t < count; ++t) {
      factor[t] = cosine ? inverse_length(row(t)) : 1;
      square[t] = cosine ? (factor[t] > 0 ? 0.5f : 0) : half_square(row(t));
    }
    if (cosine) quieten();
    for (int64_t i = 0; i < points() * dim; i += LANES) store(turned + i, VecF{});
    for (int64_t t = 0; t < count; ++t) {
      float* to = turned + t / kTokens * kTokens * dim + t % kTokens;
      for (int64_t d = 0; d < dim; ++d) to[d * kTokens] = row(t)[d] * factor[t];
    }
    clear_centroids();
  }

  // Those behind the last one are never the nearest.
  void clear_centroids() {
    for (int64_t i = 0; i < dim * width(); ++i) centroids[i] = 0;
    for (int64_t c = clusters; c < width(); ++c) bias[c] = -kInf;
  }

  // Centroid c becomes x * times.
  void set_centroid(int64_t c, const float* x, float times) {
    for (int64_t d = 0; d < dim; ++d) centroids[d * width() + c] = x[d] * times;
    bias[c] = cosine ? 0 : -half_square(x) * times * times;
  }

  // Centroids at equal strides.
  void start() {
    for (int64_t c = 0; c < clusters; ++c) {
      int64_t t = first + c * (count - first) / clusters;
      set_centroid(c, row(t), factor[t]);
    }
  }

  // The nearest centroid of the points before `last`, the lower among equals.
  void assign(int64_t last) {
    for (int64_t t = 0; t < last; t += kTokens) {
      const float* x = turned + t * dim;
      VecF best[2] = {splat(-kInf), splat(-kInf)};
      VecI label[2] = {};
      for (int64_t c = 0; c < width(); c += kTile) {
        VecF acc[kTile][2] = {};
        const float* y = centroids + c;
        for (int64_t d = 0; d < dim; ++d, y += width()) {
          VecF low = load(x + d * kTokens), high = load(x + d * kTokens + LANES);
          UNROLL for (int i = 0; i < kTile; ++i) {
            acc[i][0] += low * y[i];
            acc[i][1] += high * y[i];
          }
        }
        UNROLL for (int i = 0; i < kTile; ++i) {
          UNROLL for (int half = 0; half < 2; ++half) {
            VecF near = acc[i][half] + bias[c + i];
            label[half] = near > best[half] ? static_cast<int32_t>(c + i) - VecI{} : label[half];
            best[half] = near > best[half] ? near : best[half];
          }
        }
      }
      for (int half = 0; half < 2; ++half) store(own + t + half * LANES, best[half]);
      __builtin_memcpy(labels + t, label, sizeof label);
    }
  }

  // Sums of the members, of points or of rows, and how many they are.
  void add_members(bool of_points) {
    for (int64_t i = 0; i < width() * padded(dim); i += LANES) store(sums + i, VecF{});
    for (int64_t c = 0; c < clusters; ++c) sizes[c] = 0;
    for (int64_t t = first; t < count; ++t) {
      float* to = sum(labels[t]);
      float times = of_points ? factor[t] : 1;
      for (int64_t d = 0; d < dim; d += LANES) {
        store(to + d, load(to + d) + load(row(t) + d) * times);
      }
      ++sizes[labels[t]];
    }
  }

  // Centroids become the means of their members; the i-th one without any moves to the i-th worst
  // fitting point. Directions of members that cancel stay as they are.
  void update() {
    add_members(true);
    bool ranked = false;
    int64_t learned = count - first, seeds = learned < clusters ? learned : clusters, worst = first;
    for (int64_t c = 0; c < clusters; ++c) {
      if (sizes[c]) {
        float times = cosine ? inverse_length(sum(c)) : 1.0f / static_cast<float>(sizes[c]);
        if (times > 0) set_centroid(c, sum(c), times);
        continue;
      }
      if (!ranked) {
        for (int64_t t = first; t < count; ++t) misfit[t] = own[t] - square[t];
        ranked = true;
      }
      if (seeds > 0) {
        worst = first;
        for (int64_t t = first + 1; t < count; ++t) worst = misfit[t] < misfit[worst] ? t : worst;
        misfit[worst] = kInf;
        --seeds;
      }
      set_centroid(c, row(worst), factor[worst]);
    }
  }

  // Takes the direction of points far shorter than the longest learned one: no query scores them
  // high, and in the mean of others they would only dilute it.
  void quieten() {
    float longest = kInf;  // its inverse
    for (int64_t t = first; t < count; ++t) {
      if (factor[t] > 0 && factor[t] < longest) longest = factor[t];
    }
    for (int64_t t = first; t < count; ++t) {
      if (factor[t] >= longest / kQuiet) factor[t] = square[t] = 0;
    }
  }

  // Points without a direction get a cluster of their own, behind the others.
  void gather_quiet() {
    for (int64_t t = first; t < count; ++t) {
      if (factor[t] == 0) labels[t] = static_cast<int32_t>(clusters);
    }
    ++clusters;
  }

  // Cuts clusters of more than `capacity` members, whose sizes are known: the first ones keep their
  // label, the next get the first label that is free, and so on.
  void split(int64_t capacity) {
    int64_t free = clusters;
    for (int64_t c = 0; c < clusters; ++c) {
      if (sizes[c] <= capacity) continue;
      int64_t nth = 0;
      for (int64_t t = first; t < count; ++t) {
        if (labels[t] != c) continue;
        if (nth >= capacity) labels[t] = static_cast<int32_t>(free + nth / capacity - 1);
        ++nth;
      }
      free += (nth - 1) / capacity;
    }
  }

  // From now on there are `most` clusters.
  void grow(int64_t most) {
    clusters = most;
    clear_centroids();
  }
};
