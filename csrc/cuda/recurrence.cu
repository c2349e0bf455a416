#include "recurrence.h"
#include "recurrence_persistent.h"
#include "recurrence_persistent_backward.h"
#include "recurrence_simple.h"
#include "scratch.h"

namespace seqkernels::cuda {
namespace {

template <class T>
RecurrencePlan plan_of(const RecurrenceShape& shape, Pass pass, Kernels kernels, int device) {
    const bool is_empty = shape.batch == 0 || shape.hidden == 0;
    if (kernels == Kernels::simple || !is_sixteen_bit<T> || is_empty || shape.steps < 2) return {};
    if (!blocks_can_cooperate(device)) return {};
    return plan_recurrence(shape, pass, multiprocessors(device), shared_bytes_of_block(device));
}

int64_t exchanged(const RecurrencePlan& plan) {
    return checked_product({2, plan.slices, plan.rows(), depth_steps(plan.depth) * 16});
}

template <class T>
Exchange<T> exchange_of(ScratchParts& parts, const RecurrencePlan& plan) {
    return {parts.take<T>(exchanged(plan)), parts.take<uint32_t>(plan.slices)};
}

// Queues a kernel that stays, after one that readies the exchange: begin(exchange). Returns whether
// a multiprocessor has room for a block.
template <class T, class Call, class Begin>
bool stay(void (*kernel)(Call, RecurrencePlan, Exchange<T>), const Call& call,
          const RecurrencePlan& plan, const Where& where, Begin&& begin) {
    constexpr int threads = persistent_warps * warp_threads;
    const int64_t shared = persistent_shared_bytes(plan);
    if (blocks_at_once(kernel, threads, shared) == 0) return false;
    ScratchParts parts(where.scratch);
    const Exchange<T> exchange = exchange_of<T>(parts, plan);
    begin(one_thread_each(exchanged(plan), where.stream), exchange);
    launch({plan.blocks(), threads, shared, where.stream, true}, kernel, call, plan, exchange);
    return true;
}

template <class T>
bool stayed(const RecurrenceForward<T>& call, Kernels kernels, const Where& where) {
    const RecurrencePlan plan = plan_of<T>(call.shape, Pass::forward, kernels, where.device);
    if (!plan.fits) return false;
    const auto kernel = call.shape.gates() == 1 ? persistent_forward<T, 1, 16>
                        : plan.units == 8       ? persistent_forward<T, 4, 8>
                                                : persistent_forward<T, 4, 16>;
    return stay<T>(kernel, call, plan, where,
                   [&](const LaunchShape& each, const Exchange<T>& exchange) {
                       launch(each, begin_exchange<T>, call, plan, exchange);
                   });
}

template <class T>
bool stayed(const RecurrenceBackward<T>& call, Kernels kernels, const Where& where) {
    const RecurrencePlan plan = plan_of<T>(call.shape, Pass::backward, kernels, where.device);
    if (!plan.fits) return false;
    const auto kernel =
        call.shape.gates() == 1 ? persistent_backward<T, 1> : persistent_backward<T, 4>;
    return stay<T>(kernel, call, plan, where,
                   [&](const LaunchShape& each, const Exchange<T>& exchange) {
                       launch(each, clear_exchange<T>, plan, exchange);
                   });
}

}  // namespace

template <class T>
int64_t scratch_bytes(const RecurrenceShape& shape, Pass pass, Kernels kernels, int device) {
    const RecurrencePlan plan = plan_of<T>(shape, pass, kernels, device);
    ScratchParts parts(nullptr);
    if (plan.fits) exchange_of<T>(parts, plan);
    return parts.bytes();
}

template <class T>
void recurrence_forward(const RecurrenceForward<T>& call, Kernels kernels, const Where& where) {
    const int64_t states = call.shape.batch * call.shape.hidden;
    if (states == 0) return;
    expect_current_device(where.device);
    if constexpr (is_sixteen_bit<T>) {
        if (stayed(call, kernels, where)) return;
    }
    const LaunchShape each = one_thread_each(states, where.stream);
    launch(each, begin_recurrence<T>, call);
    for (int64_t step = 0; step < call.shape.steps; ++step) {
        launch(each, simple_step<T>, call, step);
    }
}

template <class T>
void recurrence_backward(const RecurrenceBackward<T>& call, Kernels kernels, const Where& where) {
    const int64_t states = call.shape.batch * call.shape.hidden;
    if (states == 0) return;
    expect_current_device(where.device);
    if constexpr (is_sixteen_bit<T>) {
        if (stayed(call, kernels, where)) return;
    }
    const LaunchShape each = one_thread_each(states, where.stream);
    for (int64_t step = call.shape.steps - 1; step >= 0; --step) {
        launch(each, simple_step_backward<T>, call, step);
    }
    launch(each, end_recurrence_backward<T>, call);
}

#define INSTANTIATE(T)                                                                    \
    template int64_t scratch_bytes<T>(const RecurrenceShape&, Pass, Kernels, int);        \
    template void recurrence_forward(const RecurrenceForward<T>&, Kernels, const Where&); \
    template void recurrence_backward(const RecurrenceBackward<T>&, Kernels, const Where&);

INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Bfloat16)
INSTANTIATE(Float16)

#undef INSTANTIATE

}  // namespace seqkernels::cuda
