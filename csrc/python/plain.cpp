#include "plain.h"

#include <pybind11/stl.h>

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

bool is_tensor(PyObject* object) {
    return Py_TYPE(object) == torch().tensor || Py_TYPE(object) == torch().parameter;
}

bool requires_gradient(PyObject* tensor) {
    return is_true(checked(PyObject_GetAttr(tensor, torch().requires_grad)));
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

// Whether all arguments are plain tensors or of `others`, types, and no mode is on. Nor is plain
// what looks like a tensor but has no memory: a batch of gradients, zeros that autograd has not
// made yet, one that a transform has left behind.
bool are_plain(const py::tuple& arguments, const py::frozenset& others) {
    if (torch().tensor == nullptr) return false;
    for (const py::handle argument : arguments) {
        if (is_tensor(argument.ptr())) {
            if (asked(torch().is_neg, argument.ptr()) || is_in_disguise(argument.ptr())) {
                return false;
            }
        } else if (!others.contains(py::type::handle_of(argument))) {
            return false;
        }
    }
    return !is_any_mode_on();
}

}  // namespace

std::optional<bool> want_gradient(PyObject* const* tensors, Py_ssize_t count) {
    const Torch& known = torch();
    if (known.tensor == nullptr) return std::nullopt;
    const py::object level = checked(PyObject_GetAttr(known.forward_gradient, known.forward_level));
    if (level.cast<int>() >= 0) return std::nullopt;
    bool is_wanted = false;
    const bool is_grad_enabled = is_true(call(known.is_grad_enabled));
    for (Py_ssize_t i = 0; i < count; ++i) {
        if (tensors[i] == Py_None) continue;
        if (!is_tensor(tensors[i]) || asked(known.is_neg, tensors[i])) return std::nullopt;
        is_wanted = is_wanted || (is_grad_enabled && requires_gradient(tensors[i]));
    }
    if (is_any_mode_on()) return std::nullopt;
    return is_wanted;
}

py::object empty_like(py::handle tensor) {
    PyObject* argument = tensor.ptr();
    return checked(PyObject_Vectorcall(torch().empty_like, &argument, 1, nullptr));
}

int thread_count() { return call(torch().thread_count).cast<int>(); }

void define_plain(py::module_& module) {
    module.def("bind_torch", &bind_torch);
    module.def("are_plain", &are_plain);
    module.def("want_gradient", [](const py::tuple& tensors) {
        return want_gradient(PySequence_Fast_ITEMS(tensors.ptr()), PyTuple_GET_SIZE(tensors.ptr()));
    });
}

}  // namespace seqkernels
