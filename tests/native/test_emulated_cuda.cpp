// The emulated GPU itself: its threads begin anew with every launch, whatever the last one did.
#include <stdexcept>

#include "check.h"
#include "cuda/device.h"

namespace seqkernels::testing {
namespace {

using cuda::emulated::Order;

// Counts the threads that get past a barrier, where those from `first_failing` on fail before it.
void pass_barrier(int* passed, int first_failing) {
    if (static_cast<int>(threadIdx.x) >= first_failing) throw std::domain_error("a thread failed");
    __syncthreads();
    ++passed[blockIdx.x * blockDim.x + threadIdx.x];
}

void check_launch(int blocks, int threads, int first_failing, bool cooperating) {
    std::vector<int> passed(static_cast<std::size_t>(blocks * threads));
    bool failed = false;
    try {
        cuda::launch({blocks, threads, 0, nullptr, cooperating}, pass_barrier, passed.data(),
                     first_failing);
    } catch (const std::domain_error&) {
        failed = true;
    }
    CHECK(failed == (first_failing < threads));
    const int expected = failed ? 0 : 1;
    for (const int count : passed) CHECK(count == expected);
}

TEST(emulated_cuda_launches_after_one_that_failed) {
    for (const Order order : {Order::forwards, Order::backwards}) {
        cuda::emulated::order = order;
        for (const bool cooperating : {false, true}) {
            for (const int threads : {64, 32, 128}) {
                for (const int first_failing : {threads, threads - 1, 0, threads, threads / 2}) {
                    check_launch(3, threads, first_failing, cooperating);
                }
            }
            check_launch(1, 32, 32, cooperating);
        }
    }
    cuda::emulated::order = Order::forwards;
}

}  // namespace
}  // namespace seqkernels::testing
