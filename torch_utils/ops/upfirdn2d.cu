// Insert zeros, pad, filter, keep every n-th pixel, in one pass; see upfirdn2d.py.
#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "portable.h"

struct Shape {
    int64_t n, c, h, w;        // input
    int64_t out_h, out_w;      // output
    int64_t fh, fw;            // filter
    int64_t up, down, left, top;
    int64_t channels_last;     // layout of input and output, 1 or 0
    int64_t flip;              // 1: correlate with the filter, 0: convolve
    double gain;

    // Position in the filter of the tap that meets offset i, counted row by row.
    PV3D_FN int64_t tap(int64_t i) const { return flip ? i : fh * fw - 1 - i; }
};

// Body of the device kernel: one output pixel, in the order of memory.
template <class T> struct Pixels {
    const T* x;
    const wide_t<T>* f;  // [fh, fw]
    T* y;
    Shape s;

    PV3D_FN void operator()(int64_t i) const {
        if (s.n * s.c * s.out_h * s.out_w < (int64_t(1) << 31))
            pixel(uint32_t(i));  // divisions of 32 bits are several times faster on a GPU
        else
            pixel(uint64_t(i));
    }

    template <class I> PV3D_FN void pixel(I i) const {
        I j = i, c = 0;
        if (s.channels_last) j = i / I(s.c), c = i - j * I(s.c);
        const I line = j / I(s.out_w), outer = line / I(s.out_h);  // outer: plane (contiguous) or sample (channels last)
        const int ox = int(j - line * I(s.out_w)), oy = int(line - outer * I(s.out_h));
        const int64_t step = s.channels_last ? s.c : 1;
        const T* plane = x + int64_t(outer) * s.h * s.w * step + c;
        const int up = int(s.up), y0 = int(oy * s.down - s.top), x0 = int(ox * s.down - s.left);
        const int a0 = first_tap(y0, up), b0 = first_tap(x0, up);
        wide_t<T> sum = 0;
        for (int a = a0, iy = (y0 + a0) / up; a < s.fh && iy < s.h; a += up, ++iy)
            for (int b = b0, ix = (x0 + b0) / up; b < s.fw && ix < s.w; b += up, ++ix)
                sum += f[s.tap(a * s.fw + b)] * wide_t<T>(plane[(iy * s.w + ix) * step]);
        y[i] = T(sum * wide_t<T>(s.gain));
    }

    // The first tap that meets a pixel and not an inserted or padded zero.
    static PV3D_FN int first_tap(int start, int up) { return start < 0 ? -start : (up - start % up) % up; }
};

// A filter as a sum of columns times rows: one term if it is separable, otherwise one for each of its rows.
template <class T> struct Terms {
    std::vector<T> columns, rows;  // [terms, fh], [terms, fw]

    Terms(const T* f, const Shape& s) : columns(s.fh), rows(s.fw) {
        const auto at = [&](int64_t a, int64_t b) { return f[s.tap(a * s.fw + b)]; };
        const int64_t taps = s.fh * s.fw;
        int64_t p = 0;  // the largest tap
        for (int64_t i = 1; i < taps; ++i)
            if (std::abs(f[s.tap(i)]) > std::abs(f[s.tap(p)])) p = i;
        const T peak = f[s.tap(p)], rounding = 2 * std::numeric_limits<T>::epsilon() * std::abs(peak);
        for (int64_t a = 0; a < s.fh; ++a) columns[a] = peak == 0 ? T(0) : at(a, p % s.fw) / peak;
        for (int64_t b = 0; b < s.fw; ++b) rows[b] = at(p / s.fw, b) * T(s.gain);
        bool separable = true;
        for (int64_t i = 0; i < taps; ++i) {
            const int64_t a = i / s.fw, b = i % s.fw;
            separable &= std::abs(at(a, b) - columns[a] * at(p / s.fw, b)) <= rounding;
        }
        if (separable) return;
        columns.assign(s.fh * s.fh, 0);
        rows.resize(taps);
        for (int64_t a = 0; a < s.fh; ++a) columns[a * s.fh + a] = 1;
        for (int64_t i = 0; i < taps; ++i) rows[i] = f[s.tap(i)] * T(s.gain);
    }
};

