// The registry of kernels: which instruction sets this machine has, and which one is in use.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace seqkernels {

// Names of the ISAs whose kernels this build has and this machine runs, slowest first.
std::vector<std::string> available_isas();

// The ISA in use: the one that SEQKERNELS_ISA names, else the fastest. Raises
// std::invalid_argument, listing the available ones, where SEQKERNELS_ISA names another.
std::string active_isa();

// Puts another ISA in use, for the whole process. Raises std::invalid_argument as above.
void set_active_isa(const std::string& name);

// The kernels of the ISA in use, and of a named one.
const KernelTable& active_kernels();
const KernelTable& kernels_of(const std::string& name);

}  // namespace seqkernels
