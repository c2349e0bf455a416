#include "dlpack.h"
#include "tensor_caster.h"

namespace seqkernels {

const int32_t module_device_type = dlpack::cuda_device;
const char* const module_device_name = "a CUDA device";

}  // namespace seqkernels
