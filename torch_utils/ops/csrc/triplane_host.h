// The tri-plane renderer on a processor: a ray at a time, its samples as the rows of small matrices.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "host_simd.h"
#include "triplane_render.h"

// Arrays begin at cache lines and are zero.
template <class T> struct Buffer {
    std::vector<T> data;
    T* p;
    explicit Buffer(int64_t n) : data(n + 64 / sizeof(T)) {
        p = data.data() + (64 - reinterpret_cast<uintptr_t>(data.data()) % 64) % 64 / sizeof(T);
    }
    Buffer(const Buffer&) = delete;
    operator T*() { return p; }
};

// The decoder with rows padded to whole vectors, in both directions; or the gradient of it.
template <class T> struct Decoder {
    int64_t c, f;  // padded
    Buffer<T> hidden, hidden_t;  // [c, 64], [64, c]
    Buffer<T> hidden_bias, density;  // [64]; weights of the first output [64]
    Buffer<T> color, color_t;  // the others [64, f], [f, 64]
    Buffer<T> color_bias;  // [f]
    T density_bias = 0;

    explicit Decoder(const Scene& a)
        : c(round_up(a.c, kWidth<T>)), f(round_up(a.f, kWidth<T>)), hidden(c * kHidden), hidden_t(c * kHidden),
          hidden_bias(kHidden), density(kHidden), color(f * kHidden), color_t(f * kHidden), color_bias(f) {}

    void fill(const Scene& a) {
        const T* w = static_cast<const T*>(a.params);
        const T *b = w + a.hidden_bias(), *out = w + a.out_weight(), *out_b = w + a.out_bias();
        for (int k = 0; k < kHidden; ++k) {
            for (int64_t i = 0; i < a.c; ++i) hidden[i * kHidden + k] = hidden_t[k * c + i] = w[k * a.c + i];
            hidden_bias[k] = b[k], density[k] = out[k];
            for (int64_t j = 0; j < a.f; ++j)
                color[k * f + j] = color_t[j * kHidden + k] = out[(1 + j) * kHidden + k];
        }
        std::copy(out_b + 1, out_b + 1 + a.f, color_bias.p);
        density_bias = out_b[0];
    }

    // Adds a gradient (hidden, color; not the transposed ones) to params.
    void add_to(const Scene& a) {
        T* w = static_cast<T*>(a.grad_params);
        T *b = w + a.hidden_bias(), *out = w + a.out_weight(), *out_b = w + a.out_bias();
        for (int k = 0; k < kHidden; ++k) {
            for (int64_t i = 0; i < a.c; ++i) w[k * a.c + i] += hidden[i * kHidden + k];
            b[k] += hidden_bias[k], out[k] += density[k];
            for (int64_t j = 0; j < a.f; ++j) out[(1 + j) * kHidden + k] += color[k * f + j];
        }
        for (int64_t j = 0; j < a.f; ++j) out_b[1 + j] += color_bias[j];
        out_b[0] += density_bias;
    }
};

