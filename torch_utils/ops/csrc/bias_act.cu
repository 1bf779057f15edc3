// y = clamp(lrelu(x scale + noise strength + bias) gain) and its derivative, in one pass over memory each.
// See bias_act.py. Images are [N, C, inner], or [N, inner, C] when channels come last.
#include "bias_act_device.h"
#ifndef __CUDACC__
#include "bias_act_host.h"
#endif

struct Operands {
    const void *x, *y, *scale, *noise, *strength, *bias;
    int64_t n, channels, inner, last, noise_n;
    double slope, gain, limit;

    template <class T> Args<T> args() const {
        using A = wide_t<T>;
        // as results of this type are stored, so that clamped ones compare equal
        const A s = A(slope), g = A(gain), bound = A(T(limit));
        const auto pointer = [](const void* p) { return static_cast<const A*>(p); };
        return {pointer(scale), pointer(noise), pointer(strength), pointer(bias), n, channels, inner, last, noise_n,
                s, g, bound, 1 / g, 1 / (g * s)};
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
        if (a.n * a.channels * a.inner == 0) return 0;
        if (!device_body) return host(a, x, y, to);
        return packable<T, kPack<T>>(a, x, y, to) ? device<kPack<T>>(a, x, y, to) : device<1>(a, x, y, to);
    }

    template <class T> int host(const Args<T>& a, const T* x, const T* y, T* to) {
#ifndef __CUDACC__
        const int64_t runs = a.last ? a.n * a.inner : a.n * a.channels;
        if constexpr (sizeof(T) >= 4) return for_each(HostForward<T>{a, x, y, to}, runs, where);
#endif
        return -1;
    }

    template <int V, class T> int device(const Args<T>& a, const T* x, const T* y, T* to) {
        using P = Pack<T, V>;
        const auto in = reinterpret_cast<const P*>(x), result = reinterpret_cast<const P*>(y);
        const int64_t packs = a.n * a.channels * a.inner / V;
        if (y) return for_each(Derivative<T, V>{a, in, result, reinterpret_cast<P*>(to)}, packs, where);
        return for_each(Forward<T, V>{a, in, reinterpret_cast<P*>(to)}, packs, where);
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
        if (o.n * o.channels * o.inner == 0) return 0;
#ifndef __CUDACC__
        const int64_t items = (o.last ? o.n : o.n * o.channels) * parts;
        if constexpr (sizeof(T) >= 4)
            if (!device_body && !g.x) return for_each(HostBackward<T>{g}, items, where);
#endif
        return packable<T, kPack<T>>(g.a, g.dy, g.y, g.dx) && aligned(g.x) ? device<kPack<T>>(g) : device<1>(g);
    }

    template <int V, class T> int device(const Gradients<T>& g) {
        const Backward<T, V> body{g};
        return for_each(body, body.count(), where);
    }
};

PV3D_API int pv3d_bias_act(const void* x, const void* y, const void* scale, const void* noise,
                           const void* strength, const void* bias, void* out, int64_t n, int64_t channels,
                           int64_t inner, int64_t last, int64_t noise_n, double slope, double gain, double limit,
                           int64_t type, int64_t device_body, int64_t threads, void* stream) {
    const Operands o{x, y, scale, noise, strength, bias, n, channels, inner, last, noise_n, slope, gain, limit};
    return dispatch(type, RunForward{o, out, kDevice || device_body, Launch{threads, stream}});
}

PV3D_API int pv3d_bias_act_grad(const void* dy, const void* y, const void* x, const void* scale,
                                const void* noise, void* dx, void* sums, int64_t n, int64_t channels,
                                int64_t inner, int64_t last, int64_t noise_n, int64_t part, int64_t parts,
                                double slope, double gain, double limit, int64_t type, int64_t device_body,
                                int64_t threads, void* stream) {
    const Operands o{x, y, scale, noise, nullptr, nullptr, n, channels, inner, last, noise_n, slope,
                     gain, limit};
    return dispatch(type, RunBackward{o, dy, dx, sums, part, parts, kDevice || device_body, Launch{threads, stream}});
}
