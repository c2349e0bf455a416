// csrc/cuda/cluster.h for a processor without a GPU.
#pragma once

#include <cstring>

#include "device.h"

namespace seqkernels::cuda {

constexpr int most_blocks_of_cluster = 16;

using ClusterAddress = char*;

namespace emulated {
void meet_in_cluster();
char* shared_memory_of(int block_of_cluster);
}  // namespace emulated

inline void meet_in_cluster() { emulated::meet_in_cluster(); }

inline ClusterAddress address_in_cluster(const void* own, int block) {
    const auto offset = static_cast<const char*>(own) - shared_memory();
    return emulated::shared_memory_of(block) + offset;
}

struct alignas(8) Mailbox {
    int32_t missing_bytes;
    uint8_t turn;
    bool is_told;  // how many bytes are expected
};

namespace emulated {
inline void open_if_complete(Mailbox& mailbox) {
    if (!mailbox.is_told || mailbox.missing_bytes != 0) return;
    mailbox.is_told = false;
    ++mailbox.turn;
}
}  // namespace emulated

inline void begin_mailbox(Mailbox& mailbox) { mailbox = {}; }
inline void expect_bytes(Mailbox& mailbox, int bytes) {
    if (mailbox.is_told) throw std::logic_error("a mailbox is told of bytes twice in a turn");
    mailbox.missing_bytes += bytes;
    mailbox.is_told = true;
    emulated::open_if_complete(mailbox);
}
inline void wait_for_mail(Mailbox& mailbox, int parity) {
    int turns = 0;
    while (mailbox.turn % 2 == parity) {
        if (++turns > 1'000'000) throw std::logic_error("a block waits for mail in vain");
        emulated::give_way();
    }
}
inline void send(ClusterAddress target, ClusterAddress mailbox, const uint32_t (&words)[4]) {
    if (reinterpret_cast<uintptr_t>(target) % 16 != 0)
        throw std::logic_error("st.async: misaligned");
    std::memcpy(target, words, 16);
    Mailbox& told = *reinterpret_cast<Mailbox*>(mailbox);
    told.missing_bytes -= 16;
    emulated::open_if_complete(told);
}

namespace emulated {
inline int cluster_blocks = most_blocks_of_cluster;  // 0: a GPU without clusters
}
template <class Kernel>
int largest_cluster(int, Kernel*, int, int64_t) {
    return emulated::cluster_blocks;
}

}  // namespace seqkernels::cuda
