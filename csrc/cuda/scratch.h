// Parts of one block of scratch memory, at distances of 256 bytes from its beginning.
#pragma once

#include <cstdint>

#include "../core/checked.h"

namespace seqkernels::cuda {

class ScratchParts {
 public:
    // Without memory it only counts.
    explicit ScratchParts(void* memory) : memory_(static_cast<char*>(memory)) {}

    // Room for that many elements; raises std::invalid_argument beyond 64 bits.
    template <class T>
    T* take(int64_t count) {
        T* part = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + bytes_);
        constexpr int64_t alignment = 256;
        const int64_t bytes = checked_product({count, int64_t(sizeof(T))});
        bytes_ += (bytes + alignment - 1) / alignment * alignment;
        return part;
    }
    int64_t bytes() const { return bytes_; }

 private:
    char* memory_;
    int64_t bytes_ = 0;
};

}  // namespace seqkernels::cuda
