#include "module.h"

#include <pybind11/stl.h>

#include "core/parallel.h"
#include "core/scratch.h"
#include "cpu/isa.h"
#include "dlpack.h"
#include "tensor_caster.h"

namespace seqkernels {

const int32_t module_device_type = dlpack::cpu_device;
const char* const module_device_name = "the CPU";

}  // namespace seqkernels

PYBIND11_MODULE(_cpu, module) {
    module.doc() =
        "The kernels of seqkernels for the CPU. Private: seqkernels.functional checks and calls "
        "it.";
    module.attr("compiler") = SEQKERNELS_COMPILER;
    module.def("available_isas", &seqkernels::available_isas);
    module.def("active_isa", &seqkernels::active_isa);
    module.def("set_active_isa", &seqkernels::set_active_isa);
    module.def("bind_openmp", &seqkernels::bind_openmp, pybind11::arg("library"),
               pybind11::arg("load") = false);
    module.def("openmp_path", &seqkernels::openmp_path);
    module.def("release_scratch", &seqkernels::release_scratch);
    seqkernels::define_plain(module);
    seqkernels::define_convolution(module);
    seqkernels::define_recurrence(module);
    seqkernels::define_recurrence_results(module);
    seqkernels::define_rates(module);
}
