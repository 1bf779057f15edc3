// A kernel that does nothing: shows whether the driver runs what the compiler made.
#include "portable.h"

struct Nothing {
    PV3D_FN void operator()(int64_t) const {}
};

PV3D_API int pv3d_probe() { return for_each(Nothing{}, 1, Launch{1, nullptr}); }
