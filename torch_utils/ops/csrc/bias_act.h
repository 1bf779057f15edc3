// Operands of bias_act and its arithmetic, which host and device share.
#pragma once
#include "portable.h"

// Small operands have the type of sums: float for half precision. Null = absent.
template <class T> struct Args {
    using A = wide_t<T>;
    const A *scale, *noise, *strength, *bias;  // [N, C], [N or 1, inner], [1], [C]
    int64_t n, channels, inner, last, noise_n;  // last: channels come last, 1 or 0
    A slope, gain, limit;        // a limit below 0 means none
    A inverse, inverse_below;    // 1 / gain, 1 / (gain slope)

    // Noise of the pixels of a sample, or null.
    PV3D_FN const A* noise_of(int64_t sample) const { return noise ? noise + (noise_n > 1 ? sample * inner : 0) : noise; }

    PV3D_FN A activate(A z) const {
        z = (z > 0 ? z : z * slope) * gain;
        return limit < 0 ? z : z > limit ? limit : z < -limit ? -limit : z;
    }

    // Derivative of activate where its result was y.
    PV3D_FN A factor(A y) const {
        const A d = y > 0 ? gain : gain * slope;
        return limit < 0 || (y < limit && y > -limit) ? d : A(0);
    }

    // Input of activate where its result was y; wrong where it was clamped, but there the derivative is 0.
    PV3D_FN A before(A y) const { return y * (y > 0 ? inverse : inverse_below); }
};

// One pass of the backward: dx, and the sums over pixels of d, d x and d noise, where d = dy derivative. Without
// x, d z in place of d x, where z = x scale + noise strength + bias, which follows from the result y.
template <class T> struct Gradients {
    Args<T> a;
    const T *dy, *y, *x;  // x may be null
    T* dx;
    wide_t<T>* sums;      // [N, parts, C, 3] with channels last, otherwise [N, C, parts, 3]
    int64_t part, parts;  // parts of the pixels; on the host, part neighbouring ones each
};
