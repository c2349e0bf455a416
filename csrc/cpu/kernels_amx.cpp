#include "kernel_table.h"
#include "sixteen_bit.h"
#include "tile_convolution_gradient.h"
#include "tile_product.h"
#include "tile_weight_gradient.h"

namespace seqkernels {
namespace {

using Vector = Avx512Vector<float>;

template <int planes>
void convolution_backward_in(const ConvolutionBackward<float>& arguments, int threads) {
    if constexpr (largest_dense_pool<planes> > 0) {
        if (pays_dense<planes>(arguments.shape)) {
            using Kernel = ConvolutionBackwardKernel<Vector, TileInputGradient<planes>,
                                                     TileWindowsGradient<planes>>;
            return Kernel(arguments).run(threads);
        }
    }
    convolution_backward<Vector>(arguments, threads);
}

template <class Narrow, int planes>
constexpr SixteenBitKernels<Narrow> sixteen_bit_kernels_in() {
    return sixteen_bit_kernels<Vector, Narrow, TileProduct<planes>, TileWeightGradient<planes>,
                               convolution_backward_in<planes>>();
}

template <int planes>
void multiply_in(Operations<float>& operations) {
    operations.convolution_forward = convolution_forward<Vector, TileProduct<planes>>;
    operations.convolution_backward = convolution_backward_in<planes>;
    operations.recurrence_forward = recurrence_forward<Vector, TileProduct<planes>>;
    operations.recurrence_backward =
        recurrence_backward<Vector, TileProduct<planes>, TileWeightGradient<planes>>;
}

}  // namespace

const KernelTable* amx_kernels() {
    // AVX-512's kernels, but for dense products of all types but float64.
    static const KernelTable kernels = [] {
        KernelTable table = *avx512_kernels();
        table.bfloat16 = sixteen_bit_kernels_in<Bfloat16, 1>();
        table.float16 = sixteen_bit_kernels_in<Float16, 3>();
        multiply_in<3>(table.float32);
        multiply_in<2>(table.float32_high);
        multiply_in<1>(table.float32_medium);
        return table;
    }();
    return &kernels;
}

}  // namespace seqkernels