// Matrices of the samples of one ray, used for one ray after another. Rows beyond the samples, and columns
// beyond the channels, are padding that no gradient reaches.
template <class T> struct Ray {
    const Scene& a;
    const Decoder<T>& net;
    const int64_t rows;
    Buffer<T> features, before, hidden, colors;  // [rows, C], [rows, 64] before and after softplus, [rows, F]
    Buffer<T> raw, survived, light, weight;  // [rows]: raw density; of the intervals: see composite
    Buffer<T> grad_raw, seen;  // [rows]; seen: factor of a sample's colours in the pixel
    Buffer<T> zeros, grad_out;  // [C], [F]
    static constexpr int L = kWidth<T>;

    Ray(const Scene& scene, const Decoder<T>& decoder)
        : a(scene), net(decoder), rows(round_up(a.samples, kRows)), features(rows * net.c), before(rows * kHidden),
          hidden(rows * kHidden), colors(rows * net.f), raw(rows), survived(rows), light(rows),
          weight(rows), grad_raw(rows), seen(rows), zeros(net.c), grad_out(net.f) {}

    void look_up(int64_t r, int64_t s, T* out) const {
        const T* planes = static_cast<const T*>(a.planes) + r / a.rays * a.step_n;
        const T third = T(1) / 3;
        T point[3];
        sample_point(a, r, s, point);
        std::fill(out, out + net.c, T(0));
        for (int p = 0; p < 3; ++p) {
            const Corners<T> at = find_corners(a, p, point);
            const T* from[4];
            for (int i = 0; i < 4; ++i) from[i] = at.at[i] < 0 ? zeros.p : planes + at.at[i];
            const T w0 = at.weight[0] * third, w1 = at.weight[1] * third, w2 = at.weight[2] * third,
                    w3 = at.weight[3] * third;
            int64_t c = 0;
            for (; c + L <= a.c; c += L)
                store<T>(out + c, load(out + c) + w0 * load(from[0] + c) + w1 * load(from[1] + c) +
                                      w2 * load(from[2] + c) + w3 * load(from[3] + c) + at.poison);
            for (; c < a.c; ++c)
                out[c] += w0 * from[0][c] + w1 * from[1][c] + w2 * from[2][c] + w3 * from[3][c] + at.poison;
        }
    }

    // Features, hidden layer and raw densities of all samples.
    void decode(int64_t r) {
        for (int64_t s = 0; s < a.samples; ++s) look_up(r, s, features + s * net.c);
        for (int64_t s = 0; s < rows; ++s) std::copy(net.hidden_bias.p, net.hidden_bias.p + kHidden, before + s * kHidden);
        multiply_add<T>(features, net.c, 1, net.hidden.p, before, rows, net.c, kHidden);
        for (int64_t s = 0; s < rows; ++s) {
            Vec<T> sum{};
            for (int k = 0; k < kHidden; k += L) {
                const Vec<T> h = softplus<T>(load(before + s * kHidden + k));
                store<T>(hidden + s * kHidden + k, h);
                sum += h * load(net.density.p + k);
            }
            T total = 0;
            for (int i = 0; i < L; ++i) total += sum[i];
            raw[s] = total + net.density_bias;
        }
    }

    // Outputs of the decoder before the sigmoid.
    void decode_colors() {
        for (int64_t s = 0; s < rows; ++s) std::copy(net.color_bias.p, net.color_bias.p + net.f, colors + s * net.f);
        multiply_add<T>(hidden, kHidden, 1, net.color.p, colors, rows, kHidden, net.f);
    }

    T length(int64_t r, int64_t s) const {
        const T* t = static_cast<const T*>(a.depths) + r * a.samples + s;
        return t[1] - t[0];
    }

    // Weights of the intervals and of the samples from raw densities.
    void composite(int64_t r) {
        T left = 1;
        std::fill(seen.p, seen + rows, T(0));
        for (int64_t s = 0; s + 1 < a.samples; ++s) {
            survived[s] = survival(raw[s], raw[s + 1], length(r, s), T(a.density_bias));
            light[s] = left;
            weight[s] = (1 - survived[s]) * left;
            left *= passing(survived[s]);
            seen[s] += weight[s] / 2, seen[s + 1] += weight[s] / 2;
        }
    }

    void forward(int64_t r) {
        decode(r);
        composite(r);
        std::copy(weight.p, weight + a.samples - 1, static_cast<T*>(a.weights) + r * (a.samples - 1));
        if (!a.features) return;
        decode_colors();
        std::fill(grad_out.p, grad_out + net.f, T(0));
        for (int64_t s = 0; s < a.samples; ++s)
            for (int64_t j = 0; j < net.f; j += L) {
                const Vec<T> color = sigmoid<T>(load(colors + s * net.f + j)) * T(1 + 2 * a.margin) - T(a.margin);
                store<T>(grad_out + j, load(grad_out + j) + color * seen[s]);
            }
        std::copy(grad_out.p, grad_out + a.f, static_cast<T*>(a.features) + r * a.f);
    }

    // Adds a ray's contribution to the gradient of the decoder and stores that of the samples' features [rows, C].
    void backward(int64_t r, Decoder<T>& grad, T* grad_features) {
        decode(r);
        composite(r);
        decode_colors();
        color_gradients(r);
        density_gradients(r);
        for (int64_t s = 0; s < rows; ++s) {
            for (int64_t j = 0; j < net.f; j += L)
                store<T>(grad.color_bias + j, load(grad.color_bias + j) + load(colors + s * net.f + j));
            for (int k = 0; k < kHidden; k += L)
                store<T>(grad.density + k, load(grad.density + k) + grad_raw[s] * load(hidden + s * kHidden + k));
            grad.density_bias += grad_raw[s];
        }
        multiply_add<T>(hidden, 1, kHidden, colors, grad.color, kHidden, rows, net.f);
        for (int64_t s = 0; s < rows; ++s)  // from here on, hidden and before hold gradients
            for (int k = 0; k < kHidden; k += L) store<T>(hidden + s * kHidden + k, grad_raw[s] * load(net.density.p + k));
        multiply_add<T>(colors, net.f, 1, net.color_t.p, hidden, rows, net.f, kHidden);
        for (int64_t s = 0; s < rows; ++s)
            for (int k = 0; k < kHidden; k += L) {
                T* x = before + s * kHidden + k;
                store<T>(x, load(hidden + s * kHidden + k) * sigmoid<T>(load(x)));
                store<T>(grad.hidden_bias + k, load(grad.hidden_bias + k) + load(x));
            }
        multiply_add<T>(features, 1, net.c, before, grad.hidden, net.c, rows, kHidden);
        std::fill(grad_features, grad_features + rows * net.c, T(0));
        multiply_add<T>(before, kHidden, 1, net.hidden_t.p, grad_features, rows, kHidden, net.c);
    }

    // Turns colours into their gradients; leaves the product of features' gradient and colours in grad_raw.
    void color_gradients(int64_t r) {
        const T* given = static_cast<const T*>(a.grad_features) + r * a.f;
        std::copy(given, given + a.f, grad_out.p);
        const T stretch = T(1 + 2 * a.margin);
        for (int64_t s = 0; s < rows; ++s) {
            Vec<T> sum{};
            for (int64_t j = 0; j < net.f; j += L) {
                T* x = colors + s * net.f + j;
                const Vec<T> y = sigmoid<T>(load(x)), g = load(grad_out + j);
                sum += g * (y * stretch - T(a.margin));
                store<T>(x, g * seen[s] * stretch * y * (1 - y));
            }
            grad_raw[s] = 0;
            for (int i = 0; i < L; ++i) grad_raw[s] += sum[i];
        }
    }

    void density_gradients(int64_t r) {
        const T* given = static_cast<const T*>(a.grad_weights) + r * (a.samples - 1);
        T* along = seen;  // from here on: gradient of the weight of an interval
        for (int64_t s = 0; s + 1 < a.samples; ++s) along[s] = given[s] + (grad_raw[s] + grad_raw[s + 1]) / 2;
        std::fill(grad_raw.p, grad_raw + rows, T(0));
        T behind = 0;  // sum of gradient times weight of the intervals farther away
        for (int64_t s = a.samples - 2; s >= 0; --s) {
            const T alpha = along[s] * light[s] - behind / passing(survived[s]);
            const T g = density_gradient(alpha, survived[s], raw[s], raw[s + 1], length(r, s), T(a.density_bias));
            grad_raw[s] += g, grad_raw[s + 1] += g;
            behind += along[s] * weight[s];
        }
    }
};

