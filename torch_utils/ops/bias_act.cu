// y = clamp(lrelu(x + bias) * gain) and its derivative, in one pass over memory; see bias_act.py.
#include "portable.h"

// x with bias -> activation * gain, clamped; a limit below 0 means none.
template <class A> PV3D_FN A forward(A z, A slope, A gain, A limit) {
    z = (z > 0 ? z : z * slope) * gain;
    return limit < 0 ? z : z > limit ? limit : z < -limit ? -limit : z;
}

// dy times the derivative; `y` is the result of forward. The clamp comes last, so that its limit has none.
template <class A> PV3D_FN A backward(A dy, A y, A slope, A gain, A limit) {
    const A d = dy * gain * (y > 0 ? A(1) : slope);
    return limit < 0 || (y < limit && y > -limit) ? d : A(0);
}

// Element i belongs to channel (i / inner) % channels.
struct Args {
    const void *x, *bias, *result;  // result: null in the forward direction
    void* y;
    int64_t n, channels, inner;
    double slope, gain, limit;

    template <class T> PV3D_FN T apply(wide_t<T> x, wide_t<T> result, wide_t<T> bias) const {
        const auto s = wide_t<T>(slope), g = wide_t<T>(gain), l = wide_t<T>(limit);
        return T(this->result ? backward(x, result, s, g, l) : forward(x + bias, s, g, l));
    }
};

// Body of the device kernel: V elements.
template <class T, int V> struct Packs {
    Args a;
    PV3D_FN void operator()(int64_t i) const {
        using P = Pack<T, V>;
        const P x = static_cast<const P*>(a.x)[i];
        const P result = a.result ? static_cast<const P*>(a.result)[i] : x;
        P y;
        for (int j = 0; j < V; ++j) {
            const int64_t c = (i * V + j) / a.inner % a.channels;
            const auto bias = a.bias ? wide_t<T>(static_cast<const T*>(a.bias)[c]) : wide_t<T>(0);
            y.at[j] = a.template apply<T>(wide_t<T>(x.at[j]), wide_t<T>(result.at[j]), bias);
        }
        static_cast<P*>(a.y)[i] = y;
    }
};

// Host: one run of `inner` elements of one channel, or all channels of a pixel when inner = 1.
template <class T> struct Runs {
    Args a;
    int64_t length;
    PV3D_FN void operator()(int64_t row) const {
        const T* x = static_cast<const T*>(a.x) + row * length;
        const T* result = a.result ? static_cast<const T*>(a.result) + row * length : x;
        const T* bias = static_cast<const T*>(a.bias);
        T* y = static_cast<T*>(a.y) + row * length;
        const Args args = a;
        if (args.inner > 1 || !bias) {
            const T b = bias ? bias[row % args.channels] : T(0);
#pragma omp simd
            for (int64_t j = 0; j < length; ++j) y[j] = args.template apply<T>(x[j], result[j], b);
        } else {
#pragma omp simd
            for (int64_t j = 0; j < length; ++j) y[j] = args.template apply<T>(x[j], result[j], bias[j]);
        }
    }
};

struct Run {
    Args a;
    bool device_body;  // host: run what the GPU would run
    Launch where;

    template <class T> int run() {
        if (!device_body) {
            const int64_t length = a.inner > 1 ? a.inner : a.channels;
            return for_each(Runs<T>{a, length}, a.n / length, where);
        }
        constexpr int V = 16 / sizeof(T);
        const bool aligned = (int64_t(a.x) | int64_t(a.y) | int64_t(a.result)) % 16 == 0;
        if (aligned && a.n % V == 0) return for_each(Packs<T, V>{a}, a.n / V, where);
        return for_each(Packs<T, 1>{a}, a.n, where);
    }
};

PV3D_API int pv3d_bias_act(const void* x, const void* bias, const void* result, void* y, int64_t n,
                           int64_t channels, int64_t inner, double slope, double gain, double limit,
                           int64_t type, int64_t device_body, int64_t threads, void* stream) {
    const Args a{x, bias, result, y, n, channels, inner, slope, gain, limit};
    return dispatch(type, Run{a, kDevice || device_body, Launch{threads, stream}});
}
