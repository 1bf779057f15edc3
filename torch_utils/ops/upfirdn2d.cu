// Insert zeros, pad, filter, keep every n-th pixel, in one pass; see upfirdn2d.py.
#include <algorithm>
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

// Host: a strip of output rows of one plane, or of one sample of all channels when these lie together. The part of
// the enlarged and padded input under it is laid out in a buffer that stays in the cache; filtering that needs no
// case of an edge.
template <class T> struct Strips {
    const T *x, *f;
    T* y;
    Shape s;
    static constexpr int64_t kRows = 16;  // of a strip

    int64_t count() const { return (s.out_h + kRows - 1) / kRows * (s.channels_last ? s.n : s.n * s.c); }

    void operator()(int64_t item) const {
        const int64_t step = s.channels_last ? s.c : 1, strips = (s.out_h + kRows - 1) / kRows;
        const int64_t plane = item / strips, y0 = item % strips * kRows;
        const int64_t rows = std::min(kRows, s.out_h - y0), wide = ((s.out_w - 1) * s.down + s.fw) * step;
        const int64_t tall = (rows - 1) * s.down + s.fh;
        std::vector<T> buffer(tall * wide);
        const T* in = x + plane * s.h * s.w * step;
        T* out = y + (plane * s.out_h + y0) * s.out_w * step;
        for (int64_t r = 0; r < tall; ++r) fill(in, y0 * s.down + r - s.top, buffer.data() + r * wide, wide, step);
        for (int64_t r = 0; r < rows; ++r)
            filter(buffer.data() + r * s.down * wide, wide, out + r * s.out_w * step, step);
    }

    // Lays out row v of the enlarged input, which may lie outside.
    void fill(const T* in, int64_t v, T* row, int64_t wide, int64_t step) const {
        if (v < 0 || v % s.up || v / s.up >= s.h) return;
        const T* from = in + v / s.up * s.w * step;
        int64_t first = 0;  // input column
        while (first * s.up + s.left < 0) ++first;
        const int64_t last = std::min(s.w, (wide / step - s.left + s.up - 1) / s.up);  // one past
        if (s.up == 1 && last > first)
            std::copy(from + first * step, from + last * step, row + (first + s.left) * step);
        else
            for (int64_t i = first; i < last; ++i)
                std::copy(from + i * step, from + (i + 1) * step, row + (i * s.up + s.left) * step);
    }

    void filter(const T* rows, int64_t wide, T* out, int64_t step) const {
        if (s.fh == 4 && s.fw == 4 && s.down == 1)
            correlate<4, 4, 1>(rows, wide, out, step, s.out_w);
        else if (s.fh == 4 && s.fw == 4 && s.down == 2 && step == 1)
            correlate<4, 4, 2>(rows, wide, out, step, s.out_w);
        else if (s.fh == 4 && s.fw == 4 && s.down == 2)
            for (int64_t i = 0; i < s.out_w; ++i) correlate<4, 4, 1>(rows + 2 * i * step, wide, out + i * step, step, 1);
        else
            correlate(rows, wide, out, step);
    }

    // `pixels` neighbouring results of a row.
    template <int FH, int FW, int DOWN>
    void correlate(const T* rows, int64_t wide, T* out, int64_t step, int64_t pixels) const {
        T g[FH * FW];
        for (int i = 0; i < FH * FW; ++i) g[i] = f[s.tap(i)] * T(s.gain);
        const int64_t length = pixels * step;
#pragma omp simd
        for (int64_t i = 0; i < length; ++i) {
            T sum = 0;
#pragma GCC unroll 4
            for (int a = 0; a < FH; ++a)
#pragma GCC unroll 4
                for (int b = 0; b < FW; ++b) sum += g[a * FW + b] * rows[a * wide + i * DOWN + b * step];
            out[i] = sum;
        }
    }

    void correlate(const T* rows, int64_t wide, T* out, int64_t step) const {
        for (int64_t i = 0; i < s.out_w; ++i)
            for (int64_t k = 0; k < step; ++k) {
                T sum = 0;
                for (int64_t a = 0; a < s.fh; ++a)
                    for (int64_t b = 0; b < s.fw; ++b)
                        sum += f[s.tap(a * s.fw + b)] * rows[a * wide + (i * s.down + b) * step + k];
                out[i * step + k] = sum * T(s.gain);
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
        const Strips<T> strips{in, taps, out, s};
        return for_each(strips, strips.count(), where);
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
