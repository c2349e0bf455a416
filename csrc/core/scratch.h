// Scratch memory of one call: allocated before the threads start, aligned to a cache line, never
// zeroed.
//
// Large blocks are kept after the call and used again by later ones, up to a bound: the first touch
// of fresh memory, page after page, may take longer than the work done in it (32 MiB: 2.6 ms to
// write, 28 ms the first time, on a virtual machine). They are asked for in huge pages, of which a
// sequential reader needs fewer translations than there are places to keep them: an LSTM of N 1 to
// 32 takes 1 % (H 512) to 11 % (H 2048) less time.
#pragma once

#include <cstdint>

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

template <class T>
class Scratch {
 public:
    // Inlined always: a copy compiled for one ISA must not be linked into another's kernels.
    [[gnu::always_inline]] explicit Scratch(int64_t count)
        : bytes_(scratch_bytes(count, sizeof(T))), data_(static_cast<T*>(take_scratch(bytes_))) {}
    [[gnu::always_inline]] ~Scratch() { return_scratch(data_, bytes_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    T* data() const { return data_; }

 private:
    int64_t bytes_;
    T* data_;
};

}  // namespace seqkernels
