// y = clamp(lrelu(x scale + noise strength + bias) gain) and its derivative, in one pass over memory each.
// See bias_act.py. Images are [N, C, inner], or [N, inner, C] when channels come last.
#include "portable.h"

// Small operands have the type of sums: float for half precision. Null = absent.
template <class T> struct Args {
    using A = wide_t<T>;
    const A *scale, *noise, *strength, *bias;  // [N, C], [N or 1, inner], [1], [C]
    int64_t n, channels, inner, last, noise_n;  // last: channels come last, 1 or 0
    A slope, gain, limit;                       // a limit below 0 means none

    // Where element i of memory lies. Divisions of 32 bits are several times faster on a GPU.
    PV3D_FN void locate(int64_t i, int64_t* row, int64_t* pixel) const {
        if (n * channels * inner < (int64_t(1) << 31))
            locate_as(uint32_t(i), row, pixel);
        else
            locate_as(uint64_t(i), row, pixel);
    }

    template <class I> PV3D_FN void locate_as(I i, int64_t* row, int64_t* pixel) const {
        const I c_count = I(channels), p_count = I(inner), per_row = last ? c_count : p_count;
        const I outer = i / per_row, within = i - outer * per_row;  // (n, pixel) and channel, or (n, channel) and pixel
        const I sample = outer / (last ? p_count : c_count);
        *row = last ? int64_t(sample * c_count + within) : int64_t(outer);
        *pixel = last ? int64_t(outer - sample * p_count) : int64_t(within);
    }

    PV3D_FN A noise_at(int64_t row, int64_t pixel) const {
        return noise ? noise[(noise_n > 1 ? row / channels * inner : 0) + pixel] : A(0);
    }

    PV3D_FN A activate(A z) const {
        z = (z > 0 ? z : z * slope) * gain;
        return limit < 0 ? z : z > limit ? limit : z < -limit ? -limit : z;
    }

    // Derivative of activate where its result was y.
    PV3D_FN A factor(A y) const {
        const A d = y > 0 ? gain : gain * slope;
        return limit < 0 || (y < limit && y > -limit) ? d : A(0);
    }
};

// V neighbouring elements of the result (y null), or of x times the derivative where the result was y.
template <class T, int V> struct Forward {
    Args<T> a;
    const T *x, *y;
    T* out;

    PV3D_FN void operator()(int64_t i) const {
        using A = wide_t<T>;
        using P = Pack<T, V>;
        const P in = reinterpret_cast<const P*>(x)[i];
        const P result = y ? reinterpret_cast<const P*>(y)[i] : in;
        P to;
        const A strength = a.strength ? *a.strength : A(0);
        for (int j = 0; j < V; ++j) {
            const A value = A(in.at[j]);
            if (y) {
                to.at[j] = T(value * a.factor(A(result.at[j])));
                continue;
            }
            int64_t row, pixel;
            a.locate(i * V + j, &row, &pixel);
            const A scale = a.scale ? a.scale[row] : A(1), bias = a.bias ? a.bias[row % a.channels] : A(0);
            to.at[j] = T(a.activate(value * scale + (a.noise_at(row, pixel) * strength + bias)));
        }
        reinterpret_cast<P*>(out)[i] = to;
    }
};

// Host: the same for a run of memory of one channel, in loops that compilers vectorise.
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
            const T add = a.noise ? a.noise_at(sample * a.channels, run % a.inner) * *a.strength : T(0);
            for (int64_t j = 0; j < length; ++j) {
                const T scale = a.scale ? a.scale[sample * length + j] : T(1), bias = a.bias ? a.bias[j] : T(0);
                to[j] = args.activate(in[j] * scale + (add + bias));
            }
        } else {
            const T scale = a.scale ? a.scale[run] : T(1), bias = a.bias ? a.bias[run % a.channels] : T(0);
            if (a.noise) {
                const T *noise = a.noise + (a.noise_n > 1 ? run / a.channels * a.inner : 0), k = *a.strength;
#pragma omp simd
                for (int64_t j = 0; j < length; ++j) to[j] = args.activate(in[j] * scale + (noise[j] * k + bias));
            } else {
#pragma omp simd
                for (int64_t j = 0; j < length; ++j) to[j] = args.activate(in[j] * scale + bias);
            }
        }
    }
};

