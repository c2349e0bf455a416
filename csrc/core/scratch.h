// Scratch memory of one call: allocated before the threads start, aligned to a cache line, never
// zeroed.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#include "checked.h"

namespace seqkernels {

constexpr int64_t cache_line_bytes = 64;

template <class T>
class Scratch {
 public:
    explicit Scratch(int64_t count) {
        if (count < 0) throw std::bad_alloc();
        const int64_t bytes = checked_product({count, static_cast<int64_t>(sizeof(T))});
        if (bytes > std::numeric_limits<int64_t>::max() - cache_line_bytes) throw std::bad_alloc();
        const int64_t rounded = (bytes + cache_line_bytes) / cache_line_bytes * cache_line_bytes;
        data_.reset(static_cast<T*>(
            std::aligned_alloc(cache_line_bytes, static_cast<std::size_t>(rounded))));
        if (!data_) throw std::bad_alloc();
    }

    T* data() const { return data_.get(); }

 private:
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    std::unique_ptr<T, Free> data_;
};

}  // namespace seqkernels
