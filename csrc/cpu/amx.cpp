#include "amx.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace seqkernels {

#if defined(__x86_64__) && defined(__linux__)
namespace {

bool processor_has_tiles() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
    constexpr unsigned bfloat16_bit = 1u << 22, tile_bit = 1u << 24;
    return (d & bfloat16_bit) != 0 && (d & tile_bit) != 0;
}

bool process_may_use_tiles() {
    constexpr long request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long tile_data = 18;               // XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

}  // namespace

bool has_amx_bfloat16() {
    static const bool has = processor_has_tiles() && process_may_use_tiles();
    return has;
}
#else
bool has_amx_bfloat16() { return false; }
#endif

}  // namespace seqkernels
