// The tri-plane renderer on a GPU: a block renders one ray after another, a thread decodes a sample.
//
// The body is a sequence of phases, each a loop over the threads with a barrier behind it; all that passes from
// one phase to the next lies in shared memory. So the host can run it, thread after thread, in tests.
#pragma once
#include "triplane_render.h"

#ifdef __CUDACC__  // functions of double: 64 copies of exp in a loop take nvcc half a minute
#define PV3D_CALLED static __host__ __device__ __noinline__
#else
#define PV3D_CALLED inline
#endif

template <class F> PV3D_FN void phase(int threads, const F& f) {
#ifdef __CUDA_ARCH__
    f(int(threadIdx.x));
    __syncthreads();
#else
    for (int t = 0; t < threads; ++t) f(t);
#endif
}

template <class T> PV3D_FN void add(T* p, T x) {
#ifdef __CUDA_ARCH__
    atomicAdd(p, x);
#else
    *p += x;
#endif
}

template <class T> PV3D_FN T quotient(T a, T b) {
#ifdef __CUDA_ARCH__
    if constexpr (sizeof(T) == 4) return __fdividef(a, b);
#endif
    return a / b;
}

template <class T> PV3D_FN T logistic(T x) { return quotient(T(1), 1 + std::exp(-x)); }

// log(1 + e^x); in float by the series of 2 artanh(e / (2 + e)), as on the host: log1p costs twice as much.
PV3D_CALLED double smooth_ramp(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }

PV3D_FN float smooth_ramp(float x) {
    using T = float;
    const T e = std::exp(-std::fabs(x)), z = quotient(e, e + 2), u = z * z;
    T p = u * T(0.140891664529) + T(0.139803015994);
    p = p * u + T(0.200124551256);
    p = p * u + T(0.333331573413);
    p = p * u + T(1.000000003961);
    return (x > 0 ? x : T(0)) + p * (z + z);
}

// Slope of smooth_ramp where its value is y.
PV3D_CALLED double ramp_slope(double y) { return -std::expm1(-y); }
PV3D_FN float ramp_slope(float y) { return -std::expm1(-y); }

