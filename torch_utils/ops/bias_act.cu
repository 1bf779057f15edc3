// y = clamp(lrelu(x scale + noise strength + bias) gain) and its derivative, in one pass over memory each.
// See bias_act.py. Pictures are [N, C, inner], or [N, inner, C] when channels come last.
#include "portable.h"

// Small operands have the type of sums: float for half precision. Null = absent.
template <class T> struct Args {
    using A = wide_t<T>;
    const A *scale, *noise, *strength, *bias;  // [N, C], [N or 1, inner], [1], [C]
    int64_t n, channels, inner, last, noise_n;  // last: channels come last, 1 or 0
    A slope, gain, limit;                       // a limit below 0 means none

    // Where element i of memory lies.
    PV3D_FN void locate(int64_t i, int64_t* row, int64_t* pixel) const {
        const int64_t sample = i / (channels * inner), rest = i - sample * (channels * inner);
        const int64_t c = last ? rest % channels : rest / inner;
        *row = sample * channels + c;
        *pixel = last ? rest / channels : rest % inner;
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

// One pass of the backward: dx, and the sums over pixels of d, d x and d noise, where d = dy derivative.
// An item is a part of a row (n, c); with channels last a part of the pixels of a sample, lanes being channels.
template <class T> struct Backward {
    using A = wide_t<T>;
    Args<T> a;
    const T *dy, *y, *x;  // x: null when there is no scale
    T* dx;
    A* sums;  // [N, parts, C, 3], or [N, C, parts, 3]
    int64_t part, parts;

    PV3D_FN void operator()(int64_t item, int lane) const {
        const int64_t first = item % parts * part, end = first + part, stop = end < a.inner ? end : a.inner;
        if (!a.last) {
            A sum[3] = {0, 0, 0};
            const int64_t r = item / parts;
            pick(r, r * a.inner, 1, first + lane, stop, kLanes, sum);
            for (int k = 0; k < 3; ++k) sum[k] = lane_sum(sum[k]);
            if (lane == 0) store(item, sum);
            return;
        }
        const int64_t sample = item / parts;
        for (int64_t c = lane; c < a.channels; c += kLanes) {
            A sum[3] = {0, 0, 0};
            pick(sample * a.channels + c, sample * a.inner * a.channels + c, a.channels, first, stop, 1, sum);
            store(item * a.channels + c, sum);
        }
    }

    PV3D_FN void store(int64_t i, const A* sum) const {
        for (int k = 0; k < 3; ++k) sums[i * 3 + k] = sum[k];
    }

    // The pixels first, first + step, ... of a row whose pixel p lies at start + p * stride in memory.
    PV3D_FN void pick(int64_t row, int64_t start, int64_t stride, int64_t first, int64_t stop, int64_t step,
                      A* sum) const {
        if (kLanes == 1 && stride == 1)
            walk<true>(row, start, 1, first, stop, 1, sum);
        else
            walk<false>(row, start, stride, first, stop, step, sum);
    }

    // DENSE: stride and step are 1, which the compiler has to know to vectorise.
    template <bool DENSE>
    PV3D_FN void walk(int64_t row, int64_t start, int64_t any_stride, int64_t first, int64_t stop, int64_t any_step,
                      A* sum) const {
        const int64_t stride = DENSE ? 1 : any_stride, step = DENSE ? 1 : any_step;
        const Args<T> args = a;
        const T *from = dy + start, *result = y + start, *in = x ? x + start : from;
        const A* noise = args.noise ? args.noise + (args.noise_n > 1 ? row / args.channels * args.inner : 0) : nullptr;
        const A scale = args.scale ? args.scale[row] : A(1);
        T* to = dx + start;
        A d0 = 0, d1 = 0, d2 = 0;
#pragma omp simd reduction(+ : d0, d1)
        for (int64_t p = first; p < stop; p += step) {
            const A d = A(from[p * stride]) * args.factor(A(result[p * stride]));
            to[p * stride] = T(d * scale);
            d0 += d;
            d1 += d * A(in[p * stride]);
            if (!DENSE && noise) d2 += d * noise[p];
        }
        if (DENSE && noise) {
#pragma omp simd reduction(+ : d2)
            for (int64_t p = first; p < stop; ++p) d2 += A(from[p]) * args.factor(A(result[p])) * noise[p];
        }
        sum[0] += d0, sum[1] += d1, sum[2] += d2;
    }
};

struct Operands {
    const void *x, *y, *scale, *noise, *strength, *bias;
    int64_t n, channels, inner, last, noise_n;
    double slope, gain, limit;

    template <class T> Args<T> args() const {
        using A = wide_t<T>;
        return {static_cast<const A*>(scale), static_cast<const A*>(noise), static_cast<const A*>(strength),
                static_cast<const A*>(bias),  n, channels, inner, last, noise_n, A(slope), A(gain), A(limit)};
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
        if (!device_body) return for_each(HostForward<T>{a, x, y, to}, o.last ? o.n * o.inner : o.n * o.channels, where);
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
    Launch where;

    template <class T> int run() {
        const Backward<T> body{o.args<T>(),          static_cast<const T*>(dy), static_cast<const T*>(o.y),
                               static_cast<const T*>(o.x), static_cast<T*>(dx), static_cast<wide_t<T>*>(sums),
                               part,                 parts};
        return for_each_row(body, (o.last ? o.n : o.n * o.channels) * parts, where);
    }
};

PV3D_API int pv3d_bias_act(const void* x, const void* y, const void* scale, const void* noise,
                           const void* strength, const void* bias, void* out, int64_t n, int64_t channels,
                           int64_t inner, int64_t last, int64_t noise_n, double slope, double gain, double limit,
                           int64_t type, int64_t device_body, int64_t threads, void* stream) {
    const Operands o{x, y, scale, noise, strength, bias, n, channels, inner, last, noise_n, slope, gain, limit};
    return dispatch(type, RunForward{o, out, device_body != 0, Launch{threads, stream}});
}

PV3D_API int pv3d_bias_act_grad(const void* dy, const void* y, const void* x, const void* scale, const void* noise,
                                void* dx, void* sums, int64_t n, int64_t channels, int64_t inner, int64_t last,
                                int64_t noise_n, int64_t part, int64_t parts, double slope, double gain,
                                double limit, int64_t type, int64_t, int64_t threads, void* stream) {
    const Operands o{x,    y, scale, noise, nullptr, nullptr, n, channels, inner, last, noise_n, slope,
                     gain, limit};
    return dispatch(type, RunBackward{o, dy, dx, sums, part, parts, Launch{threads, stream}});
}
