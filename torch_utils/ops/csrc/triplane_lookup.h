// Where samples of rays lie in planes, on a processor: found for whole vectors of samples, then used twice, to
// look up features and to add up their gradients.
#pragma once
#include <algorithm>
#include <vector>

#include "host_simd.h"
#include "triplane_render.h"

// Arrays begin at cache lines and are zero.
template <class T> struct Buffer {
    std::vector<T> data;
    T* p;
    explicit Buffer(int64_t n) : data(n + 64 / sizeof(T)) {
        p = data.data() + (64 - reinterpret_cast<uintptr_t>(data.data()) % 64) % 64 / sizeof(T);
    }
    Buffer(const Buffer&) = delete;
    operator T*() const { return p; }
};

// The pixel whose centre lies at or before each coordinate, at most two beyond the edges of n pixels, and the
// fraction of the way to the next one.
template <class T> inline VecInt<T> pixel_before(Vec<T> x, int64_t n, Vec<T>* fraction) {
    x = x > -2 ? x : Vec<T>{} - 2;  // nan too
    x = x < T(n + 1) ? x : Vec<T>{} + T(n + 1);
    VecInt<T> pixel = __builtin_convertvector(x, VecInt<T>);  // towards zero
    pixel += __builtin_convertvector(pixel, Vec<T>) > x;  // true is -1
    *fraction = x - __builtin_convertvector(pixel, Vec<T>);
    return pixel;
}

// Samples of some rays, one after the other: sample s of the ray number i is i * samples + s. Corners are those
// of find_corners, vector by vector: a sample has four in each plane.
template <class T> struct Lookup {
    const Scene& a;
    const int64_t stride;  // samples, rounded up to vectors
    int64_t rays = 0, first = 0;
    Buffer<T> depth, point;  // [stride + L], [3, stride + L]: coordinates in units of half a box
    Buffer<Int<T>> at;  // [3, 4, stride] elements from the sample's first plane; -1: outside, where features are zero
    Buffer<T> weight, poison;  // [3, 4, stride]; [stride] 0, or nan for a point that is not finite
    Buffer<T> zeros;  // [C]
    static constexpr int L = kWidth<T>;

    Lookup(const Scene& scene, int64_t most_rays)
        : a(scene), stride(round_up(most_rays * a.samples, L)), depth(stride + L), point(3 * (stride + L)),
          at(12 * stride), weight(12 * stride), poison(stride), zeros(a.c) {}

    // Takes the rays begin ... end - 1 and finds their points. Planes of a new frame come to the cache in the order
    // of memory, which is faster than by lookups.
    void find_points(int64_t begin, int64_t end) {
        first = begin, rays = end - begin;
        for (int64_t r = first; r < end; ++r) {
            if (r % a.rays) continue;
            fetch(a.planes, r / a.rays);
            if (a.grad_planes) fetch(a.grad_planes, r / a.rays);
        }
        const T* given = static_cast<const T*>(a.depths) + first * a.samples;
        std::copy(given, given + rays * a.samples, depth.p);
        for (int i = 0; i < 3; ++i)
            for (int64_t r = 0; r < rays; ++r) {  // the end of a ray is overwritten by the next one
                const T origin = static_cast<const T*>(a.origins)[3 * (first + r) + i];
                const T direction = static_cast<const T*>(a.directions)[3 * (first + r) + i];
                for (int64_t s = r * a.samples; s < (r + 1) * a.samples; s += L) {
                    const Vec<T> along = product(load(depth + s), Vec<T>{} + direction);
                    store<T>(point + i * (stride + L) + s, product(origin + along, Vec<T>{} + T(a.scale)));
                }
            }
        std::fill(poison.p, poison + stride, T(0));
    }

    // Brings the planes of a frame to the cache if they fit there.
    void fetch(const void* planes, int64_t frame) const {
        constexpr int64_t kLine = 64, kMost = 1 << 20;  // bytes
        const int64_t size = 3 * a.c * a.h * a.w * sizeof(T);
        const char* start = static_cast<const char*>(planes) + frame * a.step_n * sizeof(T);
        for (int64_t i = 0; size <= kMost && i < size; i += kLine) __builtin_prefetch(start + i);
    }

    // Finds the corners in one plane.
    void find_corners(int plane) {
        const T *u = point + a.axis(2 * plane) * (stride + L), *v = point + a.axis(2 * plane + 1) * (stride + L);
        for (int64_t s = 0; s < rays * a.samples; s += L) {
            const Vec<T> x = product(load(u + s) + 1, Vec<T>{} + T(a.w) / 2) - T(0.5);
            const Vec<T> y = product(load(v + s) + 1, Vec<T>{} + T(a.h) / 2) - T(0.5);
            store<T>(poison + s, load(poison + s) + (x - x) + (y - y));
            Vec<T> right, below;
            const VecInt<T> column = pixel_before<T>(x, a.w, &right),
                            row = pixel_before<T>(y, a.h, &below);
            for (int i = 0; i < 4; ++i) {
                const VecInt<T> m = column + (i & 1), n = row + (i >> 1);
                const VecInt<T> inside = (m >= 0) & (m < Int<T>(a.w)) & (n >= 0) & (n < Int<T>(a.h));
                const VecInt<T> where = n * Int<T>(a.step_y) + m * Int<T>(a.step_x) + Int<T>(plane * a.step_p);
                const int64_t to = (plane * 4 + i) * stride + s;
                store_as(at + to, where | ~inside);  // -1 outside
                store<T>(weight + to, (i & 1 ? right : 1 - right) * (i >> 1 ? below : 1 - below) * (T(1) / 3));
            }
        }
    }

    // Writes the features of all samples, the sum over planes, to rows of a matrix.
    void gather(T* out, int64_t columns) {
        for (int64_t r = 0; r < rays; ++r) {
            const T* planes = static_cast<const T*>(a.planes) + (first + r) / a.rays * a.step_n;
            for (int64_t s = r * a.samples; s < (r + 1) * a.samples; ++s) {
                const T* from[12];
                for (int i = 0; i < 12; ++i) from[i] = at[i * stride + s] < 0 ? zeros.p : planes + at[i * stride + s];
                pieces<T>(0, a.c, [&](int64_t c, auto sum) {
                    sum = sum + poison[s];
                    for (int i = 0; i < 12; ++i) sum += weight[i * stride + s] * load_as<decltype(sum)>(from[i] + c);
                    store_as(out + s * columns + c, sum);
                });
            }
        }
    }

    // Adds gradients of features, rows of a matrix, to channels begin ... end - 1 of one plane.
    void scatter(int plane, const T* grad, int64_t columns, int64_t begin, int64_t end) {
        for (int64_t r = 0; r < rays; ++r) {
            T* planes = static_cast<T*>(a.grad_planes) + (first + r) / a.rays * a.step_n;
            for (int64_t s = r * a.samples; s < (r + 1) * a.samples; ++s)
                for (int64_t i = (plane * 4) * stride + s; i < (plane * 4 + 4) * stride; i += stride) {
                    if (at[i] < 0) continue;
                    T* to = planes + at[i];
                    pieces<T>(begin, end, [&](int64_t c, auto like) {
                        using V = decltype(like);
                        store_as(to + c, load_as<V>(to + c) + weight[i] * load_as<V>(grad + s * columns + c));
                    });
                }
        }
    }
};
