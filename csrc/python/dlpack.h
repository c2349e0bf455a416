// The part of DLPack's binary interface that is used here (https://dmlc.github.io/dlpack,
// version 1.x).
#pragma once

#include <cstdint>

namespace seqkernels::dlpack {

struct Device {
    int32_t type;
    int32_t index;
};
constexpr int32_t cpu_device = 1;
constexpr int32_t cuda_device = 2;

struct ElementType {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
};
constexpr uint8_t integer_code = 0;
constexpr uint8_t floating_code = 2;
constexpr uint8_t brain_floating_code = 4;

struct Tensor {
    void* data;
    Device device;
    int32_t dimensions;
    ElementType dtype;
    int64_t* shape;
    int64_t* strides;
    uint64_t byte_offset;
};

struct ExchangeHeader {
    uint32_t major;
    uint32_t minor;
    ExchangeHeader* previous;
};

// The table of functions behind the capsule "dlpack_exchange_api". Only the borrowing of a view is
// called; the others keep its place.
struct ExchangeApi {
    ExchangeHeader header;
    void (*managed_tensor_allocator)();
    void (*managed_tensor_from_object)();
    void (*managed_tensor_to_object)();
    int (*tensor_from_object)(void* object, Tensor* out);  // may be null; -1: a Python error is set
    void (*current_work_stream)();
};

}  // namespace seqkernels::dlpack
