// Face of the loops that measure the machine.
#include "cpu/rates.h"

#include "cpu/isa.h"
#include "expect.h"
#include "module.h"
#include "tensor_caster.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

void expect_work(int64_t repetitions, int threads) {
    expect_at_least("repetitions", repetitions, 0);
    expect_at_least("threads", threads, 1);
}

double multiply_adds(const std::string& dtype, int64_t repetitions, int threads) {
    expect_work(repetitions, threads);
    const bool is_double = dtype == "float64";
    if (!is_double && dtype != "float32") {
        throw std::invalid_argument("dtype: expected float32 or float64, got '" + dtype + "'");
    }
    const py::gil_scoped_release release;
    const KernelTable& table = active_kernels();
    return is_double ? run_multiply_adds(table.float64, repetitions, threads)
                     : run_multiply_adds(table.float32, repetitions, threads);
}

double bfloat16_products(int64_t repetitions, int threads) {
    expect_work(repetitions, threads);
    const py::gil_scoped_release release;
    return run_bfloat16_products(active_kernels(), repetitions, threads);
}

double reads(const TensorView& source, int64_t repetitions, int threads) {
    expect_work(repetitions, threads);
    expect_dimensions("source", source, 1);
    expect_contiguous("source", source, DataType::float32, {source.sizes[0]});
    const py::gil_scoped_release release;
    return run_reads(active_kernels().float32, static_cast<const float*>(source.data),
                     source.sizes[0], repetitions, threads);
}

}  // namespace

void define_rates(py::module_& module) {
    module.def("multiply_adds", &multiply_adds);
    module.def("bfloat16_products", &bfloat16_products);
    module.def("reads", &reads);
}

}  // namespace seqkernels
