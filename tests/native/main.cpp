// Runs all tests, or those whose names contain the first argument, or behind a "-" do not, of them
// every second argument-th from the third argument-th on. Exit code 1 if one failed.
#include <cstdlib>
#include <cstring>

#include "check.h"
#include "core/parallel.h"

#ifdef __SANITIZE_ADDRESS__
// Undefined behaviour traps (CMakeLists.txt): the place is told as that of any other error.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
    return "handle_sigill=1:handle_sigtrap=1";
}
#endif

namespace {

bool is_chosen(const char* name, const char* pattern) {
    if (*pattern == '-') return std::strstr(name, pattern + 1) == nullptr;
    return std::strstr(name, pattern) != nullptr;
}

}  // namespace

int main(int argc, char** argv) {
    using namespace seqkernels::testing;
    if (!seqkernels::bind_openmp("libgomp.so.1", true)) std::puts("no OpenMP runtime: serial");
    std::printf("ISAs:");
    for (const std::string& name : seqkernels::available_isas()) std::printf(" %s", name.c_str());
    std::puts("");
    const int parts = argc > 3 ? std::atoi(argv[2]) : 1, part = argc > 3 ? std::atoi(argv[3]) : 0;
    int chosen = 0, run = 0;
    for (const Test& test : tests()) {
        if (argc > 1 && !is_chosen(test.name, argv[1])) continue;
        if (chosen++ % parts != part) continue;
        const int before = failures();
        test.run();
        std::printf("%s %s\n", failures() == before ? "ok    " : "FAILED", test.name);
        std::fflush(stdout);
        ++run;
    }
    std::printf("%d tests, %d failures\n", run, failures());
    return chosen > 0 && failures() == 0 ? 0 : 1;
}