// One pass of the backward: dx, and the sums over pixels of d, d x and d noise, where d = dy derivative. Without
// x, d z in place of d x, where z = x scale + noise strength + bias, which follows from the result y.
template <class T> struct Gradients {
    using A = wide_t<T>;
    Args<T> a;
    const T *dy, *y, *x;  // x may be null
    T* dx;
    A* sums;  // [N, parts, C, 3], or [N, C, parts, 3]
    int64_t part, parts;

    PV3D_FN const A* noise_of(int64_t row) const {
        return a.noise ? a.noise + (a.noise_n > 1 ? row / a.channels * a.inner : 0) : nullptr;
    }

    // z where the result was y; wrong where it was clamped, but there d is 0.
    PV3D_FN A before(A y) const { return y > 0 ? y * (1 / a.gain) : y * (1 / (a.gain * a.slope)); }

    // Past the last pixel of an item.
    PV3D_FN int64_t stop(int64_t first) const { return first + part < a.inner ? first + part : a.inner; }

    PV3D_FN void store(int64_t i, A s0, A s1, A s2) const { sums[i * 3] = s0, sums[i * 3 + 1] = s1, sums[i * 3 + 2] = s2; }
};

// An item is a part of a row (n, c); with channels last a part of the pixels of a sample, lanes being channels.
template <class T> struct Backward {
    using A = wide_t<T>;
    Gradients<T> g;

    PV3D_FN void operator()(int64_t item, int lane) const {
        const int64_t first = item % g.parts * g.part, i = item / g.parts, channels = g.a.channels;
        A sum[3] = {0, 0, 0};
        if (!g.a.last) {
            walk(i, i * g.a.inner, 1, first + lane, g.stop(first), kLanes, sum);
            for (int k = 0; k < 3; ++k) sum[k] = lane_sum(sum[k]);
            if (lane == 0) g.store(item, sum[0], sum[1], sum[2]);
            return;
        }
        for (int64_t c = lane; c < channels; c += kLanes) {
            sum[0] = sum[1] = sum[2] = 0;
            walk(i * channels + c, i * g.a.inner * channels + c, channels, first, g.stop(first), 1, sum);
            g.store(item * channels + c, sum[0], sum[1], sum[2]);
        }
    }

    // The pixels first, first + step, ... of a row whose pixel p lies at start + p * stride in memory.
    PV3D_FN void walk(int64_t row, int64_t start, int64_t stride, int64_t first, int64_t stop, int64_t step,
                      A* sum) const {
        const A *noise = g.noise_of(row), scale = g.a.scale ? g.a.scale[row] : A(1);
        for (int64_t p = first; p < stop; p += step) {
            const int64_t i = start + p * stride;
            const A y = A(g.y[i]), d = A(g.dy[i]) * g.a.factor(y);
            g.dx[i] = T(d * scale);
            sum[0] += d;
            sum[1] += d * (g.x ? A(g.x[i]) : g.before(y));
            if (noise) sum[2] += d * noise[p];
        }
    }
};

// Host: the same without x, in loops over memory that compilers vectorise.
template <class T> struct HostBackward {
    Gradients<T> g;
    static constexpr int kLanes = 256;  // at a time: channels, or pixels of a row

    void operator()(int64_t item, int) const {
        const int64_t first = item % g.parts * g.part, i = item / g.parts;
        if (!g.a.last) return row(item, i, first, g.stop(first) - first);
        for (int64_t c = 0; c < g.a.channels; c += kLanes) columns(item, i, first, g.stop(first), c);
    }

    // Sums are taken in kLanes lanes: a single one would not vectorise.
    void row(int64_t item, int64_t r, int64_t first, int64_t length) const {
        const Gradients<T> copy = g;  // a local one, so that the compiler knows its numbers do not change
        const Args<T>& args = copy.a;
        const T *noise = g.noise_of(r), scale = args.scale ? args.scale[r] : T(1);
        T s0[kLanes] = {}, s1[kLanes] = {}, s2[kLanes] = {};
        for (int64_t p = 0; p < length; p += kLanes) {
            const int n = int(length - p < kLanes ? length - p : kLanes);
            const int64_t start = r * args.inner + first + p;
            const T *dy = g.dy + start, *y = g.y + start, *m = noise ? noise + first + p : dy;
            T* dx = g.dx + start;
#pragma omp simd
            for (int k = 0; k < n; ++k) {
                const T d = dy[k] * args.factor(y[k]);
                dx[k] = d * scale, s0[k] += d, s1[k] += d * copy.before(y[k]), s2[k] += d * m[k];
            }
        }
        for (int k = 1; k < kLanes && k < length; ++k) s0[0] += s0[k], s1[0] += s1[k], s2[0] += s2[k];
        g.store(item, s0[0], s1[0], s2[0]);
    }

    void columns(int64_t item, int64_t sample, int64_t first, int64_t stop, int64_t c) const {
        const Gradients<T> copy = g;  // a local one, so that the compiler knows its numbers do not change
        const Args<T>& args = copy.a;
        const int n = int(args.channels - c < kLanes ? args.channels - c : kLanes);
        const T* noise = g.noise_of(sample * args.channels);
        T scale[kLanes], s0[kLanes] = {}, s1[kLanes] = {}, s2[kLanes] = {};
        for (int k = 0; k < n; ++k) scale[k] = args.scale ? args.scale[sample * args.channels + c + k] : T(1);
        for (int64_t p = first; p < stop; ++p) {
            const int64_t start = (sample * args.inner + p) * args.channels + c;
            const T *dy = g.dy + start, *y = g.y + start, m = noise ? noise[p] : T(0);
            T* dx = g.dx + start;
#pragma omp simd
            for (int k = 0; k < n; ++k) {
                const T d = dy[k] * args.factor(y[k]);
                dx[k] = d * scale[k], s0[k] += d, s1[k] += d * copy.before(y[k]), s2[k] += d * m;
            }
        }
        for (int k = 0; k < n; ++k) g.store(item * args.channels + c + k, s0[k], s1[k], s2[k]);
    }
};

