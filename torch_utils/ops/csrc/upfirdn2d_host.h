// upfirdn2d on a CPU: in tiles that stay in the first cache, down and across one after the other.
#pragma once
#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "upfirdn2d.h"

// A filter as a sum of columns times rows: one term if it is separable, otherwise one for each of its rows.
template <class T> struct Terms {
    int64_t count = 1;
    std::vector<T> columns, rows;  // [count, fh], [count, fw]

    Terms(const T* f, const Shape& s) : columns(s.fh), rows(s.fw) {
        const auto at = [&](int64_t a, int64_t b) { return f[s.tap(a * s.fw + b)]; };
        int64_t peak = 0;  // the largest tap
        for (int64_t i = 1; i < s.fh * s.fw; ++i)
            if (std::abs(f[s.tap(i)]) > std::abs(f[s.tap(peak)])) peak = i;
        const T most = f[s.tap(peak)], rounding = 2 * std::numeric_limits<T>::epsilon() * std::abs(most);
        for (int64_t a = 0; a < s.fh; ++a) columns[a] = most == 0 ? T(0) : at(a, peak % s.fw) / most;
        bool separable = true;
        for (int64_t a = 0; a < s.fh; ++a)
            for (int64_t b = 0; b < s.fw; ++b)
                separable &= std::abs(at(a, b) - columns[a] * at(peak / s.fw, b)) <= rounding;
        if (!separable) {
            count = s.fh;
            columns.assign(s.fh * s.fh, 0);
            rows.resize(s.fh * s.fw);
            for (int64_t a = 0; a < s.fh; ++a) columns[a * s.fh + a] = 1;
        }
        for (int64_t k = 0; k < count; ++k)
            for (int64_t b = 0; b < s.fw; ++b) rows[k * s.fw + b] = at(separable ? peak / s.fw : k, b) * T(s.gain);
    }
};

