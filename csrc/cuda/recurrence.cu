#include "recurrence.h"
#include "recurrence_persistent.h"
#include "recurrence_simple.h"
#include "scratch.h"

namespace seqkernels::cuda {
namespace {

template <class T>
RecurrencePlan plan_of(const RecurrenceShape& shape, Kernels kernels, int device) {
    if (kernels == Kernels::simple || !is_sixteen_bit<T> || shape.steps < 2) return {};
    RecurrencePlan plan =
        plan_recurrence(shape, multiprocessors(device), shared_bytes_of_block(device));
    // Arrivals are counted in 32 bits.
    plan.fits = plan.fits && shape.steps < (int64_t{1} << 32) / plan.unit_blocks(shape.hidden);
    return plan;
}

template <class T>
Exchange<T> exchange_of(ScratchParts& parts, const RecurrenceShape& shape,
                        const RecurrencePlan& plan) {
    const int64_t depth = depth_steps(shape.hidden) * 16;
    return {parts.take<T>(checked_product({2, plan.slices, plan.rows(), depth})),
            parts.take<uint32_t>(plan.slices)};
}

// Calls function(kernel, columns) with the persistent kernel of a plan.
template <class T, class Function>
void with_persistent_kernel(const RecurrenceShape& shape, const RecurrencePlan& plan,
                            Function&& function) {
    if (shape.gates() == 1) {
        function(persistent_forward<T, 1, 16>, 16);
    } else if (plan.units == 8) {
        function(persistent_forward<T, 4, 8>, 32);
    } else {
        function(persistent_forward<T, 4, 16>, 64);
    }
}

}  // namespace

template <class T>
int64_t scratch_bytes(const RecurrenceShape& shape, Kernels kernels, int device) {
    const RecurrencePlan plan = plan_of<T>(shape, kernels, device);
    ScratchParts parts(nullptr);
    if (plan.fits) exchange_of<T>(parts, shape, plan);
    return parts.bytes();
}

template <class T>
void recurrence_forward(const RecurrenceForward<T>& call, Kernels kernels, const Where& where) {
    const RecurrenceShape& shape = call.shape;
    const int64_t states = shape.batch * shape.hidden;
    if (states == 0) return;
    expect_current_device(where.device);
    if constexpr (is_sixteen_bit<T>) {
        const RecurrencePlan plan = plan_of<T>(shape, kernels, where.device);
        bool has_run = false;
        if (plan.fits) {
            ScratchParts parts(where.scratch);
            const Exchange<T> exchange = exchange_of<T>(parts, shape, plan);
            with_persistent_kernel<T>(shape, plan, [&](auto kernel, int columns) {
                const int64_t shared = persistent_shared_bytes(shape.hidden, columns);
                constexpr int threads = persistent_warps * warp_threads;
                if (blocks_at_once(kernel, threads, shared) == 0) return;
                launch(
                    one_thread_each(2 * plan.slices * plan.rows() * depth_steps(shape.hidden) * 16,
                                    where.stream),
                    begin_exchange<T>, call, plan, exchange);
                launch({plan.blocks(shape.hidden), threads, shared, where.stream, true}, kernel,
                       call, plan, exchange);
                has_run = true;
            });
        }
        if (has_run) return;
    }
    const LaunchShape each = one_thread_each(states, where.stream);
    launch(each, begin_recurrence<T>, call);
    for (int64_t step = 0; step < shape.steps; ++step) {
        launch(each, simple_step<T>, call, step);
    }
}

template <class T>
void recurrence_backward(const RecurrenceBackward<T>& call, const Where& where) {
    const int64_t states = call.shape.batch * call.shape.hidden;
    if (states == 0) return;
    expect_current_device(where.device);
    const LaunchShape each = one_thread_each(states, where.stream);
    for (int64_t step = call.shape.steps - 1; step >= 0; --step) {
        launch(each, simple_step_backward<T>, call, step);
    }
    launch(each, end_recurrence_backward<T>, call);
}

#define INSTANTIATE(T)                                                                    \
    template int64_t scratch_bytes<T>(const RecurrenceShape&, Kernels, int);              \
    template void recurrence_forward(const RecurrenceForward<T>&, Kernels, const Where&); \
    template void recurrence_backward(const RecurrenceBackward<T>&, const Where&);

INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Bfloat16)
INSTANTIATE(Float16)

#undef INSTANTIATE

}  // namespace seqkernels::cuda
