#include "plain.h"

#include "module.h"

namespace seqkernels {
namespace {

namespace py = pybind11;

// What is known of torch, held for as long as the process lives; null before it was handed over,
// when nothing is plain.
struct Torch {
    PyTypeObject* tensor = nullptr;
    PyTypeObject* parameter = nullptr;
    PyObject* is_neg = nullptr;            // the method of the type
    PyObject* disguises = nullptr;         // a tuple of functions, each of which a tensor may be
    PyObject* requires_grad = nullptr;     // the attribute's name
    PyObject* modes = nullptr;             // a tuple of functions: each says something false if off
    PyObject* forward_gradient = nullptr;  // the module that has the level of forward mode
    PyObject* forward_level = nullptr;     // its name there, negative if off
    PyObject* is_grad_enabled = nullptr;
    PyObject* empty_like = nullptr;
    PyObject* thread_count = nullptr;
};

Torch& torch() {
    static Torch known;
    return known;
}

py::object checked(PyObject* result) {
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

py::object call(PyObject* function) { return checked(PyObject_CallNoArgs(function)); }

bool is_true(const py::object& answer) {
    const int result = PyObject_IsTrue(answer.ptr());
    if (result < 0) throw py::error_already_set();
    return result == 1;
}

bool asked(PyObject* question, PyObject* tensor) {
    return is_true(checked(PyObject_Vectorcall(question, &tensor, 1, nullptr)));
}

bool is_plain_tensor(PyObject* tensor, bool without_gradient) {
    const Torch& known = torch();
    if (asked(known.is_neg, tensor)) return false;
    return !without_gradient || !is_true(checked(PyObject_GetAttr(tensor, known.requires_grad)));
}

bool is_in_disguise(PyObject* tensor) {
    for (const py::handle question : py::reinterpret_borrow<py::tuple>(torch().disguises)) {
        if (asked(question.ptr(), tensor)) return true;
    }
    return false;
}

bool is_any_mode_on() {
    for (const py::handle mode : py::reinterpret_borrow<py::tuple>(torch().modes)) {
        if (is_true(call(mode.ptr()))) return true;
    }
    return false;
}

void bind_torch(const py::type& tensor, const py::type& parameter, py::tuple disguises,
                py::tuple modes, py::object forward_gradient, py::object is_grad_enabled,
                py::object empty_like, py::object thread_count) {
    Torch& known = torch();
    known.tensor = reinterpret_cast<PyTypeObject*>(py::type(tensor).release().ptr());
    known.parameter = reinterpret_cast<PyTypeObject*>(py::type(parameter).release().ptr());
    known.is_neg = py::object(tensor.attr("is_neg")).release().ptr();
    known.disguises = disguises.release().ptr();
    known.requires_grad = PyUnicode_InternFromString("requires_grad");
    known.modes = modes.release().ptr();
    known.forward_gradient = forward_gradient.release().ptr();
    known.forward_level = PyUnicode_InternFromString("_current_level");
    known.is_grad_enabled = is_grad_enabled.release().ptr();
    known.empty_like = empty_like.release().ptr();
    known.thread_count = thread_count.release().ptr();
}

}  // namespace

bool are_plain(PyObject* const* arguments, Py_ssize_t count, PyObject* others,
               bool without_gradient) {
    const Torch& known = torch();
    if (known.tensor == nullptr) return false;
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyTypeObject* type = Py_TYPE(arguments[i]);
        if (type == known.tensor || type == known.parameter) {
            if (!is_plain_tensor(arguments[i], without_gradient)) return false;
            if (others != nullptr && is_in_disguise(arguments[i])) return false;
        } else if (others == nullptr) {
            if (arguments[i] != Py_None) return false;
        } else {
            const int is_named = PySet_Contains(others, reinterpret_cast<PyObject*>(type));
            if (is_named < 0) throw py::error_already_set();
            if (is_named == 0) return false;
        }
    }
    return !is_any_mode_on();
}

bool need_only_kernel(PyObject* const* tensors, Py_ssize_t count) {
    const Torch& known = torch();
    if (known.tensor == nullptr) return false;
    const py::object level = checked(PyObject_GetAttr(known.forward_gradient, known.forward_level));
    if (level.cast<int>() >= 0) return false;
    return are_plain(tensors, count, nullptr, is_true(call(known.is_grad_enabled)));
}

py::object empty_like(py::handle tensor) {
    PyObject* argument = tensor.ptr();
    return checked(PyObject_Vectorcall(torch().empty_like, &argument, 1, nullptr));
}

int thread_count() { return call(torch().thread_count).cast<int>(); }

void define_plain(py::module_& module) {
    const auto items = [](const py::tuple& tuple) { return PySequence_Fast_ITEMS(tuple.ptr()); };
    module.def("bind_torch", &bind_torch);
    module.def("is_plain", [items](const py::tuple& arguments, const py::frozenset& others) {
        return are_plain(items(arguments), PyTuple_GET_SIZE(arguments.ptr()), others.ptr(), false);
    });
    module.def("needs_only_kernel", [items](const py::tuple& tensors) {
        return need_only_kernel(items(tensors), PyTuple_GET_SIZE(tensors.ptr()));
    });
}

}  // namespace seqkernels