struct Operands {
    const void *x, *y, *scale, *noise, *strength, *bias;
    int64_t n, channels, inner, last, noise_n;
    double slope, gain, limit;

    template <class T> Args<T> args() const {
        using A = wide_t<T>;
        const A bound = A(T(limit));  // as results of this type are stored, so that clamped ones compare equal
        return {static_cast<const A*>(scale), static_cast<const A*>(noise), static_cast<const A*>(strength),
                static_cast<const A*>(bias),  n, channels, inner, last, noise_n, A(slope), A(gain), bound};
    }
};

struct RunForward {
    Operands o;
    void* out;
    bool device_body;  // host: run what the GPU would run
    Launch where;

    template <class T> int run() {
        const Args<T> a = o.args<T>();
        const auto x = static_cast<const T*>(o.x), y = static_cast<const T*>(o.y);
        const auto to = static_cast<T*>(out);
        const int64_t total = o.n * o.channels * o.inner;
#ifndef __CUDACC__
        if constexpr (sizeof(T) >= 4) if (!device_body) return for_each(HostForward<T>{a, x, y, to}, o.last ? o.n * o.inner : o.n * o.channels, where);
#endif
        constexpr int V = 16 / sizeof(T);
        const bool aligned = (int64_t(x) | int64_t(y) | int64_t(to)) % 16 == 0;
        if (aligned && total % V == 0) return for_each(Forward<T, V>{a, x, y, to}, total / V, where);
        return for_each(Forward<T, 1>{a, x, y, to}, total, where);
    }
};

struct RunBackward {
    Operands o;
    const void* dy;
    void *dx, *sums;
    int64_t part, parts;
    bool device_body;
    Launch where;

    template <class T> int run() {
        const Gradients<T> g{o.args<T>(),
                             static_cast<const T*>(dy),
                             static_cast<const T*>(o.y),
                             static_cast<const T*>(o.x),
                             static_cast<T*>(dx),
                             static_cast<wide_t<T>*>(sums),
                             part,
                             parts};
        const int64_t items = (o.last ? o.n : o.n * o.channels) * parts;
#ifndef __CUDACC__
        if constexpr (sizeof(T) >= 4) if (!device_body && !g.x) return for_each_row(HostBackward<T>{g}, items, where);
#endif
        return for_each_row(Backward<T>{g}, items, where);
    }
};

PV3D_API int pv3d_bias_act(const void* x, const void* y, const void* scale, const void* noise,
                           const void* strength, const void* bias, void* out, int64_t n, int64_t channels,
                           int64_t inner, int64_t last, int64_t noise_n, double slope, double gain, double limit,
                           int64_t type, int64_t device_body, int64_t threads, void* stream) {
    const Operands o{x, y, scale, noise, strength, bias, n, channels, inner, last, noise_n, slope, gain, limit};
    return dispatch(type, RunForward{o, out, device_body != 0, Launch{threads, stream}});
}

PV3D_API int pv3d_bias_act_grad(const void* dy, const void* y, const void* x, const void* scale,
                                const void* noise, void* dx, void* sums, int64_t n, int64_t channels,
                                int64_t inner, int64_t last, int64_t noise_n, int64_t part, int64_t parts,
                                double slope, double gain, double limit, int64_t type, int64_t device_body,
                                int64_t threads, void* stream) {
    const Operands o{x, y, scale, noise, nullptr, nullptr, n, channels, inner, last, noise_n, slope,
                     gain, limit};
    return dispatch(type, RunBackward{o, dy, dx, sums, part, parts, device_body != 0, Launch{threads, stream}});
}
