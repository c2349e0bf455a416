// Holds sigmoid and tanh to the errors and ranges that vector_math.h states.
#include <limits>

#include "check.h"

namespace seqkernels::testing {
namespace {

// Arguments of both signs over all exponents, `per_binade` to each power of two.
template <class T>
std::vector<T> arguments(int lowest, int highest, int per_binade) {
    std::mt19937 generator(1);
    std::uniform_real_distribution<double> uniform(1, 2);
    std::vector<T> values{0, -T(0), 1, -1};
    for (int exponent = lowest; exponent <= highest; ++exponent) {
        for (int i = 0; i < per_binade; ++i) {
            const T value = static_cast<T>(std::ldexp(uniform(generator), exponent));
            values.push_back(value);
            values.push_back(-value);
        }
    }
    return values;
}

// Difference in units of the last place of the exact value; a float's, for T = float.
template <class T>
double ulps(T found, long double exact) {
    const T rounded = static_cast<T>(exact);
    const T next = std::nextafter(std::fabs(rounded), std::numeric_limits<T>::infinity());
    const long double unit = static_cast<long double>(next) - std::fabs(rounded);
    return static_cast<double>(std::fabs(static_cast<long double>(found) - exact) / unit);
}

template <class T>
void check_errors(const Kernels<T>& kernels, T saturation, int lowest, int highest) {
    const std::vector<T> x = arguments<T>(lowest, highest, 500);
    std::vector<T> sigmoid(x.size()), tanh(x.size());
    kernels.sigmoid(x.data(), sigmoid.data(), static_cast<int64_t>(x.size()));
    kernels.tanh(x.data(), tanh.data(), static_cast<int64_t>(x.size()));
    double worst_sigmoid = 0, worst_tanh = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        const long double at =
            std::fmax(static_cast<long double>(x[i]), -static_cast<long double>(saturation));
        worst_sigmoid = std::fmax(worst_sigmoid, ulps(sigmoid[i], 1 / (1 + std::exp(-at))));
        worst_tanh =
            std::fmax(worst_tanh, ulps(tanh[i], std::tanh(static_cast<long double>(x[i]))));
    }
    CHECK(worst_sigmoid <= 3);
    CHECK(worst_tanh <= 3);
    if (worst_sigmoid > 3 || worst_tanh > 3) {
        std::printf("  sigmoid %.2f ULP, tanh %.2f ULP\n", worst_sigmoid, worst_tanh);
    }
}

template <class T>
void check_special_values(const Kernels<T>& kernels) {
    const T infinity = std::numeric_limits<T>::infinity();
    const T nan = std::numeric_limits<T>::quiet_NaN();
    const std::vector<T> x{infinity, -infinity, nan, 0, -T(0)};
    std::vector<T> sigmoid(x.size()), tanh(x.size());
    kernels.sigmoid(x.data(), sigmoid.data(), 5);
    kernels.tanh(x.data(), tanh.data(), 5);
    CHECK(sigmoid[0] == 1 && sigmoid[1] >= 0 && sigmoid[1] < std::numeric_limits<T>::min() * 4);
    CHECK(std::isnan(sigmoid[2]) && sigmoid[3] == T(0.5) && sigmoid[4] == T(0.5));
    CHECK(tanh[0] == 1 && tanh[1] == -1 && std::isnan(tanh[2]));
    CHECK(tanh[3] == 0 && !std::signbit(tanh[3]) && tanh[4] == 0 && std::signbit(tanh[4]));
}

TEST(vector_math_errors_float32) {
    for_each_isa([](const std::string&, const KernelTable& table) {
        check_errors<float>(table.float32, 87, -126, 127);
    });
}

TEST(vector_math_errors_float64) {
    for_each_isa([](const std::string&, const KernelTable& table) {
        check_errors<double>(table.float64, 708, -1022, 1023);
    });
}

TEST(vector_math_special_values) {
    for_each_isa([](const std::string&, const KernelTable& table) {
        check_special_values(table.float32);
        check_special_values(table.float64);
    });
}

}  // namespace
}  // namespace seqkernels::testing
