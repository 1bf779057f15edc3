// upfirdn2d on a GPU: blocks of packs for what networks do, pixel by pixel for everything else.
#pragma once
#include "upfirdn2d.h"

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

// What networks do: channels last, a filter of at most 4 x 4, factors of 1 or 2. A thread makes ROWS x COLS pixels of a
// pack of channels, the first of which begins at a pixel of the input and not at an inserted zero, so that which taps
// meet which pixels is known when this is compiled. Every pack of the input is loaded once and used at once.
template <class T, int UP, int DOWN, int ROWS, int COLS> struct Blocks {
    using A = wide_t<T>;
    static constexpr int V = kPack<T>, kTaps = 4;  // channels of a pack; taps along a side, some of which may be 0
    static constexpr int kInRows = ((ROWS - 1) * DOWN + kTaps - 1) / UP + 1;  // of the input under the block
    static constexpr int kInCols = ((COLS - 1) * DOWN + kTaps - 1) / UP + 1;
    static_assert(UP == 1 || (DOWN == 1 && ROWS % UP == 0 && COLS % UP == 0));

    const Pack<T, V>* x;
    const A* f;
    Pack<T, V>* y;
    Shape s;
    // Pixels of the first block that lie before the output.
    int skip_y = int(s.top & (UP - 1)), skip_x = int(s.left & (UP - 1));
    Divisor<uint32_t> packs{s.c / V}, across{(s.out_w + skip_x + COLS - 1) / COLS}, along{(s.out_h + skip_y + ROWS - 1) / ROWS};

    int64_t count() const { return s.n * along.by * across.by * packs.by; }

    static bool fits(const void* x, const void* y, const Shape& s) {
        const int64_t most = int64_t(1) << 31;
        return s.channels_last && s.up == UP && s.down == DOWN && s.fh <= kTaps && s.fw <= kTaps && s.c % V == 0 &&
               aligned(x) && aligned(y) && s.h * s.w * s.c < most && s.out_h * s.out_w * s.c < most &&
               s.n * (s.out_h + ROWS) * (s.out_w + COLS) * s.c < most * V * ROWS * COLS;
    }

    PV3D_FN void operator()(int64_t i) const {
        const auto [line, pack] = packs.split(uint32_t(i));  // packs lie together, then blocks of a row
        const auto [band, column] = across.split(line);
        const auto [sample, row] = along.split(band);
        const int oy = int(row) * ROWS - skip_y, ox = int(column) * COLS - skip_x;
        const int iy = (oy * DOWN - int(s.top)) / UP, ix = (ox * DOWN - int(s.left)) / UP;
        const uint32_t h = uint32_t(s.h), w = uint32_t(s.w), step = packs.by;
        const Pack<T, V>* in = x + sample * s.h * s.w * step + pack;
        Pack<T, V>* out = y + sample * s.out_h * s.out_w * step + pack;
        const uint32_t corner = (uint32_t(iy) * w + uint32_t(ix)) * step;
        A taps[kTaps][kTaps], sum[ROWS][COLS][V] = {};
        read(taps);
#pragma unroll
        for (int r = 0; r < kInRows; ++r) {
#pragma unroll
            for (int c = 0; c < kInCols; ++c) {
                const bool inside = uint32_t(iy + r) < h && uint32_t(ix + c) < w;
                A pixel[V];
                load(in, corner + (r * w + c) * step, inside, pixel);
                add(r, c, pixel, taps, sum);
            }
#pragma unroll
            for (int p = 0; p < ROWS; ++p)
                if ((p * DOWN + kTaps - 1) / UP == r) write(sum[p], oy + p, ox, out);
        }
    }

    PV3D_FN void read(A (&taps)[kTaps][kTaps]) const {
        const int fh = int(s.fh), fw = int(s.fw), last = fh * fw - 1;
        const A gain = A(s.gain);
#pragma unroll
        for (int a = 0; a < kTaps; ++a)
#pragma unroll
            for (int b = 0; b < kTaps; ++b)
                taps[a][b] = a < fh && b < fw ? f[s.flip ? a * fw + b : last - a * fw - b] * gain : A(0);
    }

    // Adds pixel (r, c) of those under the block to all results whose taps meet it.
    static PV3D_FN void add(int r, int c, const A (&pixel)[V], const A (&taps)[kTaps][kTaps], A (&sum)[ROWS][COLS][V]) {
#pragma unroll
        for (int p = 0; p < ROWS; ++p)
#pragma unroll
            for (int q = 0; q < COLS; ++q) {
                const int a = r * UP - p * DOWN, b = c * UP - q * DOWN;
                if (a < 0 || a >= kTaps || b < 0 || b >= kTaps) continue;
#pragma unroll
                for (int k = 0; k < V; ++k) sum[p][q][k] += taps[a][b] * pixel[k];
            }
    }

    PV3D_FN void write(const A (&sum)[COLS][V], int oy, int ox, Pack<T, V>* out) const {
#pragma unroll
        for (int q = 0; q < COLS; ++q)
            if (uint32_t(oy) < uint32_t(s.out_h) && uint32_t(ox + q) < uint32_t(s.out_w))
                store(sum[q], out + (oy * int(s.out_w) + ox + q) * int(packs.by));
    }
};
