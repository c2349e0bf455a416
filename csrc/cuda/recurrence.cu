#include <atomic>
#include <stdexcept>

#include "recurrence.h"
#include "recurrence_persistent.h"
#include "recurrence_persistent_backward.h"
#include "recurrence_simple.h"
#include "scratch.h"

namespace seqkernels::cuda {
namespace {

template <class T>
constexpr bool can_stay = !std::is_same_v<T, double>;

// Asked once: it is the driver's to work out.
int blocks_of_cluster(int device) {
    constexpr int devices = 64;
    constexpr int64_t shared_bytes = 48 * 1024;  // as many as any plan's
    static std::atomic<int> known[devices];      // one more than found, 0 before
    const bool is_kept = device >= 0 && device < devices;
    if (is_kept && known[device] > 0) return known[device] - 1;
    const int found =
        largest_cluster(device, cluster_backward<Bfloat16, 4>, persistent_threads, shared_bytes);
    if (is_kept) known[device] = found + 1;
    return found;
}

// Whether no other kernel may take its place.
bool is_forced(RecurrenceKernel kernel) {
    return kernel == RecurrenceKernel::cluster || kernel == RecurrenceKernel::persistent;
}

template <class T>
RecurrencePlan plan_of(const RecurrenceShape& shape, Pass pass, RecurrenceKernel kernel,
                       int device) {
    const RecurrenceChoice choice = staying_plan(shape, sizeof(T), pass, kernel, device);
    if (is_forced(kernel) && !choice.plan.fits) {
        throw std::invalid_argument("use_recurrence: " + choice.refusal);
    }
    return choice.plan;
}

template <class T>
Exchange<T> exchange_of(ScratchParts& parts, const RecurrencePlan& plan) {
    return {parts.take<T>(
        checked_product({plan.slots, plan.slices, plan.rows(), plan.row_elements()}))};
}

template <class T>
using ForwardKernel = void (*)(RecurrenceForward<T>, RecurrencePlan, Exchange<T>);
template <class T>
using BackwardKernel = void (*)(RecurrenceBackward<T>, RecurrencePlan, Exchange<T>);

// function(gates, sample tiles), as types that have the numbers.
template <class Function>
auto with_sizes(bool is_lstm, int sample_tiles, Function&& function) {
    constexpr std::integral_constant<int, 1> one;
    constexpr std::integral_constant<int, most_sample_tiles> most;
    constexpr std::integral_constant<int, 4> four;
    if (is_lstm) return sample_tiles == 1 ? function(four, one) : function(four, most);
    return sample_tiles == 1 ? function(one, one) : function(one, most);
}

template <class T>
ForwardKernel<T> forward_kernel(const RecurrencePlan& plan) {
    return with_sizes(plan.gates == 4, plan.sample_tiles,
                      [&](auto gates, auto tiles) -> ForwardKernel<T> {
                          if constexpr (is_sixteen_bit<T> && tiles() == 1) {
                              if (plan.in_cluster) return cluster_forward<T, gates()>;
                          }
                          if constexpr (gates() == 4) {
                              if (plan.units == 8) return persistent_forward<T, 4, 8, tiles()>;
                          }
                          return persistent_forward<T, gates(), 16, tiles()>;
                      });
}

template <class T>
BackwardKernel<T> backward_kernel(const RecurrencePlan& plan) {
    return with_sizes(plan.depths == 4, plan.sample_tiles,
                      [&](auto gates, auto tiles) -> BackwardKernel<T> {
                          if constexpr (is_sixteen_bit<T> && tiles() == 1) {
                              if (plan.in_cluster) return cluster_backward<T, gates()>;
                          }
                          return persistent_backward<T, gates(), tiles()>;
                      });
}

// Queues a kernel that stays, where its blocks exchange through memory after one that readies the
// exchange: begin(shape, exchange). Returns whether a multiprocessor has room for a block.
template <class T, class Call, class Begin>
bool stay(RecurrenceKernel asked, void (*kernel)(Call, RecurrencePlan, Exchange<T>),
          const Call& call, const RecurrencePlan& plan, const Where& where, Begin&& begin) {
    const int64_t shared = persistent_shared_bytes(plan);
    LaunchShape shape{plan.blocks(), persistent_threads, shared, where.stream};
    if (plan.in_cluster) {
        shape.cluster = static_cast<int>(plan.unit_blocks);
        launch(shape, kernel, call, plan, Exchange<T>{});
        return true;
    }
    if (blocks_at_once(kernel, persistent_threads, shared) == 0) {
        if (!is_forced(asked)) return false;
        throw std::invalid_argument(
            "use_recurrence: expected a multiprocessor with room for a block, got none");
    }
    ScratchParts parts(where.scratch);
    const Exchange<T> exchange = exchange_of<T>(parts, plan);
    begin(one_thread_each(plan.slices * plan.rows() * plan.row_elements(), where.stream), exchange);
    shape.cooperating = true;
    launch(shape, kernel, call, plan, exchange);
    return true;
}

template <class T>
bool stayed(const RecurrenceForward<T>& call, RecurrenceKernel kernel, const Where& where) {
    const RecurrencePlan plan = plan_of<T>(call.shape, Pass::forward, kernel, where.device);
    if (!plan.fits) return false;
    return stay<T>(kernel, forward_kernel<T>(plan), call, plan, where,
                   [&](const LaunchShape& each, const Exchange<T>& exchange) {
                       launch(each, begin_exchange<T>, call, plan, exchange);
                   });
}

template <class T>
bool stayed(const RecurrenceBackward<T>& call, RecurrenceKernel kernel, const Where& where) {
    const RecurrencePlan plan = plan_of<T>(call.shape, Pass::backward, kernel, where.device);
    if (!plan.fits) return false;
    return stay<T>(kernel, backward_kernel<T>(plan), call, plan, where,
                   [&](const LaunchShape& each, const Exchange<T>& exchange) {
                       launch(each, clear_exchange<T>, plan, exchange);
                   });
}

}  // namespace

RecurrenceChoice staying_plan(const RecurrenceShape& shape, int64_t element_bytes, Pass pass,
                              RecurrenceKernel kernel, int device) {
    // The device is not asked in vain: once a step, and maybe while a graph is captured.
    if (kernel == RecurrenceKernel::simple) return {};
    const std::string refusal = refusal_of_shape(shape, element_bytes);
    if (!refusal.empty()) return {{}, refusal};
    return plan_recurrence(shape, element_bytes, pass, kernel,
                           {blocks_can_cooperate(device), multiprocessors(device),
                            shared_bytes_of_block(device), blocks_of_cluster(device)});
}

template <class T>
int64_t scratch_bytes(const RecurrenceShape& shape, Pass pass, RecurrenceKernel kernel,
                      int device) {
    const RecurrencePlan plan = plan_of<T>(shape, pass, kernel, device);
    ScratchParts parts(nullptr);
    if (plan.fits && !plan.in_cluster) exchange_of<T>(parts, plan);
    return parts.bytes();
}

template <class T>
void recurrence_forward(const RecurrenceForward<T>& call, RecurrenceKernel kernel,
                        const Where& where) {
    const int64_t states = call.shape.batch * call.shape.hidden;
    if (states == 0) return;
    expect_current_device(where.device);
    const LaunchShape each = one_thread_each(states, where.stream);
    if (call.recurrent != nullptr) {
        if (call.step == 0) launch(each, begin_recurrence<T>, call);
        launch(each, simple_step<T>, call, call.step);
        return;
    }
    if constexpr (can_stay<T>) {
        if (stayed(call, kernel, where)) return;
    }
    launch(each, begin_recurrence<T>, call);
    for (int64_t step = 0; step < call.shape.steps; ++step) {
        launch(each, simple_step<T>, call, step);
    }
}

template <class T>
void recurrence_backward(const RecurrenceBackward<T>& call, RecurrenceKernel kernel,
                         const Where& where) {
    const int64_t states = call.shape.batch * call.shape.hidden;
    if (states == 0) return;
    expect_current_device(where.device);
    const LaunchShape each = one_thread_each(states, where.stream);
    if (call.from_following != nullptr) {
        if (call.step >= 0) {
            launch(each, simple_step_backward<T>, call, call.step);
        } else {
            launch(each, end_recurrence_backward<T>, call);
        }
        return;
    }
    if constexpr (can_stay<T>) {
        if (stayed(call, kernel, where)) return;
    }
    for (int64_t step = call.shape.steps - 1; step >= 0; --step) {
        launch(each, simple_step_backward<T>, call, step);
    }
    launch(each, end_recurrence_backward<T>, call);
}

#define INSTANTIATE(T)                                                                             \
    template int64_t scratch_bytes<T>(const RecurrenceShape&, Pass, RecurrenceKernel, int);        \
    template void recurrence_forward(const RecurrenceForward<T>&, RecurrenceKernel, const Where&); \
    template void recurrence_backward(const RecurrenceBackward<T>&, RecurrenceKernel, const Where&);

INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Bfloat16)
INSTANTIATE(Float16)

#undef INSTANTIATE

}  // namespace seqkernels::cuda