// Adds the gradients of the features of rays first ... last - 1 to channels begin ... end - 1 of one plane.
template <class T>
void scatter(const Scene& a, int plane, int64_t begin, int64_t end, int64_t first, int64_t last, const T* grad,
             int64_t rows, int64_t columns) {
    const T third = T(1) / 3;
    for (int64_t r = first; r < last; ++r)
        for (int64_t s = 0; s < a.samples; ++s) {
            T point[3];
            sample_point(a, r, s, point);
            const Corners<T> at = find_corners(a, plane, point);
            const T* from = grad + ((r - first) * rows + s) * columns;
            for (int i = 0; i < 4; ++i) {
                if (at.at[i] < 0) continue;
                T* to = static_cast<T*>(a.grad_planes) + r / a.rays * a.step_n + at.at[i];
                const T weight = at.weight[i] * third;
                int64_t c = begin;
                for (; c + kWidth<T> <= end; c += kWidth<T>) store<T>(to + c, load(to + c) + weight * load(from + c));
                for (; c < end; ++c) to[c] += weight * from[c];
            }
        }
}

template <class T> int host_forward(const Scene& a, int threads) {
    Decoder<T> net(a);
    net.fill(a);
#pragma omp parallel num_threads(threads)
    {
        Ray<T> ray(a, net);
#pragma omp for schedule(dynamic, 16)
        for (int64_t r = 0; r < a.n * a.rays; ++r) ray.forward(r);
    }
    return 0;
}

// The same result with any number of threads: sums over rays are taken in parts that do not depend on it, and
// each plane's channels are added to by one thread, ray after ray.
template <class T> int host_backward(const Scene& a, int threads) {
    constexpr int64_t kParts = 32, kPartRays = 4, kChunk = kParts * kPartRays;
    Decoder<T> net(a);
    net.fill(a);
    std::vector<std::unique_ptr<Decoder<T>>> grads;
    for (int p = 0; p < kParts; ++p) grads.push_back(std::make_unique<Decoder<T>>(a));
    const int64_t rays = a.n * a.rays, rows = round_up(a.samples, kRows), size = rows * net.c;
    const int64_t slice = threads > 3 ? kWidth<T> : net.c, slices = net.c / slice;
    Buffer<T> grad_features(kChunk * size);
#pragma omp parallel num_threads(threads)
    {
        Ray<T> ray(a, net);
        for (int64_t first = 0; first < rays; first += kChunk) {
            const int64_t last = std::min(first + kChunk, rays);
#pragma omp for schedule(dynamic)
            for (int64_t p = 0; p < kParts; ++p)
                for (int64_t r = first + p * kPartRays; r < std::min(first + (p + 1) * kPartRays, last); ++r)
                    ray.backward(r, *grads[p], grad_features + (r - first) * size);
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < 3 * slices; ++i) {
                const int64_t begin = i / 3 * slice, end = std::min(begin + slice, a.c);
                scatter<T>(a, int(i % 3), begin, end, first, last, grad_features, rows, net.c);
            }
        }
    }
    for (auto& grad : grads) grad->add_to(a);
    return 0;
}
