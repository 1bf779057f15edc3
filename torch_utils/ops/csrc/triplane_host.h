// The tri-plane renderer on a processor: a few rays at a time, their samples as the rows of small matrices.
#pragma once
#include <memory>

#include "triplane_lookup.h"

constexpr int64_t kParts = 32, kPartRays = 4;  // parts of the sums over rays

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

// Matrices of the samples of some rays, ray after ray, for one bundle of rays after another. Rows beyond the
// samples, and columns beyond the channels, are padding that no gradient reaches. An interval belongs to the
// sample at its near end; the last sample of a ray has one of weight zero.
template <class T> struct Bundle {
    static constexpr int L = kWidth<T>;
    const Scene& a;
    const Decoder<T>& net;
    const int64_t size;  // most rows
    int64_t samples = 0, rows = 0;  // of this bundle
    Lookup<T> lookup;
    Buffer<T> features, slope, hidden, colors;  // [rows, C], [rows, 64] softplus and its slope, [rows, F]
    Buffer<T> raw, survived, light, weight, behind;  // [rows]: raw density; of intervals: see composite
    Buffer<T> grad_raw, along, seen;  // [rows]; gradient of a weight; factor of a sample's colours in the pixel
    Buffer<T> grad_out;  // [F]

    Bundle(const Scene& scene, const Decoder<T>& decoder, int64_t most_rays)
        : a(scene), net(decoder), size(round_up(most_rays * a.samples, kRows)), lookup(a, most_rays),
          features(size * net.c), slope(size * kHidden), hidden(size * kHidden), colors(size * net.f),
          raw(size + L), survived(size + L), light(size + L), weight(size + L), behind(size + L),
          grad_raw(size + 2 * L), along(size + L), seen(size + L), grad_out(net.f) {}

    // Features, hidden layer and raw densities of all samples of rays.
    template <bool kSlope> void decode(int64_t begin, int64_t end) {
        samples = (end - begin) * a.samples, rows = round_up(samples, kRows);
        lookup.find_points(begin, end);
        for (int p = 0; p < 3; ++p) lookup.find_corners(p);
        lookup.gather(features, net.c);
        std::fill(features + samples * net.c, features + rows * net.c, T(0));
        for (int64_t s = 0; s < rows; ++s) std::copy(net.hidden_bias.p, net.hidden_bias + kHidden, hidden + s * kHidden);
        multiply_add<T>(features, net.c, 1, net.hidden.p, hidden, rows, net.c, kHidden);
        for (int64_t s = 0; s < rows; ++s) {
            Vec<T> sum{};
            for (int64_t k = s * kHidden; k < (s + 1) * kHidden; k += L) {
                const Vec<T> x = load(hidden + k), e = exp_minus_abs<T>(x), h = softplus<T>(x, e);
                store<T>(hidden + k, h);
                if (kSlope) store<T>(slope + k, sigmoid<T>(x, e));
                sum += h * load(net.density + k % kHidden);
            }
            raw[s] = lane_sum<T>(sum) + net.density_bias;
        }
    }

    // Outputs of the decoder before the sigmoid.
    void decode_colors() {
        for (int64_t s = 0; s < rows; ++s) std::copy(net.color_bias.p, net.color_bias + net.f, colors + s * net.f);
        multiply_add<T>(hidden, kHidden, 1, net.color.p, colors, rows, kHidden, net.f);
    }

    // Length of the intervals at s, s + 1, ...; and the raw density in their middle.
    Vec<T> length(int64_t s) const { return load(lookup.depth + s + 1) - load(lookup.depth + s); }
    Vec<T> middle(int64_t s) const { return (load(raw + s) + load(raw + s + 1)) / 2 + T(a.density_bias); }

    // Weights of the intervals and of the samples from raw densities.
    void composite() {
        for (int64_t s = 0; s < samples; s += L) {
            const Vec<T> x = middle(s);
            store<T>(survived + s, exp_minus_abs<T>(softplus<T>(x, exp_minus_abs<T>(x)) * length(s)));
        }
        for (int64_t start = 0; start < samples; start += a.samples) {
            T left = 1, before = 0;
            survived[start + a.samples - 1] = 1;
            for (int64_t s = start; s < start + a.samples; ++s) {
                light[s] = left;
                weight[s] = (1 - survived[s]) * left;
                left *= passing(survived[s]);
                seen[s] = (weight[s] + before) / 2;
                before = weight[s];
            }
        }
    }

    void forward(int64_t begin, int64_t end) {
        decode<false>(begin, end);
        composite();
        T* weights = static_cast<T*>(a.weights) + begin * (a.samples - 1);
        for (int64_t s = 0; s < samples; s += a.samples, weights += a.samples - 1)
            std::copy(weight + s, weight + s + a.samples - 1, weights);
        if (!a.features) return;
        decode_colors();
        T* out = static_cast<T*>(a.features) + begin * a.f;
        for (int64_t start = 0; start < samples; start += a.samples, out += a.f) {
            for (int64_t j = 0; j < net.f; j += L) {
                Vec<T> sum{};
                for (int64_t s = start; s < start + a.samples; ++s)
                    sum += (sigmoid<T>(load(colors + s * net.f + j)) * T(1 + 2 * a.margin) - T(a.margin)) * seen[s];
                store<T>(grad_out + j, sum);
            }
            std::copy(grad_out.p, grad_out + a.f, out);
        }
    }

    // Adds the contribution of rays to the gradient of the decoder and stores that of the features [rows, C].
    void backward(int64_t begin, int64_t end, Decoder<T>& grad, T* grad_features) {
        decode<true>(begin, end);
        composite();
        decode_colors();
        color_gradients(begin);
        density_gradients(begin);
        multiply_add<T>(hidden, 1, kHidden, colors, grad.color, kHidden, rows, net.f);
        for (int64_t j = 0; j < net.f; j += L) {
            Vec<T> sum = load(grad.color_bias + j);
            for (int64_t s = 0; s < rows; ++s) sum += load(colors + s * net.f + j);
            store<T>(grad.color_bias + j, sum);
        }
        for (int64_t s = 0; s < rows; ++s) grad.density_bias += grad_raw[s];
        for (int k = 0; k < kHidden; k += L) {  // from here on, hidden and slope hold gradients
            Vec<T> sum = load(grad.density + k);
            for (int64_t s = 0; s < rows; ++s) {
                sum += grad_raw[s] * load(hidden + s * kHidden + k);
                store<T>(hidden + s * kHidden + k, grad_raw[s] * load(net.density + k));
            }
            store<T>(grad.density + k, sum);
        }
        multiply_add<T>(colors, net.f, 1, net.color_t.p, hidden, rows, net.f, kHidden);
        for (int k = 0; k < kHidden; k += L) {
            Vec<T> sum = load(grad.hidden_bias + k);
            for (int64_t i = k; i < rows * kHidden; i += kHidden) {
                const Vec<T> x = load(hidden + i) * load(slope + i);
                store<T>(slope + i, x);
                sum += x;
            }
            store<T>(grad.hidden_bias + k, sum);
        }
        multiply_add<T>(features, 1, net.c, slope, grad.hidden, net.c, rows, kHidden);
        std::fill(grad_features, grad_features + rows * net.c, T(0));
        multiply_add<T>(slope, kHidden, 1, net.hidden_t.p, grad_features, rows, kHidden, net.c);
    }

    // Turns colours into their gradients; leaves the product of features' gradient and colours in grad_raw.
    void color_gradients(int64_t begin) {
        const T* given = static_cast<const T*>(a.grad_features) + begin * a.f;
        const T stretch = T(1 + 2 * a.margin);
        for (int64_t start = 0; start < samples; start += a.samples, given += a.f) {
            std::copy(given, given + a.f, grad_out.p);
            for (int64_t s = start; s < start + a.samples; ++s) {
                Vec<T> sum{};
                for (int64_t j = 0; j < net.f; j += L) {
                    T* x = colors + s * net.f + j;
                    const Vec<T> y = sigmoid<T>(load(x)), g = load(grad_out + j);
                    sum += g * (y * stretch - T(a.margin));
                    store<T>(x, g * seen[s] * stretch * y * (1 - y));
                }
                grad_raw[s] = lane_sum<T>(sum);
            }
        }
        std::fill(colors + samples * net.f, colors + rows * net.f, T(0));
    }

    void density_gradients(int64_t begin) {
        const T* given = static_cast<const T*>(a.grad_weights) + begin * (a.samples - 1);
        for (int64_t start = 0; start < samples; start += a.samples, given += a.samples - 1) {
            T sum = 0;  // of gradient times weight of the intervals farther away
            const int64_t last = start + a.samples - 1;
            along[last] = behind[last] = 0;
            for (int64_t s = last - 1; s >= start; --s) {
                along[s] = given[s - start] + (grad_raw[s] + grad_raw[s + 1]) / 2;
                behind[s] = sum / passing(survived[s]);
                sum += along[s] * weight[s];
            }
        }
        for (int64_t s = 0; s < samples; s += L) {
            const Vec<T> alpha = load(along + s) * load(light + s) - load(behind + s);
            store<T>(along + s, alpha * load(survived + s) * length(s) * sigmoid<T>(middle(s)) / 2);  // of its two raw densities
        }
        for (int64_t start = 0; start < samples; start += a.samples) {
            T before = 0;
            for (int64_t s = start; s < start + a.samples; ++s) {
                const T g = s + 1 < start + a.samples ? along[s] : T(0);
                grad_raw[s] = before + g;
                before = g;
            }
        }
        std::fill(grad_raw + samples, grad_raw + rows, T(0));
    }
};

