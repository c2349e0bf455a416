// Scratch memory of one call: allocated before the threads start, aligned to a cache line, never
// zeroed.
//
// Small ones lie within the object itself, on the stack of who calls: an aligned block of the
// system's allocator takes 0.1 us or more, of which a call that takes a few us would need ten.
//
// Large blocks are kept after the call and used again by later ones, up to a bound: the first touch
// of fresh memory, page after page, may take longer than the work done in it (32 MiB: 2.6 ms to
// write, 28 ms the first time, on a virtual machine). They are asked for in huge pages, of which a
// sequential reader needs fewer translations than there are places to keep them: an LSTM of N 1 to
// 32 takes 1 % (H 512) to 11 % (H 2048) less time. A thread gets the blocks that it gave back, if
// there are some: threads that make calls of their own side by side then do not write to what is in
// each other's caches (three convolutions of one sentence of 20 words, 100 and 128 filters each,
// AMD family 25, model 17: 155 to 150 us, 182 to 165).
#pragma once

#include <cstdint>
#include <cstring>

#include "range.h"

namespace seqkernels {

constexpr int64_t cache_line_bytes = 64;

// Bytes of `count` elements; raises std::bad_alloc or, beyond 64 bits, std::invalid_argument.
int64_t scratch_bytes(int64_t count, int64_t element_bytes);
// At least `bytes` bytes, kept ones or new ones; raises std::bad_alloc.
void* take_scratch(int64_t bytes);
// Gives back what take_scratch returned for as many bytes.
void return_scratch(void* memory, int64_t bytes);
// Frees all that is kept; returns how many bytes that were.
int64_t release_scratch();

#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t small_scratch_bytes = 0;  // so that a use beyond the end is seen
#else
constexpr int64_t small_scratch_bytes = 512;
#endif

template <class T>
class Scratch {
 public:
    // Inlined always: a copy compiled for one ISA must not be linked into another's kernels.
    [[gnu::always_inline]] explicit Scratch(int64_t count)
        : bytes_(scratch_bytes(count, sizeof(T))),
          data_(static_cast<T*>(bytes_ <= small_scratch_bytes ? static_cast<void*>(small_)
                                                              : take_scratch(bytes_))) {
#if defined(__SANITIZE_ADDRESS__)
        std::memset(static_cast<void*>(data_), 0xFF, static_cast<std::size_t>(bytes_));  // NaN
#endif
    }
    [[gnu::always_inline]] ~Scratch() {
        if (bytes_ > small_scratch_bytes) return_scratch(data_, bytes_);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    T* data() const { return data_; }

 private:
    alignas(cache_line_bytes) unsigned char small_[larger(small_scratch_bytes, 1)];
    int64_t bytes_;
    T* data_;
};

}  // namespace seqkernels
