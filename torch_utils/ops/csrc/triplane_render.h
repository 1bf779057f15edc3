// What the host and the device version of the tri-plane renderer share; see triplane_render.py.
#pragma once
#include "portable.h"

constexpr int kHidden = 64;  // width of the decoder's hidden layer

// Parameters lie one after the other: hidden weight [64, C] and bias, output weight [1 + F, 64] and bias; the
// first output is the density. Gradients of planes have the strides of planes.
struct Scene {
    const void *planes, *params;                         // [N, 3, C, H, W] with C innermost
    const void *origins, *directions, *depths;           // [N, R, 3], [N, R, 3], [N, R, S]
    const void *grad_features, *grad_weights;            // forward: null
    void *features, *weights;                            // [N, R, F] or null, [N, R, S - 1]; backward: null
    void *grad_planes, *grad_params;                     // forward: null; zero at the start
    int64_t n, c, h, w, rays, samples, f;
    int64_t step_n, step_p, step_y, step_x;              // of planes, in elements
    int64_t axes;                                        // coordinates u, v of three planes, two bits each
    double scale, margin, density_bias;                  // of points, of colours, before the softplus

    PV3D_FN int axis(int i) const { return int(axes >> (2 * i)) & 3; }
    PV3D_FN int64_t hidden_bias() const { return kHidden * c; }
    PV3D_FN int64_t out_weight() const { return kHidden * (c + 1); }
    PV3D_FN int64_t out_bias() const { return kHidden * (c + 2 + f); }
    PV3D_FN int64_t num_params() const { return out_bias() + 1 + f; }
};

// a * b, rounded: not one half of a fused multiply-add. Points must be those of the reference to the last bit,
// because a lookup in a large plane magnifies their error.
template <class T> PV3D_FN T product(T a, T b) {
#ifdef __CUDA_ARCH__
    if constexpr (sizeof(T) == 4) return __fmul_rn(a, b);
    else return __dmul_rn(a, b);
#else
    T c = a * b;
    asm("" : "+m"(c));
    return c;
#endif
}

// The point at sample s of ray r (counted over all of N), in units of half a box.
template <class T> PV3D_FN void sample_point(const Scene& a, int64_t r, int64_t s, T* point) {
    const T depth = static_cast<const T*>(a.depths)[r * a.samples + s];
    for (int i = 0; i < 3; ++i) {
        const T along = product(depth, static_cast<const T*>(a.directions)[3 * r + i]);
        point[i] = product(static_cast<const T*>(a.origins)[3 * r + i] + along, T(a.scale));
    }
}

// The four neighbours of a point in a plane: where they are, in elements from the sample's first plane (-1:
// outside, where features are zero), and what they weigh.
template <class T> struct Corners {
    int64_t at[4];
    T weight[4];
    T poison;  // 0, or nan for a point that is not finite: outside, but not to be hidden
};

template <class T> PV3D_FN Corners<T> find_corners(const Scene& a, int plane, const T* point) {
    const T x = product(point[a.axis(2 * plane)] + 1, T(a.w) / 2) - T(0.5);
    const T y = product(point[a.axis(2 * plane + 1)] + 1, T(a.h) / 2) - T(0.5);
    const T left = std::floor(x), top = std::floor(y), u = x - left, v = y - top;
    Corners<T> found;
    found.poison = (x - x) + (y - y);
    for (int i = 0; i < 4; ++i) {
        const T column = left + (i & 1), row = top + (i >> 1);
        const bool inside = column >= 0 && column < a.w && row >= 0 && row < a.h;
        found.at[i] = inside ? plane * a.step_p + int64_t(row) * a.step_y + int64_t(column) * a.step_x : -1;
        found.weight[i] = (i & 1 ? u : 1 - u) * (i >> 1 ? v : 1 - v);
    }
    return found;
}

// The part of light that passes an interval of this length between two raw densities.
template <class T> PV3D_FN T survival(T raw0, T raw1, T length, T bias) {
    const T middle = (raw0 + raw1) / 2 + bias;
    return std::exp(-(middle > 20 ? middle : std::log1p(std::exp(middle))) * length);
}

// Factor of an interval in the transmittance behind it; never zero, the gradient divides by it.
template <class T> PV3D_FN T passing(T survival) { return 1 - (1 - survival) + T(1e-10); }

// Gradient of each of two raw densities from that of the interval's opacity 1 - survival.
template <class T> PV3D_FN T density_gradient(T grad_alpha, T survival, T raw0, T raw1, T length, T bias) {
    const T middle = (raw0 + raw1) / 2 + bias;
    const T slope = middle > 20 ? T(1) : 1 / (1 + std::exp(-middle));
    return grad_alpha * survival * length * slope / 2;
}
