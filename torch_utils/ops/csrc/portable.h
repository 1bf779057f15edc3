// What lets one source be CUDA device code (nvcc) and host code (a C++17 compiler with OpenMP).
//
// A kernel is a functor whose operator()(i) does the work of element i. for_each runs it: a grid on the
// device, a loop over threads on the host. Libraries have a C interface of pointers and numbers and include
// nothing of torch, so that they compile in seconds and work with every version of it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define PV3D_FN __host__ __device__ __forceinline__
constexpr bool kDevice = true;
#else
constexpr bool kDevice = false;
#include <omp.h>
#define PV3D_FN inline __attribute__((always_inline))
#endif
#define PV3D_API extern "C" __attribute__((visibility("default")))

// Codes of element types in the C interface; see torch_utils/ops/kernels.py.
enum Type { kFloat = 0, kDouble = 1, kHalf = 2, kBFloat16 = 3 };

// Type in which sums of T are taken.
template <class T> struct Wide { using type = float; };
template <> struct Wide<double> { using type = double; };
template <class T> using wide_t = typename Wide<T>::type;

// V neighbouring elements, loaded and stored at once.
template <class T, int V> struct alignas(sizeof(T) * V) Pack {
    T at[V];
};

// Elements of the largest pack that a GPU moves with one instruction.
constexpr int kPackBytes = 16;
template <class T> constexpr int kPack = kPackBytes / sizeof(T);

template <class T> bool aligned(const T* p) { return uintptr_t(p) % kPackBytes == 0; }

// The elements of pack i, widened, or zeros. In one instruction: left alone nvcc loads the elements one by one.
template <class T, int V, class I> PV3D_FN void load(const Pack<T, V>* from, I i, bool inside, wide_t<T>* to) {
    Pack<T, V> pack{};
#ifdef __CUDA_ARCH__
    if constexpr (sizeof pack == kPackBytes) {
        uint4 bits = make_uint4(0, 0, 0, 0);
        if (inside) bits = __ldg(reinterpret_cast<const uint4*>(from + i));
        memcpy(&pack, &bits, sizeof bits);
    } else if (inside)
        pack = from[i];
#else
    if (inside) pack = from[i];
#endif
#pragma unroll
    for (int k = 0; k < V; ++k) to[k] = wide_t<T>(pack.at[k]);
}

// Rounds and stores the elements of a pack.
template <class T, int V> PV3D_FN void store(const wide_t<T>* from, Pack<T, V>* to) {
    Pack<T, V> pack;
#pragma unroll
    for (int k = 0; k < V; ++k) pack.at[k] = T(from[k]);
    *to = pack;
}

// Divides by a number that is known before a kernel starts.
template <class I> struct Divisor {
    I by;

    struct Result {
        I quotient, rest;
    };

    explicit Divisor(int64_t d) : by(I(d)) {}

    PV3D_FN Result split(I n) const { return {n / by, n % by}; }
};

// For numbers below 2^31: three instructions in place of twenty.
template <> struct Divisor<uint32_t> {
    uint32_t by, shift = 0, factor;

    struct Result {
        uint32_t quotient, rest;
    };

    explicit Divisor(int64_t d) : by(uint32_t(d)) {
        while (int64_t(1) << shift < d) ++shift;
        factor = uint32_t(((uint64_t(1) << (31 + shift)) + d - 1) / d);  // 2^shift < 2 d: below 2^32
    }

    PV3D_FN Result split(uint32_t n) const {
        const uint32_t quotient = uint32_t((uint64_t(2 * n) * factor) >> 32) >> shift;
        return {quotient, n - quotient * by};
    }
};

// Where to run: a number of host threads, or a CUDA stream.
struct Launch {
    int64_t threads;
    void* stream;
};

#ifdef __CUDACC__
template <class F> __global__ void __launch_bounds__(256) pv3d_kernel(F body, int64_t n) {
    const int64_t step = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) body(i);
}
#endif

// Runs body(0) ... body(n - 1) in any order; returns a CUDA error code, 0 = success.
template <class F> int for_each(const F& body, int64_t n, const Launch& where) {
    if (n == 0) return 0;
#ifdef __CUDACC__
    const int64_t blocks = (n + 255) / 256, most = int64_t(1) << 20;
    pv3d_kernel<<<unsigned(blocks < most ? blocks : most), 256, 0, cudaStream_t(where.stream)>>>(body, n);
    return int(cudaGetLastError());
#else
#pragma omp parallel for num_threads(int(where.threads)) schedule(static) if (where.threads > 1)
    for (int64_t i = 0; i < n; ++i) body(i);
    return 0;
#endif
}

// Calls action.template run<T>() for the element type with this code; -1 for a type that the target lacks.
template <class A> int dispatch(int64_t type, A action) {
    switch (type) {
    case kFloat:
        return action.template run<float>();
    case kDouble:
        return action.template run<double>();
#ifdef __CUDACC__
    case kHalf:
        return action.template run<__half>();
    case kBFloat16:
        return action.template run<__nv_bfloat16>();
#elif defined(__FLT16_MAX__)
    case kHalf:  // what the GPU would run, for tests
        return action.template run<_Float16>();
#endif
    default:
        return -1;
    }
}
