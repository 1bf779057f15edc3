// Tri-plane rendering: lookup, decoder and compositing along rays, forward and backward; see triplane_render.py.
#include <vector>

#include "triplane_device.h"

#ifndef __CUDACC__
#include "triplane_host.h"
#endif

#ifdef __CUDACC__
template <class T, int V, bool B> __global__ void __launch_bounds__(128) triplane_kernel(Scene a) {
    extern __shared__ __align__(16) char memory[];
    Block<T> block(a, B);
    block.place(reinterpret_cast<T*>(memory), B);
    block.template render<V, B>(blockIdx.x, gridDim.x);
}
#endif

#ifdef __CUDACC__
// Most bytes of shared memory that a block of a device may have.
inline int most_memory(int device) {
    int most = 0;
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    return most;
}
#endif

template <class T, int V, bool B> int run_kernel(const Scene& a, [[maybe_unused]] const Launch& where) {
    Block<T> block(a, B);
    const int64_t rays = a.n * a.rays, bytes = block.bytes();
    if (rays == 0) return 0;
#ifdef __CUDACC__
    const auto kernel = triplane_kernel<T, V, B>;
    int device = 0, units = 0, blocks = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&units, cudaDevAttrMultiProcessorCount, device);
    // the same number at every call: one that follows the sizes would be taken back by other threads
    const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (const int code = cudaFuncSetAttribute(kernel, limit, most_memory(device))) return code;
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, block.threads, bytes);
    const int64_t most = int64_t(units) * (blocks > 0 ? blocks : 1);
    kernel<<<unsigned(rays < most ? rays : most), block.threads, bytes, cudaStream_t(where.stream)>>>(a);
    return int(cudaGetLastError());
#else
    std::vector<Pack<T, 16 / sizeof(T)>> memory(bytes / 16);
    block.place(reinterpret_cast<T*>(memory.data()), B);
    block.template render<V, B>(0, 1);
    return 0;
#endif
}

// Runs the body, with loads of 16 bytes where planes allow it.
template <class T> int run_blocks(const Scene& a, const Launch& where) {
    constexpr int V = sizeof(T) == 4 ? 4 : 1;
    const int64_t all = a.c | a.step_n | a.step_p | a.step_y | a.step_x;
    const bool aligned = all % V == 0 && reinterpret_cast<uintptr_t>(a.planes) % 16 == 0;
    if (a.grad_planes) return aligned ? run_kernel<T, V, true>(a, where) : run_kernel<T, 1, true>(a, where);
    return aligned ? run_kernel<T, V, false>(a, where) : run_kernel<T, 1, false>(a, where);
}

struct RunRays {
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

// Whether blocks of the current device have the memory for these sizes.
struct Fits {
    Scene a;
    template <class T> int run() {
#ifdef __CUDACC__
        int device = 0;
        cudaGetDevice(&device);
        return Block<T>(a, true).bytes() <= most_memory(device);
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
    return dispatch(type, RunRays{a, kDevice || device_body, Launch{threads, stream}});
}
