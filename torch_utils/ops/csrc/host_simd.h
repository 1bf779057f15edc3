// Vectors of the host: arithmetic by the compiler's vector types, exp, log1p and sigmoid that keep to vector
// instructions, and a small matrix product. Not for nvcc.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __AVX512F__
constexpr int kVectorBytes = 64, kRows = 8;  // rows of a tile of the product: 16 sums fit the registers
#else
constexpr int kVectorBytes = 32, kRows = 4;
#endif

template <class T, int B> struct Vector {
    typedef T type __attribute__((vector_size(B)));
};
template <class T> using Int = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;  // as wide as T
template <class T> using Vec = typename Vector<T, kVectorBytes>::type;
template <class T> using VecInt = Vec<Int<T>>;
template <class T> constexpr int kWidth = kVectorBytes / sizeof(T);

// A vector V, or one number, at p.
template <class V, class T> inline V load_as(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class T, class V> inline void store_as(T* p, V v) { std::memcpy(p, &v, sizeof v); }

template <class T> inline Vec<T> load(const T* p) { return load_as<Vec<T>>(p); }
template <class T> inline void store(T* p, Vec<T> v) { store_as(p, v); }

// Calls f(c, V{}) for the pieces of begin ... end - 1: V is a vector, half a vector or a number that lies at c.
template <class T, class F> inline void pieces(int64_t begin, int64_t end, F f) {
    int64_t c = begin;
    for (; c + kWidth<T> <= end; c += kWidth<T>) f(c, Vec<T>{});
    if (c + kWidth<T> / 2 <= end) {
        f(c, typename Vector<T, kVectorBytes / 2>::type{});
        c += kWidth<T> / 2;
    }
    for (; c < end; ++c) f(c, T(0));
}

// n rounded up to a multiple of m.
inline int64_t round_up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }

template <class T, class F> inline Vec<T> each_lane(Vec<T> x, F f) {
    for (int i = 0; i < kWidth<T>; ++i) x[i] = f(x[i]);
    return x;
}

// exp(-|x|), relative error 1e-7 in float (0 where it is below e^-87).
template <class T> inline Vec<T> exp_minus_abs(Vec<T> x) {
    x = x < 0 ? x : -x;
    if constexpr (sizeof(T) == 8) {
        return each_lane<T>(x, [](T v) { return std::exp(v); });
    } else {
        const Vec<T> shifted = x * T(1.44269504) + T(12582912);  // 1.5 * 2^23: rounds to integers
        const Vec<T> n = shifted - T(12582912);
        const Vec<T> r = (x - n * T(0.693359375)) + n * T(2.12194440e-4);
        Vec<T> p = r * T(0.001383680703) + T(0.008374845901);
        p = p * r + T(0.041668227859);
        p = p * r + T(0.16666419813);
        p = p * r + T(0.499999920624);
        p = p * r + T(1.000000036402);
        p = p * r + T(1);
        VecInt<T> bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        bits = (bits + 127) << 23;
        Vec<T> power;
        std::memcpy(&power, &bits, sizeof bits);
        return x < -87 ? Vec<T>{} : p * power;  // a product, so that nan stays nan
    }
}

// log(1 + e) for e in [0, 1], as 2 artanh(e / (2 + e)).
template <class T> inline Vec<T> log1p_of(Vec<T> e) {
    if constexpr (sizeof(T) == 8) {
        return each_lane<T>(e, [](T v) { return std::log1p(v); });
    } else {
        const Vec<T> z = e / (e + 2), u = z * z;
        Vec<T> p = u * T(0.140891664529) + T(0.139803015994);
        p = p * u + T(0.200124551256);
        p = p * u + T(0.333331573413);
        p = p * u + T(1.000000003961);
        return p * (z + z);
    }
}

// Of x and e = exp(-|x|), which both need.
template <class T> inline Vec<T> softplus(Vec<T> x, Vec<T> e) {
    const Vec<T> y = (x > 0 ? x : Vec<T>{}) + log1p_of<T>(e);
    return x > 20 ? x : y;
}

template <class T> inline Vec<T> sigmoid(Vec<T> x, Vec<T> e) { return (x > 0 ? Vec<T>{} + 1 : e) / (e + 1); }
template <class T> inline Vec<T> sigmoid(Vec<T> x) { return sigmoid<T>(x, exp_minus_abs<T>(x)); }

// Sum of the elements of a vector of B bytes.
template <class T, int B = kVectorBytes> inline T lane_sum(typename Vector<T, B>::type x) {
    if constexpr (B == 2 * sizeof(T)) {
        return x[0] + x[1];
    } else {
        typename Vector<T, B / 2>::type half[2];
        std::memcpy(half, &x, B);
        return lane_sum<T, B / 2>(half[0] + half[1]);
    }
}

template <class T, int V>
inline void multiply_tile(const T* a, int64_t row, int64_t column, const T* b, T* c, int64_t k, int64_t n) {
    Vec<T> sum[kRows][V];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[r][v] = load(c + r * n + v * kWidth<T>);
    for (int64_t i = 0; i < k; ++i, a += column, b += n) {
        Vec<T> line[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) line[v] = load(b + v * kWidth<T>);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) sum[r][v] += a[r * row] * line[v];
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) store(c + r * n + v * kWidth<T>, sum[r][v]);
}

// C += A B: element (i, j) of A at a[i * row + j * column]; B [k, n] and C [m, n] row by row; m is a multiple of
// kRows, n of kWidth.
template <class T>
void multiply_add(const T* a, int64_t row, int64_t column, const T* b, T* c, int64_t m, int64_t k, int64_t n) {
    constexpr int L = kWidth<T>;
    for (int64_t i = 0; i < m; i += kRows) {
        int64_t j = 0;
        for (; j + 2 * L <= n; j += 2 * L) multiply_tile<T, 2>(a + i * row, row, column, b + j, c + i * n + j, k, n);
        if (j < n) multiply_tile<T, 1>(a + i * row, row, column, b + j, c + i * n + j, k, n);
    }
}
