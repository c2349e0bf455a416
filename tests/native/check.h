// A test is a function that TEST registers; CHECK notes a failure with its place and goes on.
#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace seqkernels::testing {

struct Test {
    const char* name;
    void (*run)();
};

inline std::vector<Test>& tests() {
    static std::vector<Test> all;
    return all;
}

inline int& failures() {
    static int count = 0;
    return count;
}

struct Register {
    Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

#define TEST(name)                                                     \
    static void name();                                                \
    static seqkernels::testing::Register register_##name{#name, name}; \
    static void name()

#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            ++seqkernels::testing::failures();                                  \
            std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
        }                                                                       \
    } while (0)

// Numbers in (-1, 1), the same at every run.
template <class T>
std::vector<T> random_numbers(int64_t count, unsigned seed) {
    std::mt19937 generator(seed);
    std::uniform_real_distribution<double> uniform(-1, 1);
    std::vector<T> numbers(static_cast<std::size_t>(count));
    for (T& number : numbers) number = static_cast<T>(uniform(generator));
    return numbers;
}

template <class To, class From>
std::vector<To> converted(const std::vector<From>& numbers) {
    return std::vector<To>(numbers.begin(), numbers.end());
}

// The largest difference of two arrays of equal size, in units of the largest magnitude in `exact`.
template <class A, class B>
double relative_error(const std::vector<A>& found, const std::vector<B>& exact) {
    if (found.size() != exact.size()) return INFINITY;
    double error = 0, scale = 1e-300;
    for (std::size_t i = 0; i < found.size(); ++i) {
        const double difference = std::fabs(double(found[i]) - double(exact[i]));
        if (!(difference <= error)) error = difference;  // NaN stays
        scale = std::fmax(scale, std::fabs(double(exact[i])));
    }
    return error / scale;
}

// Calls function(name, kernels) for every ISA of this machine.
inline void for_each_isa(
    const std::function<void(const std::string&, const KernelTable&)>& function) {
    for (const std::string& name : available_isas()) function(name, kernels_of(name));
}

}  // namespace seqkernels::testing
