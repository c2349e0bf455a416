// Whose processor this is, where that decides which of two ways is the faster.
#pragma once

namespace seqkernels {

[[gnu::always_inline]] inline bool is_by_intel() {
#if defined(__x86_64__)
    return __builtin_cpu_is("intel");
#else
    return false;
#endif
}

}  // namespace seqkernels
