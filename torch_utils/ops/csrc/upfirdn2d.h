// Sizes that the kernels of upfirdn2d share; see upfirdn2d.py for what they mean.
#pragma once
#include "portable.h"

struct Shape {
    int64_t n, c, h, w;        // input
    int64_t out_h, out_w;      // output
    int64_t fh, fw;            // filter
    int64_t up, down, left, top;
    int64_t channels_last;     // layout of input and output, 1 or 0
    int64_t flip;              // 1: correlate with the filter, 0: convolve
    double gain;

    // Position in the filter of the tap that meets offset i, counted row by row.
    PV3D_FN int64_t tap(int64_t i) const { return flip ? i : fh * fw - 1 - i; }
};