// How many rays a bundle has: a power of two, at most a part.
inline int64_t bundle_rays(const Scene& a) {
    constexpr int64_t kSamples = 64;  // with more, matrices leave the first cache
    int64_t rays = 1;
    while (2 * rays <= kPartRays && 2 * rays * a.samples <= kSamples) rays *= 2;
    return rays;
}

template <class T> int host_forward(const Scene& a, int threads) {
    Decoder<T> net(a);
    net.fill(a);
    const int64_t rays = a.n * a.rays, step = bundle_rays(a);
#pragma omp parallel num_threads(threads)
    {
        Bundle<T> bundle(a, net, step);
#pragma omp for schedule(dynamic, 16)
        for (int64_t r = 0; r < rays; r += step) bundle.forward(r, std::min(r + step, rays));
    }
    return 0;
}

// The same result with any number of threads: sums over rays are taken in parts that do not depend on it, and
// each plane's channels are added to by one thread, ray after ray.
template <class T> int host_backward(const Scene& a, int threads) {
    constexpr int64_t kChunk = kParts * kPartRays;
    Decoder<T> net(a);
    net.fill(a);
    std::vector<std::unique_ptr<Decoder<T>>> grads;
    for (int p = 0; p < kParts; ++p) grads.push_back(std::make_unique<Decoder<T>>(a));
    const int64_t rays = a.n * a.rays, step = bundle_rays(a), rows = round_up(step * a.samples, kRows);
    const int64_t slice = threads > 3 ? kWidth<T> : net.c, slices = net.c / slice;
    Buffer<T> grad_features(kChunk / step * rows * net.c);
    const auto of_bundle = [&](int64_t r) { return grad_features + r % kChunk / step * rows * net.c; };
#pragma omp parallel num_threads(threads)
    {
        Bundle<T> bundle(a, net, step);
        Lookup<T>& lookup = bundle.lookup;
        for (int64_t first = 0; first < rays; first += kChunk) {
            const int64_t last = std::min(first + kChunk, rays);
#pragma omp for schedule(dynamic)
            for (int64_t p = 0; p < kParts; ++p) {
                const int64_t end = std::min(first + (p + 1) * kPartRays, last);
                for (int64_t r = first + p * kPartRays; r < end; r += step)
                    bundle.backward(r, std::min(r + step, end), *grads[p], of_bundle(r));
            }
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < 3 * slices; ++i) {
                const int plane = int(i % 3);
                const int64_t begin = i / 3 * slice, end = std::min(begin + slice, a.c);
                for (int64_t r = first; r < last; r += step) {
                    lookup.find_points(r, std::min(r + step, last));
                    lookup.find_corners(plane);
                    lookup.scatter(plane, of_bundle(r), net.c, begin, end);
                }
            }
        }
    }
    for (auto& grad : grads) grad->add_to(a);
    return 0;
}
