#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "amx.h"

namespace seqkernels {
namespace {

struct Isa {
    const char* name;
    const KernelTable* (*kernels)();
    bool (*machine_has)();
};

bool always() { return true; }

#if defined(__x86_64__)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
bool has_amx() { return has_avx512_bf16() && has_amx_bfloat16(); }
#endif

// Slowest first.
constexpr Isa isas[] = {
    {"scalar", scalar_kernels, always},
#if defined(__x86_64__)
    {"avx2", avx2_kernels, has_avx2},
    {"avx512", avx512_kernels, has_avx512},
    {"avx512_bf16", avx512_bf16_kernels, has_avx512_bf16},
    {"amx", amx_kernels, has_amx},
#endif
};

const Isa& find(const std::string& name, const std::string& asked_by) {
    std::string available;
    for (const Isa& isa : isas) {
        if (!isa.machine_has()) continue;
        if (name == isa.name) return isa;
        available += (available.empty() ? "" : ", ") + std::string(isa.name);
    }
    throw std::invalid_argument(asked_by + ": expected one of " + available +
                                " (what this machine and build have), got '" + name + "'");
}

const Isa& at_start() {
    const char* forced = std::getenv("SEQKERNELS_ISA");
    if (forced != nullptr && *forced != '\0') return find(forced, "SEQKERNELS_ISA");
    const Isa* fastest = &isas[0];
    for (const Isa& isa : isas) {
        if (isa.machine_has()) fastest = &isa;
    }
    return *fastest;
}

std::atomic<const Isa*>& active() {
    static std::atomic<const Isa*> isa{&at_start()};
    return isa;
}

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Isa& isa : isas) {
        if (isa.machine_has()) names.push_back(isa.name);
    }
    return names;
}

std::string active_isa() { return active().load()->name; }

void set_active_isa(const std::string& name) { active().store(&find(name, "isa")); }

const KernelTable& active_kernels() { return *active().load()->kernels(); }

const KernelTable& kernels_of(const std::string& name) { return *find(name, "isa").kernels(); }

}  // namespace seqkernels
