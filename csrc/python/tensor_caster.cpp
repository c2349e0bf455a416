#include "tensor_caster.h"

#include <string>
#include <unordered_map>

#include "dlpack.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

const dlpack::ExchangeApi* find_exchange_api(PyTypeObject* type) {
    const py::handle type_object(reinterpret_cast<PyObject*>(type));
    if (!py::hasattr(type_object, "__dlpack_c_exchange_api__")) return nullptr;
    const py::object capsule = type_object.attr("__dlpack_c_exchange_api__");
    auto* header = static_cast<dlpack::ExchangeHeader*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (header == nullptr) throw py::error_already_set();
    while (header != nullptr && header->major != 1) header = header->previous;
    return reinterpret_cast<const dlpack::ExchangeApi*>(header);
}

// Looked up once a type, which is kept alive so that its address stays its own.
const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
    static auto& known = *new std::unordered_map<PyTypeObject*, const dlpack::ExchangeApi*>();
    const auto found = known.find(type);
    if (found != known.end()) return found->second;
    const dlpack::ExchangeApi* api = find_exchange_api(type);
    Py_INCREF(reinterpret_cast<PyObject*>(type));
    known.emplace(type, api);
    return api;
}

DataType data_type(const dlpack::ElementType& type) {
    if (type.lanes == 1) {
        if (type.code == dlpack::floating_code && type.bits == 32) return DataType::float32;
        if (type.code == dlpack::floating_code && type.bits == 64) return DataType::float64;
        if (type.code == dlpack::floating_code && type.bits == 16) return DataType::float16;
        if (type.code == dlpack::brain_floating_code && type.bits == 16) return DataType::bfloat16;
        if (type.code == dlpack::integer_code && type.bits == 32) return DataType::int32;
        if (type.code == dlpack::integer_code && type.bits == 64) return DataType::int64;
    }
    throw py::value_error(
        "tensor: expected float32, float64, bfloat16, float16, int32 or int64, got DLPack type "
        "code " +
        std::to_string(type.code) + " of " + std::to_string(type.bits) + " bits");
}

}  // namespace

bool view_of(py::handle object, TensorView& view) {
    const dlpack::ExchangeApi* api = exchange_api(Py_TYPE(object.ptr()));
    if (api == nullptr || api->tensor_from_object == nullptr) return false;
    dlpack::Tensor tensor;
    if (api->tensor_from_object(object.ptr(), &tensor) != 0) throw py::error_already_set();
    if (tensor.device.type != module_device_type) {
        throw py::value_error(std::string("tensor: expected one on ") + module_device_name +
                              ", got DLPack device type " + std::to_string(tensor.device.type));
    }
    if (tensor.dimensions > max_dimensions) {
        throw py::value_error("tensor: expected at most " + std::to_string(max_dimensions) +
                              " dimensions, got " + std::to_string(tensor.dimensions));
    }
    view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    view.dtype = data_type(tensor.dtype);
    view.device = tensor.device.type == dlpack::cpu_device ? -1 : tensor.device.index;
    view.dimensions = tensor.dimensions;
    bool is_empty = false;
    for (int i = 0; i < tensor.dimensions; ++i) {
        view.sizes[i] = tensor.shape[i];
        view.strides[i] = tensor.strides[i];
        is_empty = is_empty || tensor.shape[i] == 0;
    }
    // torch's "zero tensors" have sizes and no memory.
    if (tensor.data == nullptr && !is_empty) {
        throw py::value_error("tensor: expected elements in memory, got none");
    }
    return true;
}

}  // namespace seqkernels
