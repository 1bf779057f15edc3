// Tri-plane rendering: lookup, decoder and compositing along rays, forward and backward; see triplane_render.py.
#include "triplane_device.h"

#ifndef __CUDACC__
#include "triplane_host.h"
#endif

struct Run {
    Scene a;
    bool device_body;  // host: run what the GPU would run
    Launch where;

    template <class T> int run() {
        if constexpr (sizeof(T) < 4) {
            return -1;
        } else {
            if (device_body) return run_blocks<T>(a, where);
#ifndef __CUDACC__
            const int threads = int(where.threads);
            return a.grad_planes ? host_backward<T>(a, threads) : host_forward<T>(a, threads);
#else
            return -1;
#endif
        }
    }
};

// Whether blocks of the device have the memory for these sizes.
struct Fits {
    Scene a;
    template <class T> int run() {
#ifdef __CUDACC__
        int device = 0, most = 0;
        cudaGetDevice(&device);
        cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
        return Block<T>(a, true).bytes() <= most;
#else
        return 1;
#endif
    }
};

PV3D_API int pv3d_triplane_fits(int64_t c, int64_t samples, int64_t f, int64_t type) {
    Scene a{};
    a.c = c, a.samples = samples, a.f = f;
    return dispatch(type, Fits{a});
}

PV3D_API int pv3d_triplane_render(const void* planes, const void* params, const void* origins,
                                  const void* directions, const void* depths, const void* grad_features,
                                  const void* grad_weights, void* features, void* weights, void* grad_planes,
                                  void* grad_params, int64_t n, int64_t c, int64_t h, int64_t w, int64_t rays,
                                  int64_t samples, int64_t f, int64_t step_n, int64_t step_p, int64_t step_y,
                                  int64_t step_x, int64_t axes, double scale, double margin, double density_bias,
                                  int64_t type, int64_t device_body, int64_t threads, void* stream) {
    const Scene a{planes, params, origins, directions, depths, grad_features, grad_weights, features, weights,
                  grad_planes, grad_params, n, c, h, w, rays, samples, f, step_n, step_p, step_y, step_x, axes,
                  scale, margin, density_bias};
    return dispatch(type, Run{a, kDevice || device_body, Launch{threads, stream}});
}
