// A test is a function that TEST registers; CHECK notes a failure with its place and goes on.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
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

// Under sanitizers, which take ten times as long, types of one size and orders of threads, which
// touch the same memory, take turns.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool is_watched = true;
#else
constexpr bool is_watched = false;
#endif

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

// The instruction set whose kernels for_each_isa tests at the moment, if any.
inline std::string& tested_isa() {
    static std::string name;
    return name;
}

inline void note_failure(const char* file, int line, const char* condition) {
    ++failures();
    std::printf("%s:%d: failed: %s", file, line, condition);
    if (!tested_isa().empty()) std::printf(" (%s)", tested_isa().c_str());
    std::puts("");
}

#define CHECK(condition)                                                       \
    do {                                                                       \
        if (!(condition)) {                                                    \
            seqkernels::testing::note_failure(__FILE__, __LINE__, #condition); \
        }                                                                      \
    } while (0)

template <class T>
T rounded_to(double number) {
    if constexpr (is_sixteen_bit<T>) {
        T result;
        narrow(static_cast<float>(number), result);
        return result;
    } else {
        return static_cast<T>(number);
    }
}

// The distance from 1 to the next number.
template <class T>
double epsilon() {
    if constexpr (std::is_same_v<T, Bfloat16>) return 0x1p-7;
    if constexpr (std::is_same_v<T, Float16>) return 0x1p-10;
    return static_cast<double>(std::numeric_limits<Accumulator<T>>::epsilon());
}

// Numbers in (-1, 1), the same at every run: multiples of 2^-7, which every type holds.
template <class T>
std::vector<T> random_numbers(int64_t count, unsigned seed) {
    std::mt19937 generator(seed);
    std::uniform_int_distribution<int> uniform(-127, 127);
    std::vector<T> numbers(static_cast<std::size_t>(count));
    for (T& number : numbers) number = rounded_to<T>(uniform(generator) / 128.0);
    return numbers;
}

template <class T>
std::vector<T> converted(const std::vector<double>& numbers) {
    std::vector<T> result;
    for (const double number : numbers) result.push_back(rounded_to<T>(number));
    return result;
}

template <class T>
bool is_same(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// The largest difference of two arrays of equal size, in units of the largest magnitude in `exact`.
template <class A, class B>
double relative_error(const std::vector<A>& found, const std::vector<B>& exact) {
    if (found.size() != exact.size()) return INFINITY;
    double error = 0, scale = 1e-300;
    for (std::size_t i = 0; i < found.size(); ++i) {
        const double difference = std::fabs(double(widen(found[i])) - double(exact[i]));
        if (!(difference <= error)) error = difference;  // NaN stays
        scale = std::fmax(scale, std::fabs(double(exact[i])));
    }
    return error / scale;
}

// Calls function(name, kernels) for every ISA of this machine.
inline void for_each_isa(
    const std::function<void(const std::string&, const KernelTable&)>& function) {
    for (const std::string& name : available_isas()) {
        tested_isa() = name;
        function(name, kernels_of(name));
    }
    tested_isa().clear();
}

}  // namespace seqkernels::testing