// Host: a tile of the output, of one plane, or of one sample of all channels when these lie together. For each row,
// the rows of the input under it are summed into a buffer that stays in the cache, and neighbours in it to the result.
template <class T> struct Tiles {
    const T* x;
    T* y;
    Shape s;
    Terms<T> terms;
    int64_t step = s.channels_last ? s.c : 1;  // between neighbouring pixels
    int64_t cols = std::min(s.out_w, std::max<int64_t>(8, kBuffer * s.up / (s.down * step))), rows = 32;
    int64_t across = (s.out_w + cols - 1) / cols, along = (s.out_h + rows - 1) / rows;
    static constexpr int64_t kBuffer = 4096, kSources = 4;

    // Weighted rows that are to be summed.
    struct Sources {
        const T* from[kSources];
        T tap[kSources];
    };

    int64_t count() const { return across * along * (s.channels_last ? s.n : s.n * s.c); }

    void operator()(int64_t item) const {
        const int64_t plane = item / (across * along), y0 = item / across % along * rows, x0 = item % across * cols;
        const int64_t start = x0 * s.down - s.left, width = std::min(cols, s.out_w - x0);
        // The buffer holds these columns of the input, of which there may be none outside.
        const int64_t begin = ceil(start), end = std::max(begin, ceil(start + (width - 1) * s.down + s.fw));
        const int64_t first = std::clamp<int64_t>(begin, 0, s.w), last = std::clamp<int64_t>(end, first, s.w);
        std::vector<T> buffer((end - begin) * step);
        const T* in = x + (plane * s.h * s.w + first) * step;
        T* inside = buffer.data() + (first - begin) * step;
        for (int64_t oy = y0; oy < std::min(y0 + rows, s.out_h); ++oy)
            for (int64_t k = 0; k * s.fh < int64_t(terms.columns.size()); ++k) {
                vertical(in, oy * s.down - s.top, terms.columns.data() + k * s.fh, inside, (last - first) * step);
                T* out = y + ((plane * s.out_h + oy) * s.out_w + x0) * step;
                horizontal(buffer.data(), start, terms.rows.data() + k * s.fw, out, width, k > 0);
            }
    }

    // The first pixel of the input at or behind position v of the enlarged one.
    int64_t ceil(int64_t v) const { return v >= 0 ? (v + s.up - 1) / s.up : -(-v / s.up); }

    // Sums the rows under the taps from position v on.
    void vertical(const T* in, int64_t v, const T* taps, T* to, int64_t length) const {
        Sources list;
        int64_t n = 0;
        bool add = false;
        for (int64_t i = std::max<int64_t>(ceil(v), 0); i < s.h && i * s.up - v < s.fh; ++i) {
            const T tap = taps[i * s.up - v];
            if (tap == 0) continue;
            if (n == kSources) sum(list, n, to, 1, 1, 1, length, add), n = 0, add = true;
            list.from[n] = in + i * s.w * step, list.tap[n++] = tap;
        }
        sum(list, n, to, 1, 1, 1, length, add);
    }

    // Sums the pixels of the buffer under each of `width` results, the first of which begins at position `start`.
    // Results that are `period` apart have the same taps.
    void horizontal(const T* from, int64_t start, const T* taps, T* out, int64_t width, bool more) const {
        const int64_t period = s.up / std::gcd(s.up, s.down), begin = ceil(start);
        for (int64_t p = 0; p < std::min(period, width); ++p) {
            const int64_t v = start + p * s.down, pixels = (width - p + period - 1) / period;
            Sources list;
            int64_t n = 0;
            bool add = more;
            const auto flush = [&] {
                sum(list, n, out + p * step, pixels, period * s.down / s.up, period, step, add), n = 0, add = true;
            };
            for (int64_t i = ceil(v); i * s.up - v < s.fw; ++i) {
                if (n == kSources) flush();
                list.from[n] = from + (i - begin) * step, list.tap[n++] = taps[i * s.up - v];
            }
            flush();
        }
    }

    // Sums n sources into `pixels` pixels, each of `length` numbers, `in` pixels apart in the sources, `out` in `to`.
    static void sum(const Sources& list, int64_t n, T* to, int64_t pixels, int64_t in, int64_t out, int64_t length,
                    bool add) {
        if (in == 1 && out == 1) length *= pixels, pixels = 1;
        n == 0   ? sum<0>(list, to, pixels, in, out, length, add)
        : n == 1 ? sum<1>(list, to, pixels, in, out, length, add)
        : n == 2 ? sum<2>(list, to, pixels, in, out, length, add)
        : n == 3 ? sum<3>(list, to, pixels, in, out, length, add)
                 : sum<4>(list, to, pixels, in, out, length, add);
    }

    template <int N>
    static void sum(const Sources& list, T* to, int64_t pixels, int64_t in, int64_t out, int64_t length, bool add) {
        if (length == 1 && in == 2 && out == 1)
            line<N, 2, 1>(list, 0, to, pixels, add);
        else if (length == 1 && in == 1 && out == 2)
            line<N, 1, 2>(list, 0, to, pixels, add);
        else
            for (int64_t i = 0; i < pixels; ++i)
                line<N, 1, 1>(list, i * in * length, to + i * out * length, length, add);
    }

    template <int N, int IN, int OUT>
    static PV3D_FN void line(const Sources& list, int64_t offset, T* to, int64_t length, bool add) {
#pragma omp simd
        for (int64_t i = 0; i < length; ++i) {
            T total = add ? to[i * OUT] : T(0);
#pragma GCC unroll 4
            for (int k = 0; k < N; ++k) total += list.tap[k] * list.from[k][offset + i * IN];
            to[i * OUT] = total;
        }
    }
};

struct Run {
    const void *x, *f;
    void* y;
    Shape s;
    bool device_body;  // host: run what the GPU would run
    Launch where;

    template <class T> int run() {
        const auto in = static_cast<const T*>(x);
        const auto taps = static_cast<const wide_t<T>*>(f);
        const auto out = static_cast<T*>(y);
        if (device_body) return for_each(Pixels<T>{in, taps, out, s}, s.n * s.c * s.out_h * s.out_w, where);
#ifndef __CUDACC__
        const Tiles<T> tiles{in, out, s, Terms<T>(taps, s)};
        return for_each(tiles, tiles.count(), where);
#else
        return -1;
#endif
    }
};

PV3D_API int pv3d_upfirdn2d(const void* x, const void* f, void* y, int64_t n, int64_t c, int64_t h, int64_t w,
                            int64_t out_h, int64_t out_w, int64_t fh, int64_t fw, int64_t up, int64_t down,
                            int64_t left, int64_t top, int64_t channels_last, int64_t flip, double gain,
                            int64_t type, int64_t device_body, int64_t threads, void* stream) {
    const Shape s{n, c, h, w, out_h, out_w, fh, fw, up, down, left, top, channels_last, flip, gain};
    return dispatch(type, Run{x, f, y, s, kDevice || device_body, Launch{threads, stream}});
}
