#include "recurrence.h"
#include "recurrence_simple.h"

namespace seqkernels::cuda {

template <class T>
void recurrence_forward(const RecurrenceForward<T>& call, const Where& where) {
    const int64_t states = call.shape.batch * call.shape.hidden;
    if (states == 0) return;
    expect_current_device(where.device);
    const LaunchShape shape = one_thread_each(states, where.stream);
    launch(shape, begin_recurrence<T>, call);
    for (int64_t step = 0; step < call.shape.steps; ++step) {
        launch(shape, simple_step<T>, call, step);
    }
}

template <class T>
void recurrence_backward(const RecurrenceBackward<T>& call, const Where& where) {
    const int64_t states = call.shape.batch * call.shape.hidden;
    if (states == 0) return;
    expect_current_device(where.device);
    const LaunchShape shape = one_thread_each(states, where.stream);
    for (int64_t step = call.shape.steps - 1; step >= 0; --step) {
        launch(shape, simple_step_backward<T>, call, step);
    }
    launch(shape, end_recurrence_backward<T>, call);
}

#define INSTANTIATE(T)                                                           \
    template void recurrence_forward(const RecurrenceForward<T>&, const Where&); \
    template void recurrence_backward(const RecurrenceBackward<T>&, const Where&);

INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Bfloat16)
INSTANTIATE(Float16)

#undef INSTANTIATE

}  // namespace seqkernels::cuda
