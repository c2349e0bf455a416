#include "convolution_plan.h"

#include <initializer_list>

#include "tile_sizes.h"

namespace seqkernels::cuda {
namespace {

// The widest copies that a row of so many bytes is made up of.
int widest_copy(int64_t bytes_of_row) {
    return bytes_of_row % 16 == 0 ? 16 : bytes_of_row % 8 == 0 ? 8 : 4;
}

// Several pools share a tile while they waste little of it: pools that overlap or follow each
// other closely, of up to a quarter of a tile. 0: they do not.
int64_t pools_in(const ConvolutionShape& shape, int64_t tile) {
    if (shape.pool_size == 0 || shape.pool_size > tile / 4 || shape.pool_stride > tile / 4) {
        return 0;
    }
    return (tile - shape.pool_size) / shape.pool_stride + 1;
}

// The plan with that many filters in a block and runs of whole pools or not, and about how many
// clocks it takes; no filters where it does not fit.
int64_t clocks_with(const ConvolutionShape& shape, int64_t channels, int64_t element_bytes,
                    const GpuTraits& gpu, bool in_whole_pools, WarpgroupPlan& plan) {
    plan.filter_tiles = divide_rounding_up(shape.filters, plan.filters);
    // A block keeps its filters. One fills a multiprocessor: it takes the registers of all.
    plan.blocks = larger(1, gpu.multiprocessors / plan.filter_tiles);
    plan.run = larger(1, divide_rounding_up(plan.tiles, plan.blocks * plan.warpgroups()));
    if (in_whole_pools) {
        plan.run = divide_rounding_up(plan.run, plan.tiles_of_pool) * plan.tiles_of_pool;
    }
    plan.blocks = smaller(plan.blocks, larger(1, plan.runs()));
    const bool is_split = plan.run % plan.tiles_of_pool != 0;
    plan.parts = is_split ? divide_rounding_up(plan.tiles_of_pool - 1, plan.run) + 1 : 1;
    const int64_t together = divide_rounding_up(larger(1, plan.runs()), plan.blocks);
    plan.busy_warpgroups = static_cast<int>(together);
    const int64_t room = gpu.shared_bytes - shared_alignment - plan.filter_bytes(shape.kernel_size);
    const auto stages_of = [&](int64_t warpgroups) {
        return (room / warpgroups - plan.exchange_bytes()) / plan.stage_bytes();
    };
    // There is to be room for all warpgroups, busy or not: whether the kernel takes a convolution
    // must not depend on the batch, nor on the length, which would change the order of its sums.
    if (stages_of(plan.warpgroups()) < 2) {
        plan.filters = 0;
        return 0;
    }
    plan.stages = static_cast<int>(smaller(stages_of(together), most_warpgroup_stages));
    // A product of 64 windows and 16 channels takes the matrix units half a clock a filter, and
    // reads (64 + filters) 32 bytes of shared memory at 128 a clock. A multiprocessor gets about 24
    // bytes a clock from L2.
    const int64_t bytes = channels * element_bytes;
    const int64_t products = shape.kernel_size * divide_rounding_up(bytes, 32);
    const int64_t product = larger(plan.filters / 2, 16 + plan.filters / 4);
    const int64_t tile = larger(products * product, plan.rows * bytes / 24);
    // What a warpgroup waits for at each tile and at each chunk but those that came with the
    // filters. Measured on an H200 (2048 samples of 512, 128 channels and filters, 3 taps; all
    // warps copying every chunk): a tile of 128, 64, 32 and 16 filters took a warpgroup 6080, 5780,
    // 4680 and 4380 clocks, where its products take 1540, 770, 580 and 480.
    constexpr int64_t wait_of_chunk = 1800, wait_of_tile = 300, wait_of_filter = 6;
    const int64_t chunks = larger(0, plan.run * plan.chunks - (plan.stages - 1));
    const int64_t alone =
        plan.run * (tile + wait_of_tile + plan.filters * wait_of_filter) + chunks * wait_of_chunk;
    // All multiprocessors read their filters at the same time. To merge winners takes a kernel
    // more.
    const int64_t filters = plan.filter_bytes(shape.kernel_size) / 20;
    const int64_t merge = plan.parts > 1 ? 4000 : 0;
    return larger(plan.run * together * tile, alone) + filters + merge;
}

// Nothing (no filters) where the kernel is not for this convolution.
WarpgroupPlan plan_warpgroups(const ConvolutionShape& shape, int64_t channels,
                              int64_t element_bytes, const GpuTraits& gpu) {
    WarpgroupPlan plan{};
    const int64_t windows = shape.windows(shape.length);
    const int64_t reach = (shape.kernel_size - 1) * shape.dilation;
    constexpr int64_t most_reach = 64;    // of rows that a tile's last window reads beyond it
    constexpr int64_t most = 0x0FFFFFFF;  // windows, samples and tiles are counted in 32 bits
    if (!gpu.has_warpgroups || element_bytes != 2 || shape.stride != 1 || reach > most_reach ||
        windows == 0 || shape.pooled == 0 || shape.filters == 0 || channels > most ||
        shape.length > most || shape.padding_left > most / 4 || shape.padding_right > most / 4 ||
        windows > most || shape.batch > most || shape.filters > most) {
        return plan;
    }
    plan.chunks = static_cast<int>(divide_rounding_up(channels * element_bytes, row_bytes));
    plan.last_products = static_cast<int>(
        divide_rounding_up(channels * element_bytes - (plan.chunks - 1) * int64_t{row_bytes}, 32));
    plan.rows = static_cast<int>(divide_rounding_up(warpgroup_windows + reach, 8) * 8);
    plan.added_windows = static_cast<int>(shape.padding_left + shape.padding_right - reach);
    const int64_t in_tile = pools_in(shape, warpgroup_windows);
    const int64_t pools = in_tile == 0 ? shape.pooled : divide_rounding_up(shape.pooled, in_tile);
    plan.pools_in_tile = static_cast<int>(in_tile);
    plan.windows_of_pool =
        static_cast<int>(shape.pool_size == 0 ? windows
                         : in_tile == 0 ? shape.pool_size
                                        : (in_tile - 1) * shape.pool_stride + shape.pool_size);
    plan.windows_between =
        static_cast<int>(in_tile == 0 ? shape.pool_stride : in_tile * shape.pool_stride);
    plan.tiles_of_pool =
        static_cast<int>(divide_rounding_up(plan.windows_of_pool, warpgroup_windows));
    if (pools > most / plan.tiles_of_pool ||
        larger(1, shape.batch) > most / larger(1, pools * plan.tiles_of_pool)) {
        return plan;
    }
    plan.pools = static_cast<int>(pools);
    plan.tiles = shape.batch * pools * plan.tiles_of_pool;
    // That of the fewest clocks.
    WarpgroupPlan best{};
    int64_t fewest = 0;
    for (int filters = gpu.most_filters; filters >= gpu.least_filters; filters /= 2) {
        for (const bool in_whole_pools : {false, true}) {
            WarpgroupPlan tried = plan;
            tried.filters = filters;
            const int64_t clocks =
                clocks_with(shape, channels, element_bytes, gpu, in_whole_pools, tried);
            if (tried.filters != 0 && (best.filters == 0 || clocks < fewest)) {
                best = tried;
                fewest = clocks;
            }
        }
    }
    return best;
}

}  // namespace

int copy_bytes_in_place(const ConvolutionShape& shape, const SequenceView& input,
                        int64_t element_bytes, int64_t least) {
    if (input.stride_channel != 1 && shape.channels > 1) return 0;
    const auto address = reinterpret_cast<uintptr_t>(input.numbers.data);
    for (int bytes = widest_copy(shape.channels * element_bytes); bytes >= least; bytes /= 2) {
        const auto fits = [&](int64_t count, int64_t stride) {
            return count <= 1 || stride * element_bytes % bytes == 0;
        };
        if (address % static_cast<uintptr_t>(bytes) == 0 &&
            shape.channels * element_bytes % bytes == 0 && fits(shape.batch, input.stride_batch) &&
            fits(shape.length, input.stride_length)) {
            return bytes;
        }
    }
    return 0;
}

ConvolutionPlan plan_convolution(const ConvolutionShape& shape, const SequenceView& input,
                                 int64_t element_bytes, const GpuTraits& gpu) {
    const int multiprocessors = gpu.multiprocessors;
    ConvolutionPlan plan{};
    constexpr int64_t least_copy = 4;
    const int64_t bytes_of_row =
        larger(1, divide_rounding_up(shape.channels * element_bytes, least_copy)) * least_copy;
    plan.channels = bytes_of_row / element_bytes;
    plan.copy_bytes = copy_bytes_in_place(shape, input, element_bytes, least_copy);
    plan.is_repacked = shape.channels == 0 || plan.copy_bytes == 0;
    if (plan.is_repacked) plan.copy_bytes = widest_copy(bytes_of_row);
    // With the taps of a chunk following each other a window's numbers are read from L1 by all but
    // the first. Up to an eighth of a chunk's work may be zeros for that.
    const int64_t chunks_of_tap = divide_rounding_up(bytes_of_row, row_bytes);
    plan.is_chunk_of_one_tap =
        shape.kernel_size == 1 || 8 * chunks_of_tap * row_bytes <= 9 * bytes_of_row;
    plan.chunks = plan.is_chunk_of_one_tap
                      ? shape.kernel_size * chunks_of_tap
                      : divide_rounding_up(shape.kernel_size * bytes_of_row, row_bytes);

    const int64_t windows = shape.windows(shape.length);
    const int64_t pool_windows = shape.pool_size == 0 ? windows : shape.pool_size;
    const auto blocks = [&](int64_t tile) {
        const int64_t pools = pools_in(shape, tile);
        const int64_t tiles = pools == 0 ? shape.pooled * divide_rounding_up(pool_windows, tile)
                                         : divide_rounding_up(shape.pooled, pools);
        return shape.batch * tiles * divide_rounding_up(shape.filters, tile);
    };
    // The wide tile reads half the operand bytes for a multiply-add; worth it if it is filled, and
    // if there is one for every multiprocessor.
    const bool is_wide = shape.filters > 64 &&
                         (shape.pool_size != 0 ? windows : pool_windows) > 64 &&
                         blocks(128) >= multiprocessors;
    plan.tile = is_wide ? 128 : 64;
    plan.filter_tiles = divide_rounding_up(shape.filters, plan.tile);
    plan.pools_in_tile = pools_in(shape, plan.tile);
    plan.splits = 1;
    if (plan.pools_in_tile == 0) {
        const int64_t wanted = blocks_of_multiprocessor(plan.tile) * int64_t{multiprocessors};
        const int64_t unsplit = larger(1, shape.batch * shape.pooled * plan.filter_tiles);
        const int64_t tiles = larger(1, divide_rounding_up(pool_windows, plan.tile));
        plan.splits = smaller(tiles, larger(1, wanted / unsplit));
    }
    plan.warpgroup = plan_warpgroups(shape, plan.channels, element_bytes, gpu);
    return plan;
}

}  // namespace seqkernels::cuda
