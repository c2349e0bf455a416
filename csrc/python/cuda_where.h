// What the CUDA kernels are told besides the tensors: which of them, and where they run.
#pragma once

#include <string>
#include <tuple>

#include "cuda/recurrence_plan.h"
#include "cuda/where.h"
#include "expect.h"

namespace seqkernels {

// The stream's address; scratch, of int64; which kernels; whether float32 may become TF32.
using CudaWhere = std::tuple<uint64_t, OptionalView, std::string, bool>;

inline cuda::RecurrenceKernel recurrence_kernel_named(const std::string& name) {
    if (name == "simple") return cuda::RecurrenceKernel::simple;
    if (name == "fastest") return cuda::RecurrenceKernel::fastest;
    if (name == "cluster") return cuda::RecurrenceKernel::cluster;
    if (name == "persistent") return cuda::RecurrenceKernel::persistent;
    throw std::invalid_argument("kernel: expected simple, fastest, cluster or persistent, got '" +
                                name + "'");
}

inline cuda::Kernels kernels_named(const std::string& name) {
    if (name == "simple") return cuda::Kernels::simple;
    if (name == "fast") return cuda::Kernels::fast;
    throw std::invalid_argument("kernels: expected simple or fast, got '" + name + "'");
}

inline cuda::Where place_of(const CudaWhere& where, int64_t bytes, int device) {
    void* memory = nullptr;
    if (bytes > 0) {
        const OptionalView& scratch = std::get<1>(where);
        if (!scratch) {
            throw std::invalid_argument("scratch: expected " + std::to_string(bytes) +
                                        " bytes, got none");
        }
        expect_device(device, {{"scratch", &*scratch}});
        expect_contiguous("scratch", *scratch, DataType::int64, {bytes / 8});
        memory = scratch->data;
        if (reinterpret_cast<uintptr_t>(memory) % 16 != 0) {
            throw std::invalid_argument("scratch: expected an address aligned to 16 bytes");
        }
    }
    return {device, reinterpret_cast<void*>(std::get<0>(where)), memory};
}

}  // namespace seqkernels
