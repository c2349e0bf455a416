#include "convolution.h"
// The convolution's gradients: by the winning windows alone (convolution_backward.h), in two
// launches and one more where the input is repacked; or as dense products
// (convolution_dense_gradients.h), in three and those of a forward, which is what computes the
// input's gradient; which of them convolution_backward_plan.h says. Otherwise as the definition
// reads (convolution_simple.h).
#include "convolution_backward.h"
#include "convolution_backward_plan.h"
#include "convolution_dense_gradients.h"
#include "convolution_simple.h"
#include "scratch.h"

namespace seqkernels::cuda {
namespace {

template <class T>
bool is_fast(const How& how) {
    return how.kernels == Kernels::fast && !std::is_same_v<T, double>;
}

template <class T>
bool is_dense(const ConvolutionShape& shape) {
    return pays_dense(shape, sizeof(T)) && shape.windows(shape.length) > 0;
}

// The input, where the weight's gradient needs it.
template <class T>
InputRows<T> rows_of(const ConvolutionBackward<T>& call, T* repacked, int64_t channels,
                     void* stream) {
    T* target = call.grad_weight == nullptr ? nullptr : repacked;
    return input_rows(call.shape, call.input, channels, target, stream);
}

int64_t rounded_up(int64_t count, int64_t unit) { return divide_rounding_up(count, unit) * unit; }

// By winners.

template <class T>
WinnerScratch<T> winner_scratch(ScratchParts& parts, const ConvolutionBackward<T>& call) {
    const ConvolutionShape& shape = call.shape;
    constexpr int64_t bytes_of_columns = sizeof(Columns<T>);
    WinnerScratch<T> scratch{};
    scratch.channels = rounded_up(shape.channels, lane_columns);
    const int64_t winners = checked_product({shape.batch, shape.pooled, shape.filters});
    scratch.of_samples = parts.take<WinnerGradient>(winners);
    scratch.of_filters = parts.take<WinnerGradient>(winners);
    scratch.weights =
        parts.take<T>(checked_product({shape.filters, shape.kernel_size, scratch.channels}));
    if (copy_bytes_in_place(shape, call.input, sizeof(T), bytes_of_columns) == 0) {
        scratch.repacked =
            parts.take<T>(checked_product({shape.batch, shape.length, scratch.channels}));
    }
    return scratch;
}

template <class T>
void by_winners(const ConvolutionBackward<T>& call, const Where& where) {
    const ConvolutionShape& shape = call.shape;
    ScratchParts parts(where.scratch);
    const WinnerScratch<T> scratch = winner_scratch(parts, call);
    const InputRows<T> rows = rows_of(call, scratch.repacked, scratch.channels, where.stream);
    const int64_t elements =
        shape.filters * (shape.batch * shape.pooled + shape.kernel_size * scratch.channels);
    if (elements > 0) {
        launch(one_thread_each(elements, where.stream), gather_winners<T>, call, scratch);
    }
    using Gradients = WinnerGradients<T>;
    const int64_t items = Gradients::weight_items(call, scratch) + Gradients::input_items(call);
    if (items > 0) {
        launch({items, backward_threads, 0, where.stream}, winner_gradients<T>, call, scratch,
               rows);
    }
}

// As dense products.

// The input's gradient as a convolution of the windows' gradients.
template <class T>
ConvolutionForward<T> input_convolution(const ConvolutionBackward<T>& call,
                                        const DenseScratch<T>& scratch) {
    const ConvolutionShape& of = call.shape;
    const int64_t reach = of.dilation * (of.kernel_size - 1);
    ConvolutionForward<T> convolution{};
    ConvolutionShape& shape = convolution.shape;
    shape.batch = of.batch;
    shape.length = of.windows(of.length);
    shape.channels = of.filters;
    shape.filters = of.channels;
    shape.kernel_size = of.kernel_size;
    shape.stride = 1;
    shape.padding_left = reach - of.padding_left;
    shape.padding_right = reach - of.padding_right;
    shape.dilation = of.dilation;
    shape.pool_size = 1;
    shape.pool_stride = 1;
    shape.pooled = of.length;
    shape.activation = Activation::identity;
    convolution.input = {scratch.gradients, shape.length * scratch.filters, scratch.filters, 1};
    convolution.weight = {scratch.turned, of.filters * of.kernel_size, of.kernel_size, 1};
    convolution.lengths = call.lengths == nullptr ? nullptr : scratch.lengths;
    convolution.output = call.grad_input;
    convolution.output_stride_batch = of.length * of.channels;
    convolution.output_stride_pooled = of.channels;
    convolution.output_stride_filter = 1;
    return convolution;
}

template <class T>
DenseScratch<T> dense_scratch(ScratchParts& parts, const ConvolutionBackward<T>& call, int device) {
    const ConvolutionShape& shape = call.shape;
    constexpr int64_t piece = piece_bytes / int64_t{sizeof(T)};
    const int64_t windows = shape.windows(shape.length);
    DenseScratch<T> scratch{};
    scratch.windows = windows;
    scratch.filters = rounded_up(shape.filters, piece);
    scratch.gradients = parts.take<T>(checked_product({shape.batch, windows, scratch.filters}));
    scratch.turned =
        parts.take<T>(checked_product({shape.channels, shape.filters, shape.kernel_size}));
    scratch.lengths = parts.take<int64_t>(shape.batch);
    scratch.biases = parts.take<float>(checked_product(
        {shape.batch, divide_rounding_up(windows, scattered_windows), shape.filters}));
    scratch.channels = shape.channels;
    scratch.copy_bytes = copy_bytes_in_place(shape, call.input, sizeof(T), 8);
    if (scratch.copy_bytes == 0) {
        scratch.copy_bytes = piece_bytes;
        scratch.channels = rounded_up(shape.channels, piece);
        scratch.repacked =
            parts.take<T>(checked_product({shape.batch, shape.length, scratch.channels}));
    }
    const int64_t columns = checked_product({shape.kernel_size, scratch.channels});
    const int64_t tiles =
        divide_rounding_up(columns, dense_side) * divide_rounding_up(shape.filters, dense_side);
    const int64_t steps = shape.batch * divide_rounding_up(windows, dense_depth);
    scratch.steps_of_split = steps_of_split(tiles, steps, multiprocessors(device));
    scratch.splits = larger(1, divide_rounding_up(steps, scratch.steps_of_split));
    scratch.weights = parts.take<float>(
        checked_product({scratch.splits, in_tiles(shape.filters), in_tiles(columns)}));
    return scratch;
}

template <class T, class Product>
void multiply_dense(const ConvolutionBackward<T>& call, const DenseScratch<T>& scratch,
                    const InputRows<T>& rows, void* stream) {
    const ConvolutionShape& shape = call.shape;
    const int64_t tiles = divide_rounding_up(shape.kernel_size * scratch.channels, dense_side) *
                          divide_rounding_up(shape.filters, dense_side);
    const LaunchShape blocks{tiles * scratch.splits, dense_threads,
                             2 * dense_stages * int64_t{DenseTile<T>::bytes}, stream};
    if (scratch.copy_bytes == 16) {
        launch(blocks, dense_weight_gradients<T, Product, 16>, call, scratch, rows);
    } else {
        launch(blocks, dense_weight_gradients<T, Product, 8>, call, scratch, rows);
    }
}

template <class T>
void by_dense_products(const ConvolutionBackward<T>& call, const How& how, const Where& where) {
    const ConvolutionShape& shape = call.shape;
    ScratchParts parts(where.scratch);
    const DenseScratch<T> scratch = dense_scratch(parts, call, where.device);
    const ConvolutionForward<T> convolution = input_convolution(call, scratch);
    char* inner = parts.take<char>(scratch_bytes(convolution, how, where.device));
    const InputRows<T> rows = rows_of(call, scratch.repacked, scratch.channels, where.stream);

    const int64_t stretches = divide_rounding_up(scratch.windows, scattered_windows);
    const int64_t items =
        shape.batch * stretches * divide_rounding_up(scratch.filters, warp_threads);
    launch({larger(1, items), threads_per_block, 0, where.stream}, scatter_gradients<T>, call,
           scratch);
    if (call.grad_input != nullptr && shape.batch > 0) {
        convolution_forward(convolution, how, Where{where.device, where.stream, inner});
    }
    if (call.grad_weight != nullptr) {
        if constexpr (std::is_same_v<T, float>) {
            if (how.tf32) {
                multiply_dense<T, DenseMatrixUnitProduct<T>>(call, scratch, rows, where.stream);
            } else {
                multiply_dense<T, DenseMultiplyAddProduct>(call, scratch, rows, where.stream);
            }
        } else {
            multiply_dense<T, DenseMatrixUnitProduct<T>>(call, scratch, rows, where.stream);
        }
    }
    const int64_t bias_blocks =
        call.grad_bias == nullptr ? 0 : divide_rounding_up(shape.filters, warp_threads);
    const int64_t weights =
        call.grad_weight == nullptr ? 0 : shape.filters * shape.kernel_size * shape.channels;
    const int64_t blocks = bias_blocks + divide_rounding_up(weights, threads_per_block);
    if (blocks > 0) {
        launch({blocks, threads_per_block, 0, where.stream}, add_splits<T>, call, scratch,
               bias_blocks);
    }
}

template <class T>
void by_definition(const ConvolutionBackward<T>& call, const Where& where) {
    const ConvolutionShape& shape = call.shape;
    const auto each = [&](int64_t elements, auto kernel) {
        if (elements > 0) launch(one_thread_each(elements, where.stream), kernel, call);
    };
    const int64_t weights = shape.filters * shape.kernel_size * shape.channels;
    const int64_t inputs = shape.batch * shape.length * shape.channels;
    if (call.grad_bias != nullptr) each(shape.filters, simple_bias_gradient<T>);
    if (call.grad_weight != nullptr) each(weights, simple_weight_gradient<T>);
    if (call.grad_input != nullptr) each(inputs, simple_input_gradient<T>);
}

}  // namespace

template <class T>
int64_t scratch_bytes(const ConvolutionBackward<T>& call, const How& how, int device) {
    ScratchParts parts(nullptr);
    if constexpr (!std::is_same_v<T, double>) {
        if (is_fast<T>(how)) {
            if (is_dense<T>(call.shape)) {
                const DenseScratch<T> scratch = dense_scratch(parts, call, device);
                parts.take<char>(scratch_bytes(input_convolution(call, scratch), how, device));
            } else {
                winner_scratch(parts, call);
            }
        }
    }
    return parts.bytes();
}

template <class T>
void convolution_backward(const ConvolutionBackward<T>& call, const How& how, const Where& where) {
    expect_current_device(where.device);
    if constexpr (!std::is_same_v<T, double>) {
        if (is_fast<T>(how)) {
            if (is_dense<T>(call.shape)) {
                by_dense_products(call, how, where);
            } else {
                by_winners(call, where);
            }
            return;
        }
    }
    by_definition(call, where);
}

#define INSTANTIATE(T)                                                              \
    template int64_t scratch_bytes(const ConvolutionBackward<T>&, const How&, int); \
    template void convolution_backward(const ConvolutionBackward<T>&, const How&, const Where&);

INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Bfloat16)
INSTANTIATE(Float16)

#undef INSTANTIATE

}  // namespace seqkernels::cuda