// Shared memory of a block and what it does. T: float or double.
template <class T> struct Block {
    Scene a;
    int threads, row;   // row: stride of `rows`
    int64_t size;       // of shared memory, in elements
    T *w1, *b1, *w2, *b2;                 // hidden weight [C, 64] and bias, output weight [1 + F, 64] and bias
    T *rows;                              // [S, row]: features of samples; forward: then colours
    T *raw, *kept, *light, *weight, *seen, *behind, *spare;  // [S], see the host version; kept: survival
    T *sums, *given;                      // [threads]; gradient of the features [F]
    T *weights12, *poison;                // of the corners of a tile of samples [threads, 12], [threads]
    int32_t* at12;                        // [threads, 12]
    T *grad1, *grad2;                     // gradients [C + 1, 64], [1 + F, 65]; the last of C + 1 and 65: biases
    T *hidden, *out;                      // of a tile [threads, 65], [threads, F + 2]; out shares with weights12

    PV3D_FN Block(const Scene& scene, bool backward) : a(scene), size(0) {
        const int s = int(a.samples), c = int(a.c), f = int(a.f);
        threads = s <= 64 ? 64 : s <= 96 ? 96 : 128;
        row = ((c > f ? c : f) + 1) | 1;
        T* no_memory = nullptr;
        place(no_memory, backward);
    }

    PV3D_FN int64_t bytes() const { return size * sizeof(T); }

    // Divides the shared memory.
    PV3D_FN void place(T* base, bool backward) {
        size = 0;
        const auto take = [&](int64_t n) {
            T* p = base + size;
            size += (n + 3) / 4 * 4;
            return p;
        };
        w1 = take(a.c * kHidden), b1 = take(kHidden), w2 = take((1 + a.f) * kHidden), b2 = take(1 + a.f);
        rows = take(a.samples * row);
        raw = take(a.samples), kept = take(a.samples), light = take(a.samples), weight = take(a.samples);
        seen = take(a.samples), behind = take(a.samples), spare = take(a.samples);
        sums = take(threads), given = take(a.f);
        const int64_t before = size;
        weights12 = take(threads * 12), poison = take(threads);
        at12 = reinterpret_cast<int32_t*>(take(threads * 12));
        if (!backward) return;
        const int64_t after = size;
        size = before;
        out = take(threads * (a.f + 2));
        size = size > after ? size : after;
        hidden = take(threads * (kHidden + 1)), grad1 = take((a.c + 1) * kHidden);
        grad2 = take((1 + a.f) * (kHidden + 1));
    }

    PV3D_FN int tiles() const { return int((a.samples + threads - 1) / threads); }
    PV3D_FN int count(int tile) const {
        const int left = int(a.samples) - tile * threads;
        return left < threads ? left : threads;
    }

    template <class F> PV3D_FN void each(int64_t n, const F& f) const {  // f(0) ... f(n - 1), then a barrier
        const int step = threads;
        phase(threads, [&](int t) {
            for (int64_t i = t; i < n; i += step) f(int(i));
        });
    }

    PV3D_FN void load_decoder() {
        const T* p = static_cast<const T*>(a.params);
        each(a.num_params(), [&](int i) {
            if (i < a.hidden_bias()) w1[i % a.c * kHidden + i / a.c] = p[i];
            else if (i < a.out_weight()) b1[i - a.hidden_bias()] = p[i];
            else if (i < a.out_bias()) w2[i - a.out_weight()] = p[i];
            else b2[i - a.out_bias()] = p[i];
        });
    }

    PV3D_FN void corners_of_tile(int64_t r, int tile) {
        each(count(tile), [&](int s) {
            T point[3];
            sample_point(a, r, tile * threads + s, point);
            T bad = 0;
            for (int p = 0; p < 3; ++p) {
                const Corners<T> found = find_corners(a, p, point);
                bad += found.poison;
                for (int i = 0; i < 4; ++i) {
                    at12[s * 12 + p * 4 + i] = int32_t(found.at[i]);
                    weights12[s * 12 + p * 4 + i] = found.weight[i] / 3;
                }
            }
            poison[s] = bad;
        });
    }

    template <int V> PV3D_FN void look_up(int64_t r, int tile) {
        const T* planes = static_cast<const T*>(a.planes) + r / a.rays * a.step_n;
        const int groups = int(a.c) / V;
        each(int64_t(count(tile)) * groups, [&](int i) {
            const int s = i / groups, c = i % groups * V;
            T sum[V];
            for (int v = 0; v < V; ++v) sum[v] = poison[s];
#pragma unroll
            for (int k = 0; k < 12; ++k) {
                const int at = at12[s * 12 + k];
                if (at < 0) continue;
                const auto pack = *reinterpret_cast<const Pack<T, V>*>(planes + at + c);
                for (int v = 0; v < V; ++v) sum[v] += weights12[s * 12 + k] * pack.at[v];
            }
            for (int v = 0; v < V; ++v) rows[(tile * threads + s) * row + c + v] = sum[v];
        });
    }

    // sum += x * line[0 ... 63]
    static PV3D_FN void axpy(T x, const T* line, T* sum) {
#pragma unroll
        for (int k = 0; k < kHidden; ++k) sum[k] += x * line[k];
    }

    static PV3D_FN T dot(const T* x, const T* line) {
        T sum[4] = {0, 0, 0, 0};
#pragma unroll
        for (int k = 0; k < kHidden; ++k) sum[k % 4] += x[k] * line[k];
        return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }

    PV3D_FN void hidden_layer(const T* features, T* h) const {
#pragma unroll
        for (int k = 0; k < kHidden; ++k) h[k] = b1[k];
        for (int c = 0; c < a.c; ++c) axpy(features[c], w1 + c * kHidden, h);
#pragma unroll
        for (int k = 0; k < kHidden; ++k) h[k] = smooth_ramp(h[k]);
    }

    PV3D_FN T color(T x) const { return logistic(x) * T(1 + 2 * a.margin) - T(a.margin); }

    // Raw densities of the samples; forward: their colours, backward: `seen` = the gradient's part along them.
    template <int V> PV3D_FN void decode(int64_t r) {
        for (int tile = 0; tile < tiles(); ++tile) {
            corners_of_tile(r, tile);
            look_up<V>(r, tile);
            each(count(tile), [&](int i) {
                const int s = tile * threads + i;
                T *features = rows + s * row, h[kHidden], along = 0;
                hidden_layer(features, h);
                raw[s] = dot(h, w2) + b2[0];
                if (!a.features && !a.grad_planes) return;
                for (int j = 1; j <= a.f; ++j) {
                    const T x = color(dot(h, w2 + j * kHidden) + b2[j]);
                    if (a.features) features[j - 1] = x;
                    else along += x * given[j - 1];
                }
                seen[s] = along;
            });
        }
    }

    PV3D_FN T length(int64_t r, int s) const {
        const T* t = static_cast<const T*>(a.depths) + r * a.samples + s;
        return t[1] - t[0];
    }

    // Replaces x[0 ... n - 1] by op over all before and at each, or behind and at each; uses `spare`.
    template <class Op> PV3D_FN void scan(T*& x, int n, bool behind, const Op& op) {
        for (int d = 1; d < n; d *= 2) {
            each(n, [&](int i) {
                const int j = behind ? i + d : i - d;
                spare[i] = j < 0 || j >= n ? x[i] : op(x[i], x[j]);
            });
            T* old = x;
            x = spare, spare = old;
        }
    }

    // survival, transmittance and weight of intervals
    PV3D_FN void composite(int64_t r) {
        const int n = int(a.samples) - 1;
        each(n, [&](int i) {
            kept[i] = survival(raw[i], raw[i + 1], length(r, i), T(a.density_bias));
            light[i] = passing(kept[i]);
        });
        scan(light, n, false, [](T x, T y) { return x * y; });
        each(n, [&](int i) { weight[i] = (1 - kept[i]) * (i ? light[i - 1] : T(1)); });
    }

    // Factor of a sample's colours in the pixel.
    PV3D_FN T share(int s) const {
        return ((s ? weight[s - 1] : T(0)) + (s + 1 < a.samples ? weight[s] : T(0))) / 2;
    }

    template <int V> PV3D_FN void forward(int64_t r) {
        decode<V>(r);
        composite(r);
        T* to = static_cast<T*>(a.weights) + r * (a.samples - 1);
        each(a.samples - 1, [&](int i) { to[i] = weight[i]; });
        if (!a.features) return;
        const int f = int(a.f), parts = threads / f;
        each(f * parts, [&](int i) {
            T sum = 0;
            for (int s = i / f; s < a.samples; s += parts) sum += share(s) * rows[s * row + i % f];
            sums[i] = sum;
        });
        each(f, [&](int j) {
            T sum = 0;
            for (int i = 0; i < parts; ++i) sum += sums[i * f + j];
            static_cast<T*>(a.features)[r * f + j] = sum;
        });
    }

    // Turns raw densities into their gradients, in `seen`.
    PV3D_FN void density_gradients(int64_t r) {
        const int n = int(a.samples) - 1;
        const T* of_weight = static_cast<const T*>(a.grad_weights) + r * n;
        const auto along = [&](int i) { return of_weight[i] + (seen[i] + seen[i + 1]) / 2; };
        each(n, [&](int i) { behind[i] = along(i) * weight[i]; });
        scan(behind, n, true, [](T x, T y) { return x + y; });
        each(n, [&](int i) {
            const T rest = i + 1 < n ? behind[i + 1] : T(0);
            const T alpha = along(i) * (i ? light[i - 1] : T(1)) - rest / passing(kept[i]);
            spare[i] = density_gradient(alpha, kept[i], raw[i], raw[i + 1], length(r, i), T(a.density_bias));
        });
        each(a.samples, [&](int s) { seen[s] = (s ? spare[s - 1] : T(0)) + (s < n ? spare[s] : T(0)); });
    }

    // Hidden layer of a tile's samples, again, and gradients of the outputs, the density's first.
    PV3D_FN void out_gradients(int tile) {
        each(count(tile), [&](int i) {
            const int s = tile * threads + i;
            T h[kHidden], *to = out + i * (a.f + 2);
            rows[s * row + a.c] = 1;  // its product with a gradient is that of the bias
            hidden_layer(rows + s * row, h);
            to[0] = seen[s];
            const T factor = share(s) * T(1 + 2 * a.margin);
            for (int j = 1; j <= a.f; ++j) {
                const T y = logistic(dot(h, w2 + j * kHidden) + b2[j]);
                to[j] = given[j - 1] * factor * y * (1 - y);
            }
            for (int k = 0; k < kHidden; ++k) hidden[i * (kHidden + 1) + k] = h[k];
            hidden[i * (kHidden + 1) + kHidden] = 1;
        });
    }

    // Replaces the hidden layer by the gradient before its activation.
    PV3D_FN void hidden_gradients(int tile) {
        each(count(tile), [&](int i) {
            T g[kHidden] = {}, *h = hidden + i * (kHidden + 1);
            for (int j = 0; j <= a.f; ++j) axpy(out[i * (a.f + 2) + j], w2 + j * kHidden, g);
#pragma unroll
            for (int k = 0; k < kHidden; ++k) h[k] = g[k] * ramp_slope(h[k]);
        });
    }

    // sum [m, n] += A^T B over the samples of a tile; a thread makes pieces of 8 x 4.
    PV3D_FN void outer(T* sum, int m, int n, const T* x, int step_x, const T* y, int step_y, int samples) {
        const int across = (n + 3) / 4;
        each((m + 7) / 8 * across, [&](int item) {
            const int i0 = item / across * 8, j0 = item % across * 4;
            T part[8][4] = {};
            for (int s = 0; s < samples; ++s) {
                T left[8], right[4];
                for (int i = 0; i < 8; ++i) left[i] = x[s * step_x + (i0 + i < m ? i0 + i : m - 1)];
                for (int j = 0; j < 4; ++j) right[j] = y[s * step_y + (j0 + j < n ? j0 + j : n - 1)];
                for (int i = 0; i < 8; ++i)
                    for (int j = 0; j < 4; ++j) part[i][j] += left[i] * right[j];
            }
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (i0 + i < m && j0 + j < n) sum[(i0 + i) * n + j0 + j] += part[i][j];
        });
    }

    // Adds gradients of features, which it first computes from those of the hidden layer, to the planes.
    PV3D_FN void scatter(int64_t r, int tile) {
        const int c = int(a.c);
        T* planes = static_cast<T*>(a.grad_planes) + r / a.rays * a.step_n;
        each(count(tile), [&](int i) {
            T g[kHidden], *to = rows + (tile * threads + i) * row;
#pragma unroll
            for (int k = 0; k < kHidden; ++k) g[k] = hidden[i * (kHidden + 1) + k];
            for (int j = 0; j < c; ++j) to[j] = dot(g, w1 + j * kHidden);
        });
        corners_of_tile(r, tile);
        each(int64_t(count(tile)) * c, [&](int i) {
            const int s = i / c, j = i % c;
            const T g = rows[(tile * threads + s) * row + j];
            for (int k = 0; k < 12; ++k) {
                const int at = at12[s * 12 + k];
                if (at >= 0) add(planes + at + j, g * weights12[s * 12 + k]);
            }
        });
    }

    template <int V> PV3D_FN void backward(int64_t r) {
        each(a.f, [&](int j) { given[j] = static_cast<const T*>(a.grad_features)[r * a.f + j]; });
        decode<V>(r);
        composite(r);
        density_gradients(r);
        const int c = int(a.c), f = int(a.f);
        for (int tile = 0; tile < tiles(); ++tile) {
            out_gradients(tile);
            outer(grad2, 1 + f, kHidden + 1, out, f + 2, hidden, kHidden + 1, count(tile));
            hidden_gradients(tile);
            outer(grad1, c + 1, kHidden, rows + tile * threads * row, row, hidden, kHidden + 1, count(tile));
            scatter(r, tile);
        }
    }

    PV3D_FN void clear_gradients() {
        each((a.c + 1) * kHidden, [&](int i) { grad1[i] = 0; });
        each((1 + a.f) * (kHidden + 1), [&](int i) { grad2[i] = 0; });
    }

    PV3D_FN void add_gradients() {
        T* p = static_cast<T*>(a.grad_params);
        each((a.c + 1) * kHidden, [&](int i) {
            const int c = i / kHidden, k = i % kHidden;
            add(p + (c < a.c ? k * a.c + c : a.hidden_bias() + k), grad1[i]);
        });
        each((1 + a.f) * (kHidden + 1), [&](int i) {
            const int j = i / (kHidden + 1), k = i % (kHidden + 1);
            add(p + (k < kHidden ? a.out_weight() + j * kHidden + k : a.out_bias() + j), grad2[i]);
        });
    }

    // Rays first, first + step, ...
    template <int V, bool B> PV3D_FN void render(int64_t first, int64_t step) {
        load_decoder();
        if constexpr (B) clear_gradients();
        for (int64_t r = first; r < a.n * a.rays; r += step) {
            if constexpr (B) backward<V>(r);
            else forward<V>(r);
        }
        if constexpr (B) add_gradients();
    }
};
