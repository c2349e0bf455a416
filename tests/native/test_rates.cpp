// The loops that measure the machine do the work that they say.
#include "check.h"
#include "cpu/rates.h"

namespace seqkernels::testing {
namespace {

template <class T>
void check_multiply_adds(const Kernels<T>& kernels) {
    T result = 0;
    const double flops = kernels.multiply_adds(100, &result);
    CHECK(result == T(24));  // twelve chains of x / 2 + 1, each at its fixed point
    const double once = flops / (2 * 12 * 100);
    CHECK(once >= 1 && once <= 16 && once == std::floor(once));
    CHECK(run_multiply_adds(kernels, 100, 1) == flops);
}

TEST(multiply_adds_reach_their_fixed_point) {
    for_each_isa([](const std::string&, const KernelTable& table) {
        check_multiply_adds(table.float32);
        check_multiply_adds(table.float64);
    });
}

TEST(reads_cover_every_element) {
    for_each_isa([](const std::string&, const KernelTable& table) {
        for (int64_t count : {0, 1, 7, 64, 65, 1003}) {
            // Only the first lane is returned: of ones, the number of loads that it took part in.
            const std::vector<float> ones(static_cast<std::size_t>(count), 1.0f);
            float result = -1;
            table.float32.read_all(ones.data(), count, &result);
            const int64_t least = (count + 15) / 16;  // no vector is wider than 16
            CHECK(result >= static_cast<float>(least) && result <= static_cast<float>(count));
            CHECK(run_reads(table.float32, ones.data(), count, 3, 1) == 12.0 * count);
        }
    });
}

TEST(bfloat16_products_count_ones) {
    for_each_isa([](const std::string& isa, const KernelTable& table) {
        const bool has_tiles = isa == "amx";
        CHECK((table.bfloat16_products != nullptr) == (has_tiles || isa == "avx512_bf16"));
        const double flops = has_tiles ? 4 * 2 * 16 * 16 * 32 : 12 * 2 * 2 * 16;
        float result = 0;
        if (table.bfloat16_products != nullptr) {
            CHECK(table.bfloat16_products(10, &result) == 10 * flops);
            CHECK(result == (has_tiles ? 320.0f : 20.0f));
            CHECK(run_bfloat16_products(table, 10, 1) == 10 * flops);
        } else {
            CHECK(run_bfloat16_products(table, 10, 1) == 0);
        }
    });
}

}  // namespace
}  // namespace seqkernels::testing
