// Holds the conversions of the 16-bit types to what core/data_type.h says of them.
#include "check.h"

namespace seqkernels::testing {
namespace {

// Every value of the type, as float32.
template <class T>
std::vector<float> all_values() {
    std::vector<float> values;
    for (int bits = 0; bits < 1 << 16; ++bits) {
        T value;
        value.bits = static_cast<uint16_t>(bits);
        values.push_back(widen(value));
    }
    return values;
}

bool is_same_number(float a, float b) {
    return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

// By definition: the nearest of the values on either side, the even one if both are as near. The
// step beyond the largest is as wide as the one before, and what is rounded to it is infinite.
template <class T>
float nearest(float number, const std::vector<float>& values) {
    if (std::isnan(number)) return number;
    const double magnitude = std::fabs(static_cast<double>(number));
    const int infinite = std::is_same_v<T, Bfloat16> ? 0x7F80 : 0x7C00;
    const auto value_at = [&](int bits) {
        const auto at = [&](int i) { return double(values[static_cast<std::size_t>(i)]); };
        return bits < infinite ? at(bits) : 2 * at(infinite - 1) - at(infinite - 2);
    };
    int below = 0, above = infinite;  // values of positive bits increase
    while (above - below > 1) {
        const int middle = (below + above) / 2;
        (value_at(middle) <= magnitude ? below : above) = middle;
    }
    const double down = magnitude - value_at(below), up = value_at(above) - magnitude;
    const bool goes_up = down > up || (down == up && below % 2 == 1);
    const int chosen = goes_up ? above : below;
    const float result = chosen == infinite ? INFINITY : static_cast<float>(value_at(chosen));
    return std::copysign(result, number);
}

// The values, numbers half-way between neighbours and just beside that, and random ones.
template <class T>
std::vector<float> numbers_to_round(const std::vector<float>& values) {
    std::vector<float> numbers = values;
    for (std::size_t i = 0; i + 1 < values.size(); i += 7) {
        const double middle = (double(values[i]) + double(values[i + 1])) / 2;
        const float number = static_cast<float>(middle);
        for (const float beside :
             {number, std::nextafter(number, INFINITY), std::nextafter(number, -INFINITY)}) {
            numbers.push_back(beside);
        }
    }
    std::mt19937 generator(3);
    for (int i = 0; i < 100000; ++i) {
        numbers.push_back(float_of_bits(static_cast<uint32_t>(generator())));
    }
    return numbers;
}

template <class T>
void check_conversions(const SixteenBitKernels<T>& kernels) {
    const std::vector<float> values = all_values<T>();
    std::vector<T> every(values.size());
    for (std::size_t i = 0; i < every.size(); ++i) every[i].bits = static_cast<uint16_t>(i);
    // All but the first three, so that no vector is aligned and the last one is not full.
    std::vector<float> widened(values.size() - 3);
    kernels.widen(every.data() + 3, widened.data(), static_cast<int64_t>(widened.size()));
    int wrong = 0;
    for (std::size_t i = 0; i < widened.size(); ++i) {
        wrong += !is_same_number(widened[i], values[i + 3]);
    }
    CHECK(wrong == 0);

    const std::vector<float> numbers = numbers_to_round<T>(values);
    std::vector<T> narrowed(numbers.size());
    kernels.narrow(numbers.data(), narrowed.data(), static_cast<int64_t>(numbers.size()));
    wrong = 0;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        wrong += !is_same_number(widen(narrowed[i]), nearest<T>(numbers[i], values));
        // NaN of any payload becomes the same one.
        T alone;
        narrow(numbers[i], alone);
        wrong += std::is_same_v<T, Bfloat16> && narrowed[i].bits != alone.bits;
    }
    CHECK(wrong == 0);
}

// Of any count, which may be less than a vector, and nothing behind.
template <class T>
void check_counts(const SixteenBitKernels<T>& kernels) {
    constexpr std::size_t most = 70;
    std::vector<T> narrow_numbers(most);
    for (std::size_t i = 0; i < most; ++i) {
        narrow_numbers[i].bits = static_cast<uint16_t>(0x3C00 + i);
    }
    for (std::size_t count = 0; count < most; ++count) {
        std::vector<float> widened(most, -1);
        kernels.widen(narrow_numbers.data(), widened.data(), static_cast<int64_t>(count));
        std::vector<T> narrowed(most);
        for (T& number : narrowed) number.bits = 0xABCD;
        kernels.narrow(widened.data(), narrowed.data(), static_cast<int64_t>(count));
        for (std::size_t i = 0; i < most; ++i) {
            CHECK(widened[i] == (i < count ? widen(narrow_numbers[i]) : -1));
            CHECK(narrowed[i].bits == (i < count ? narrow_numbers[i].bits : 0xABCD));
        }
    }
}

TEST(values_of_sixteen_bits_are_what_their_formats_say) {
    const auto value = [](auto number, int bits) {
        number.bits = static_cast<uint16_t>(bits);
        return widen(number);
    };
    CHECK(value(Bfloat16(), 0x3F80) == 1 && value(Bfloat16(), 0xC049) == -3.140625f);
    CHECK(value(Bfloat16(), 0x0001) == 0x1p-133f && value(Bfloat16(), 0x7F7F) == 0x1.FEp127f);
    CHECK(value(Float16(), 0x3C00) == 1 && value(Float16(), 0xC248) == -3.140625f);
    CHECK(value(Float16(), 0x0001) == 0x1p-24f && value(Float16(), 0x7BFF) == 65504);
    CHECK(std::isinf(value(Float16(), 0x7C00)) && std::isnan(value(Float16(), 0xFC01)));
}

TEST(conversions_of_sixteen_bits_round_to_nearest) {
    for_each_isa([](const std::string&, const KernelTable& table) {
        check_conversions(table.bfloat16);
        check_conversions(table.float16);
    });
}

TEST(conversions_of_sixteen_bits_end_where_they_shall) {
    for_each_isa([](const std::string&, const KernelTable& table) {
        check_counts(table.bfloat16);
        check_counts(table.float16);
    });
}

}  // namespace
}  // namespace seqkernels::testing
