// The recurrence kernels for CUDA. Products outside of the recurrence are the caller's: the inputs
// come projected, and the gradients of gates are what the weights' and inputs' gradients are made
// of.
//
// All arrays are contiguous and on one device. Lengths beyond T count as T, below 0 as 0. Work is
// queued in a stream and not waited for. Errors of the runtime are std::runtime_error.
#pragma once

#include "../core/data_type.h"
#include "../core/recurrence.h"
#include "recurrence_plan.h"
#include "where.h"

namespace seqkernels::cuda {

template <class T>
struct RecurrenceForward {
    RecurrenceShape shape;              // without `inputs`
    const Accumulator<T>* projections;  // (T, N, G H): weight_ih x
    const T* bias_ih;                   // (G H,), or null
    const T* bias_hh;                   // (G H,), or null
    const T* initial_hidden;            // (N, H)
    const T* initial_cell;              // (N, H); null without a cell state
    const T* weight;                    // (G H, H)
    const int64_t* lengths;             // (N,), or null
    T* output;                          // (T, N, H), written whole
    T* final_hidden;                    // (N, H)
    T* final_cell;                      // (N, H); null without a cell state
    Accumulator<T>* cell;               // (N, H) scratch: the running cell state; null without
    Accumulator<T>* gates;  // (T, N, G H): after their activations, for the backward; or null.
                            // Not written where lengths end.
    Accumulator<T>* cells;  // (T, N, H): every cell state, given together with `gates`
    // One step at a time, from the first on, by a product that the caller makes of the weight and
    // the states before the step (initial_hidden, then final_hidden); or null, and all steps.
    const Accumulator<T>* recurrent;  // (N, G H)
    int64_t step;
};

template <class T>
struct RecurrenceBackward {
    RecurrenceShape shape;
    const T* initial_cell;
    const T* weight;  // (G H, H)
    const int64_t* lengths;
    const T* output;
    const Accumulator<T>* gates;  // null without a cell state
    const Accumulator<T>* cells;  // null without a cell state
    const T* grad_output;         // (T, N, H), or null for zeros
    const T* grad_final_hidden;   // (N, H), or null for zeros
    const T* grad_final_cell;     // (N, H), or null for zeros
    Accumulator<T>* grad_cell;    // (N, H) scratch: the running gradient; null without a cell state
    T* grad_gates;                // (T, N, G H): before the activations, written whole
    T* grad_initial_hidden;       // (N, H)
    T* grad_initial_cell;         // (N, H); null without a cell state
    // One step at a time, from the last on to -1, the initial states', by a product that the caller
    // makes of the following step's gradients of gates (zeros at first) and the weight; or null.
    const Accumulator<T>* from_following;  // (N, H)
    T* step_gates;                         // (N, G H): the step's gradients of gates; or null
    int64_t step;
};

// The plan of a kernel that stays for the whole sequence on a device, or why it does not fit.
RecurrenceChoice staying_plan(const RecurrenceShape& shape, int64_t element_bytes, Pass pass,
                              RecurrenceKernel kernel, int device);

// These raise std::invalid_argument where the kernel asked for does not fit.
template <class T>
int64_t scratch_bytes(const RecurrenceShape& shape, Pass pass, RecurrenceKernel kernel, int device);
template <class T>
void recurrence_forward(const RecurrenceForward<T>& call, RecurrenceKernel kernel,
                        const Where& where);
template <class T>
void recurrence_backward(const RecurrenceBackward<T>& call, RecurrenceKernel kernel,
                         const Where& where);

}  // namespace seqkernels::cuda
