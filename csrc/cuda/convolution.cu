#include "convolution.h"
#include "convolution_backward.h"
#include "convolution_plan.h"
#include "convolution_simple.h"
#include "scratch.h"
#include "tile_sizes.h"

namespace seqkernels::cuda {
namespace {

template <class T>
bool is_tiled(const How& how) {
    return how.kernels == Kernels::fast && !std::is_same_v<T, double>;
}

template <class T>
TiledScratch<T> tiled_scratch(ScratchParts& parts, const ConvolutionShape& shape,
                              const ConvolutionPlan& plan) {
    constexpr int64_t elements_in_row = row_bytes / int64_t{sizeof(T)};
    TiledScratch<T> scratch{};
    scratch.filters =
        parts.take<T>(checked_product({plan.chunks, plan.filters_padded(), elements_in_row}));
    if (plan.is_repacked) {
        scratch.repacked =
            parts.take<T>(checked_product({shape.batch, shape.length, plan.channels}));
    }
    if (plan.splits > 1) {
        const int64_t count =
            checked_product({shape.batch, shape.pooled, plan.splits, shape.filters});
        scratch.partial = {parts.take<float>(count), parts.take<int32_t>(count)};
    }
    return scratch;
}

template <class T>
ConvolutionPlan plan_of(const ConvolutionForward<T>& call, int device) {
    return plan_convolution(call.shape, call.input, sizeof(T), multiprocessors(device));
}

}  // namespace

template <class T>
int64_t scratch_bytes(const ConvolutionForward<T>& call, const How& how, int device) {
    ScratchParts parts(nullptr);
    if (is_tiled<T>(how)) tiled_scratch<T>(parts, call.shape, plan_of(call, device));
    return parts.bytes();
}

template <class T>
void convolution_forward(const ConvolutionForward<T>& call, const How& how, const Where& where) {
    const ConvolutionShape& shape = call.shape;
    const int64_t outputs = shape.batch * shape.pooled * shape.filters;
    if (outputs == 0) return;
    expect_current_device(where.device);
    if constexpr (!std::is_same_v<T, double>) {
        if (is_tiled<T>(how)) {
            const ConvolutionPlan plan = plan_of(call, where.device);
            ScratchParts parts(where.scratch);
            const TiledScratch<T> scratch = tiled_scratch<T>(parts, shape, plan);
            convolution_in_tiles(call, plan, how.tf32, scratch, where.stream);
            return;
        }
    }
    launch(one_thread_each(outputs, where.stream), simple_forward<T>, call);
}

template <class T>
void convolution_backward(const ConvolutionBackward<T>& call, const How& how, const Where& where) {
    const ConvolutionShape& shape = call.shape;
    expect_current_device(where.device);
    const int64_t weights = shape.filters * shape.kernel_size * shape.channels;
    const int64_t inputs = shape.batch * shape.length * shape.channels;
    if constexpr (!std::is_same_v<T, double>) {
        if (is_tiled<T>(how)) {
            const auto blocks = [&](int64_t count) {
                return LaunchShape{count, backward_threads, 0, where.stream};
            };
            if (call.grad_weight != nullptr || call.grad_bias != nullptr) {
                const int64_t stretches =
                    call.grad_weight == nullptr
                        ? 1
                        : divide_rounding_up(shape.kernel_size * shape.channels, backward_columns);
                launch(blocks(shape.filters * larger(1, stretches)), weight_gradients<T>, call);
            }
            if (call.grad_input != nullptr && inputs > 0) {
                launch(blocks(shape.batch * divide_rounding_up(shape.length, backward_positions) *
                              divide_rounding_up(shape.channels, backward_columns)),
                       input_gradients<T>, call);
            }
            return;
        }
    }
    const auto each = [&](int64_t elements, auto kernel) {
        if (elements > 0) launch(one_thread_each(elements, where.stream), kernel, call);
    };
    if (call.grad_bias != nullptr) each(shape.filters, simple_bias_gradient<T>);
    if (call.grad_weight != nullptr) each(weights, simple_weight_gradient<T>);
    if (call.grad_input != nullptr) each(inputs, simple_input_gradient<T>);
}

#define INSTANTIATE(T)                                                                         \
    template int64_t scratch_bytes(const ConvolutionForward<T>&, const How&, int);             \
    template void convolution_forward(const ConvolutionForward<T>&, const How&, const Where&); \
    template void convolution_backward(const ConvolutionBackward<T>&, const How&, const Where&);

INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Bfloat16)
INSTANTIATE(Float16)

#undef INSTANTIATE

}  // namespace seqkernels::cuda
