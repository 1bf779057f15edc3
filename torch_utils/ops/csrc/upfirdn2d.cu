// Insert zeros, pad, filter, keep every n-th pixel, in one pass; see upfirdn2d.py.
#include "upfirdn2d_device.h"
#ifndef __CUDACC__
#include "upfirdn2d_host.h"
#endif

struct RunFilter {
    const void *x, *f;
    void* y;
    Shape s;
    bool device_body;  // host: run what the GPU would run
    Launch where;

    template <class T> int run() {
        const auto in = static_cast<const T*>(x);
        const auto taps = static_cast<const wide_t<T>*>(f);
        const auto out = static_cast<T*>(y);
        if (s.n * s.c * s.out_h * s.out_w == 0) return 0;
        if (device_body) return device<T>(in, taps, out);
#ifndef __CUDACC__
        if constexpr (sizeof(T) >= 4) {
            const Tiles<T> tiles{in, out, s, Terms<T>(taps, s)};
            return for_each(tiles, tiles.count(), where);
        }
#endif
        return -1;
    }

    template <class T> int device(const T* in, const wide_t<T>* taps, T* out) {
        // Sizes of blocks: as many results as fit 128 registers, of which two groups of 256 threads run at a time.
        if (Blocks<T, 1, 1, 8, 1>::fits(in, out, s)) return blocks<Blocks<T, 1, 1, 8, 1>>(in, taps, out);
        if (Blocks<T, 2, 1, 4, 2>::fits(in, out, s)) return blocks<Blocks<T, 2, 1, 4, 2>>(in, taps, out);
        if (Blocks<T, 1, 2, 4, 2>::fits(in, out, s)) return blocks<Blocks<T, 1, 2, 4, 2>>(in, taps, out);
        return for_each(Pixels<T>{in, taps, out, s}, s.n * s.c * s.out_h * s.out_w, where);
    }

    template <class B, class T> int blocks(const T* in, const wide_t<T>* taps, T* out) {
        using P = Pack<T, B::V>;
        const B body{reinterpret_cast<const P*>(in), taps, reinterpret_cast<P*>(out), s};
        return for_each(body, body.count(), where);
    }
};

PV3D_API int pv3d_upfirdn2d(const void* x, const void* f, void* y, int64_t n, int64_t c, int64_t h, int64_t w,
                            int64_t out_h, int64_t out_w, int64_t fh, int64_t fw, int64_t up, int64_t down,
                            int64_t left, int64_t top, int64_t channels_last, int64_t flip, double gain,
                            int64_t type, int64_t device_body, int64_t threads, void* stream) {
    const Shape s{n, c, h, w, out_h, out_w, fh, fw, up, down, left, top, channels_last, flip, gain};
    return dispatch(type, RunFilter{x, f, y, s, kDevice || device_body, Launch{threads, stream}});
}
