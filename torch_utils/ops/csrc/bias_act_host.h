// bias_act on a CPU: loops over memory that compilers vectorise.
#pragma once
#include "bias_act.h"

// A run of memory: the channels of a pixel, or the pixels of a channel.
template <class T> struct HostForward {
    Args<T> a;
    const T *x, *y;
    T* out;

    void operator()(int64_t run) const {
        const Args<T> args = a;
        const int64_t length = a.last ? a.channels : a.inner;
        const T *in = x + run * length, *result = y ? y + run * length : nullptr;
        T* to = out + run * length;
        if (result) {
#pragma omp simd
            for (int64_t j = 0; j < length; ++j) to[j] = in[j] * args.factor(result[j]);
        } else if (a.last) {
            const int64_t sample = run / a.inner;
            const T add = a.noise ? a.noise_of(sample)[run % a.inner] * *a.strength : T(0);
            for (int64_t j = 0; j < length; ++j) {
                const T scale = a.scale ? a.scale[sample * length + j] : T(1), bias = a.bias ? a.bias[j] : T(0);
                to[j] = args.activate(in[j] * scale + (add + bias));
            }
        } else {
            const T scale = a.scale ? a.scale[run] : T(1), bias = a.bias ? a.bias[run % a.channels] : T(0);
            if (a.noise) {
                const T *noise = a.noise_of(run / a.channels), k = *a.strength;
#pragma omp simd
                for (int64_t j = 0; j < length; ++j) to[j] = args.activate(in[j] * scale + (noise[j] * k + bias));
            } else {
#pragma omp simd
                for (int64_t j = 0; j < length; ++j) to[j] = args.activate(in[j] * scale + bias);
            }
        }
    }
};

// Dx and sums, without x. An item is a part of a row (n, c); with channels last a part of the pixels of a sample.
template <class T> struct HostBackward {
    Gradients<T> g;
    static constexpr int kLanes = 256;  // at a time: channels, or pixels of a row

    void operator()(int64_t item) const {
        const int64_t first = item % g.parts * g.part, i = item / g.parts;
        const int64_t stop = first + g.part < g.a.inner ? first + g.part : g.a.inner;
        if (!g.a.last) return row(item, i, first, stop - first);
        for (int64_t c = 0; c < g.a.channels; c += kLanes) columns(item, i, first, stop, c);
    }

    // Sums are taken in kLanes lanes: a single one would not vectorise.
    void row(int64_t item, int64_t r, int64_t first, int64_t length) const {
        const Gradients<T> copy = g;  // a local one, so that the compiler knows its numbers do not change
        const Args<T>& args = copy.a;
        const T *noise = args.noise_of(r / args.channels), scale = args.scale ? args.scale[r] : T(1);
        T s0[kLanes] = {}, s1[kLanes] = {}, s2[kLanes] = {};
        for (int64_t p = 0; p < length; p += kLanes) {
            const int n = int(length - p < kLanes ? length - p : kLanes);
            const int64_t start = r * args.inner + first + p;
            const T *dy = g.dy + start, *y = g.y + start, *m = noise ? noise + first + p : dy;
            T* dx = g.dx + start;
#pragma omp simd
            for (int k = 0; k < n; ++k) {
                const T d = dy[k] * args.factor(y[k]);
                dx[k] = d * scale, s0[k] += d, s1[k] += d * args.before(y[k]), s2[k] += d * m[k];
            }
        }
        for (int k = 1; k < kLanes && k < length; ++k) s0[0] += s0[k], s1[0] += s1[k], s2[0] += s2[k];
        store(item, s0[0], s1[0], s2[0]);
    }

    void columns(int64_t item, int64_t sample, int64_t first, int64_t stop, int64_t c) const {
        const Gradients<T> copy = g;  // a local one, so that the compiler knows its numbers do not change
        const Args<T>& args = copy.a;
        const int n = int(args.channels - c < kLanes ? args.channels - c : kLanes);
        const T* noise = args.noise_of(sample);
        T scale[kLanes], s0[kLanes] = {}, s1[kLanes] = {}, s2[kLanes] = {};
        for (int k = 0; k < n; ++k) scale[k] = args.scale ? args.scale[sample * args.channels + c + k] : T(1);
        for (int64_t p = first; p < stop; ++p) {
            const int64_t start = (sample * args.inner + p) * args.channels + c;
            const T *dy = g.dy + start, *y = g.y + start, m = noise ? noise[p] : T(0);
            T* dx = g.dx + start;
#pragma omp simd
            for (int k = 0; k < n; ++k) {
                const T d = dy[k] * args.factor(y[k]);
                dx[k] = d * scale[k], s0[k] += d, s1[k] += d * args.before(y[k]), s2[k] += d * m;
            }
        }
        for (int k = 0; k < n; ++k) store(item * args.channels + c + k, s0[k], s1[k], s2[k]);
    }

    void store(int64_t i, T s0, T s1, T s2) const { g.sums[i * 3] = s0, g.sums[i * 3 + 1] = s1, g.sums[i * 3 + 2] = s2; }
};
