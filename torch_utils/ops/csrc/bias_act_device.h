// bias_act on a GPU: a thread works on packs of V neighbouring elements; V = 1 is for sizes that packs do not fit.
#pragma once
#include "bias_act.h"

template <int V> using Index = std::conditional_t<(V > 1), uint32_t, uint64_t>;

// Whether operands can be cut into packs of V elements, few enough to count them in 32 bits.
template <class T, int V> bool packable(const Args<T>& a, const T* x, const T* y, const T* out) {
    const int64_t most = int64_t(1) << 31, run = a.last ? a.channels : a.inner;
    const bool small = aligned(a.scale) && aligned(a.noise) && aligned(a.bias);
    return small && aligned(x) && aligned(y) && aligned(out) && run % V == 0 &&
           a.n * a.channels * a.inner / V < most && a.n * a.inner < most;
}

// Loads, or stores, N elements of a small operand, in packs if N allows it.
template <int N, class A> constexpr int kPiece = N % kPack<A> ? 1 : kPack<A>;

template <int N, class A> PV3D_FN void load_all(const A* from, A (&to)[N]) {
    constexpr int P = kPiece<N, A>;
#pragma unroll
    for (int k = 0; k < N; k += P) load(reinterpret_cast<const Pack<A, P>*>(from), k / P, true, to + k);
}

template <int N, class A> PV3D_FN void store_all(const A (&from)[N], A* to) {
    constexpr int P = kPiece<N, A>;
#pragma unroll
    for (int k = 0; k < N; k += P) store(from + k, reinterpret_cast<Pack<A, P>*>(to + k));
}

// V elements of a small operand from element i on, or, if not each has its own, V times element i; if it is absent, V
// times another number.
template <int V, class A> PV3D_FN void operand(const A* p, Index<V> i, bool each, A absent, A (&to)[V]) {
    if (p && each) {
        load_all(p + i, to);
        return;
    }
    const A all = p ? p[i] : absent;
#pragma unroll
    for (int k = 0; k < V; ++k) to[k] = all;
}

// A pack of the result.
template <class T, int V> struct Forward {
    using A = wide_t<T>;
    Args<T> a;
    const Pack<T, V>* x;
    Pack<T, V>* out;
    Divisor<Index<V>> run{(a.last ? a.channels : a.inner) / V}, runs{a.last ? a.inner : a.channels};

    PV3D_FN void operator()(int64_t item) const {
        const Index<V> i = Index<V>(item);
        const auto [line, pack] = run.split(i);  // with channels last, line is a pixel of a sample, otherwise a channel
        const auto [sample, rest] = runs.split(line);
        const Index<V> channel = a.last ? pack * V : rest, pixel = a.last ? rest : pack * V;
        const A* noise_of_sample = a.noise_of(sample);
        A value[V], scale[V], noise[V], bias[V];
        load(x, i, true, value);
        operand(a.scale, sample * Index<V>(a.channels) + channel, a.last, A(1), scale);
        operand(noise_of_sample, pixel, !a.last, A(0), noise);
        operand(a.bias, channel, a.last, A(0), bias);
        const A strength = a.strength ? *a.strength : A(0);
#pragma unroll
        for (int k = 0; k < V; ++k) value[k] = a.activate(value[k] * scale[k] + (noise[k] * strength + bias[k]));
        store(value, out + i);
    }
};

// A pack of x times the derivative where the result was y.
template <class T, int V> struct Derivative {
    Args<T> a;
    const Pack<T, V>*x, *y;
    Pack<T, V>* out;

    PV3D_FN void operator()(int64_t item) const {
        const Index<V> i = Index<V>(item);
        wide_t<T> value[V], result[V];
        load(x, i, true, value);
        load(y, i, true, result);
#pragma unroll
        for (int k = 0; k < V; ++k) value[k] *= a.factor(result[k]);
        store(value, out + i);
    }
};

// dx of every parts-th pack along the pixels, and the sums over them. Neighbouring threads are at neighbouring packs at
// any time, and load kAtOnce of them before they use the first, so that enough loads are on their way.
template <class T, int V> struct Backward {
    using A = wide_t<T>;
    using P = Pack<T, V>;
    static constexpr int kAtOnce = 2;
    Gradients<T> g;
    // With channels last: packs of a pixel, a line of all pixels of a sample. Otherwise: 1, lines of packs of pixels.
    Divisor<Index<V>> width{g.a.last ? g.a.channels / V : 1}, parts{g.parts}, lines{g.a.last ? 1 : g.a.channels};
    Index<V> length = Index<V>(g.a.last ? g.a.inner : g.a.inner / V);

    int64_t count() const { return g.a.n * lines.by * parts.by * width.by; }

    PV3D_FN void operator()(int64_t item) const {
        const Args<T>& a = g.a;
        const auto [group, pack] = width.split(Index<V>(item));
        const auto [line, part] = parts.split(group);
        const Index<V> sample = lines.split(line).quotient, first = line * length * width.by + pack;
        const A* noise_of_sample = a.noise_of(sample);
        A scale[V], sum[V * 3] = {};
        operand(a.scale, a.last ? sample * Index<V>(a.channels) + pack * V : line, a.last, A(1), scale);
        for (Index<V> start = part; start < length; start += kAtOnce * parts.by) {
            A dy[kAtOnce][V], y[kAtOnce][V], x[kAtOnce][V], noise[kAtOnce][V];
#pragma unroll
            for (int u = 0; u < kAtOnce; ++u) {
                const Index<V> p = start + u * parts.by, i = first + p * width.by;
                const bool inside = p < length;
                load(reinterpret_cast<const P*>(g.dy), i, inside, dy[u]);
                load(reinterpret_cast<const P*>(g.y), i, inside, y[u]);
                load(reinterpret_cast<const P*>(g.x), i, inside && g.x, x[u]);
                operand(inside ? noise_of_sample : nullptr, a.last ? p : p * V, !a.last, A(0), noise[u]);
            }
#pragma unroll
            for (int u = 0; u < kAtOnce; ++u) {
                if (!g.x)
#pragma unroll
                    for (int k = 0; k < V; ++k) x[u][k] = a.before(y[u][k]);
#pragma unroll
                for (int k = 0; k < V; ++k) {
                    const A d = dy[u][k] * a.factor(y[u][k]);
                    sum[k * 3] += d, sum[k * 3 + 1] += d * x[u][k], sum[k * 3 + 2] += d * noise[u][k];
                    dy[u][k] = d * scale[k];
                }
                const Index<V> p = start + u * parts.by;
                if (p < length) store(dy[u], reinterpret_cast<P*>(g.dx) + first + p * width.by);
            }
        }
        write(sum, item);
    }

    // Sums of V channels, or, with pixels in packs, of one.
    PV3D_FN void write(A (&sum)[V * 3], int64_t item) const {
        if (g.a.last) {
            store_all(sum, g.sums + item * V * 3);
            return;
        }
#pragma unroll
        for (int k = 3; k < V * 3; ++k) sum[k % 3] += sum[k];
        for (int k = 0; k < 3; ++k) g.sums[item * 3 + k] = sum[k];
    }
};
