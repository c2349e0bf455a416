#include "convolution.h"
#include "convolution_plan.h"
#include "convolution_simple.h"
#include "cuda/warpgroup.h"
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
    const WarpgroupPlan& own = plan.warpgroup;
    const bool in_warpgroups = own.filters != 0;
    scratch.filters = parts.take<T>(
        in_warpgroups ? checked_product({own.filter_tiles, own.filter_bytes(shape.kernel_size)}) /
                            int64_t{sizeof(T)}
                      : checked_product({plan.chunks, plan.filters_padded(), elements_in_row}));
    if (plan.is_repacked) {
        scratch.repacked =
            parts.take<T>(checked_product({shape.batch, shape.length, plan.channels}));
    }
    const int64_t splits = in_warpgroups ? own.parts : plan.splits;
    if (splits > 1) {
        const int64_t count = checked_product({shape.batch, shape.pooled, splits, shape.filters});
        scratch.partial = {parts.take<float>(count), parts.take<int32_t>(count)};
    }
    return scratch;
}

template <class T>
ConvolutionPlan plan_of(const ConvolutionForward<T>& call, int device) {
    const GpuTraits gpu{multiprocessors(device), has_warpgroup_products(device),
                        shared_bytes_of_block(device)};
    return plan_convolution(call.shape, call.input, sizeof(T), gpu);
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
            if constexpr (is_sixteen_bit<T>) {
                if (plan.warpgroup.filters != 0) {
                    convolution_in_warpgroups(call, plan, scratch, where.stream);
                    return;
                }
            }
            convolution_in_tiles(call, plan, how.tf32, scratch, where.stream);
            return;
        }
    }
    launch(one_thread_each(outputs, where.stream), simple_forward<T>, call);
}

#define INSTANTIATE(T)                                                             \
    template int64_t scratch_bytes(const ConvolutionForward<T>&, const How&, int); \
    template void convolution_forward(const ConvolutionForward<T>&, const How&, const Where&);

INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Bfloat16)
INSTANTIATE(Float16)

#undef INSTANTIATE

}  // namespace seqkernels::cuda
