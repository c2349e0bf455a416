// The Python module of the emulated GPU takes tensors on the CPU.
#include "python/dlpack.h"
#include "python/tensor_caster.h"

namespace seqkernels {

const int32_t module_device_type = dlpack::cpu_device;
const char* const module_device_name = "the CPU, for an emulated GPU";

}  // namespace seqkernels