// Host: a tile of the output, of one plane, or of one sample of all channels when these lie together. For each row of
// it, the rows of the input under the filter are summed into a buffer, and then neighbours in the buffer. A tile is
// so small that the rows of the input stay in the first cache.
template <class T> struct Tiles {
    const T* x;
    T* y;
    Shape s;
    Terms<T> terms;
    int64_t step = s.channels_last ? s.c : 1;  // between neighbouring pixels
    int64_t cols = std::min(s.out_w, std::max<int64_t>(8, 512 * s.up / (s.down * step))), rows = 16;
    int64_t across = (s.out_w + cols - 1) / cols, along = (s.out_h + rows - 1) / rows;

    struct Source {
        const T* from;
        T tap;
    };

    int64_t count() const { return across * along * (s.channels_last ? s.n : s.n * s.c); }

    void operator()(int64_t item) const {
        const int64_t plane = item / (across * along), y0 = item / across % along * rows, x0 = item % across * cols;
        const int64_t start = x0 * s.down - s.left, width = std::min(cols, s.out_w - x0);
        // Columns of the input in the buffer, with zeros outside the input, and those inside it.
        const int64_t begin = ceil(start), end = std::max(begin, ceil(start + (width - 1) * s.down + s.fw));
        const int64_t first = std::clamp<int64_t>(begin, 0, s.w), last = std::clamp<int64_t>(end, first, s.w);
        std::vector<T> buffer((end - begin) * step);
        std::vector<Source> list(std::max(s.fh, s.fw));
        const T* in = x + (plane * s.h * s.w + first) * step;
        T* inside = buffer.data() + (first - begin) * step;
        for (int64_t oy = y0; oy < std::min(y0 + rows, s.out_h); ++oy) {
            T* out = y + ((plane * s.out_h + oy) * s.out_w + x0) * step;
            const int64_t ahead = oy + 1 < s.out_h ? width * step : 0;
            for (int64_t k = 0; k < terms.count; ++k) {
                vertical(in, oy * s.down - s.top, &terms.columns[k * s.fh], list.data(), inside, (last - first) * step);
                // Otherwise a third of the time is waiting for the memory that the next row goes to.
                for (int64_t i = 0; i < ahead; i += 64 / sizeof(T)) __builtin_prefetch(out + s.out_w * step + i, 1);
                horizontal(buffer.data(), start, &terms.rows[k * s.fw], list.data(), out, width, k > 0);
            }
        }
    }

    // The first pixel of the input at or behind position v of the enlarged one.
    int64_t ceil(int64_t v) const { return v >= 0 ? (v + s.up - 1) / s.up : -(-v / s.up); }

    // Sums the rows of the input under the taps, the first of which is at position v.
    void vertical(const T* in, int64_t v, const T* taps, Source* list, T* to, int64_t length) const {
        int64_t n = 0;
        for (int64_t i = std::max<int64_t>(ceil(v), 0); i < s.h && i * s.up - v < s.fh; ++i)
            if (taps[i * s.up - v] != 0) list[n++] = {in + i * s.w * step, taps[i * s.up - v]};
        sum(list, n, to, 1, 1, 1, length, false);
    }

    // Sums the pixels of the buffer under the taps, for `width` results, the first of which is at position `start`.
    void horizontal(const T* from, int64_t start, const T* taps, Source* list, T* out, int64_t width,
                    bool add) const {
        const int64_t period = s.up / std::gcd(s.up, s.down);  // results so far apart meet the same taps
        const int64_t first = ceil(start);
        for (int64_t p = 0; p < std::min(period, width); ++p) {
            const int64_t v = start + p * s.down;
            int64_t n = 0;
            for (int64_t i = ceil(v); i * s.up - v < s.fw; ++i)
                list[n++] = {from + (i - first) * step, taps[i * s.up - v]};
            const int64_t pixels = (width - p + period - 1) / period;
            sum(list, n, out + p * step, pixels, period * s.down / s.up, period, step, add);
        }
    }

    // Sums n sources into pixels of `length` numbers, which are `in` pixels apart in the sources and `out` in `to`.
    static void sum(const Source* list, int64_t n, T* to, int64_t pixels, int64_t in, int64_t out, int64_t length,
                    bool add) {
        if (in == 1 && out == 1) length *= pixels, pixels = 1;
        using Sum = void (*)(const Source*, T*, int64_t, int64_t, int64_t, int64_t);
        static constexpr Sum kSums[2][5] = {
            {sum<0, false>, sum<1, false>, sum<2, false>, sum<3, false>, sum<4, false>},
            {sum<0, true>, sum<1, true>, sum<2, true>, sum<3, true>, sum<4, true>},
        };
        do {
            kSums[add][std::min<int64_t>(n, 4)](list, to, pixels, in, out, length);
            list += 4, n -= 4, add = true;
        } while (n > 0);
    }

    template <int N, bool ADD>
    static void sum(const Source* at, T* to, int64_t pixels, int64_t in, int64_t out, int64_t length) {
        if (length == 1 && in == 2 && out == 1)
            line<N, ADD, 2, 1>(at, 0, to, pixels);
        else if (length == 1 && in == 1 && out == 2)
            line<N, ADD, 1, 2>(at, 0, to, pixels);
        else
            for (int64_t i = 0; i < pixels; ++i)
                line<N, ADD, 1, 1>(at, i * in * length, to + i * out * length, length);
    }

    template <int N, bool ADD, int IN, int OUT>
    static PV3D_FN void line(const Source* at, int64_t offset, T* to, int64_t length) {
#pragma omp simd simdlen(64 / sizeof(T))  // the widest there are; compilers prefer half of that
        for (int64_t i = 0; i < length; ++i) {
            T total = ADD ? to[i * OUT] : T(0);
#pragma GCC unroll 4
            for (int k = 0; k < N; ++k) total += at[k].tap * at[k].from[offset + i * IN];
            to[i * OUT] = total;
        }
    }
};
