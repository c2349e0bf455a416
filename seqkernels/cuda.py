"""Which CUDA kernels there are, and which are in use.

The native module is loaded when the first tensor on a GPU meets an operation that it has.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import threading
import types
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks

KERNELS = ("simple", "fast")
_STAYING = ("cluster", "persistent")
RECURRENCES = ("fastest", *_STAYING, "steps")
OPERATIONS = frozenset(("conv1d_max_pool", "lstm", "rnn", "lstm_cell", "rnn_cell"))
LEAST_CAPABILITY = 8

_IS_BUILT = importlib.util.find_spec("seqkernels._cuda") is not None
_switching = threading.RLock()
_in_use = types.SimpleNamespace(kernels="fast", recurrence="fastest")


def is_built() -> bool:
    """Whether this installation has CUDA kernels."""
    return _IS_BUILT


def is_available() -> bool:
    """Whether there are CUDA kernels and a GPU to run them on."""
    return _IS_BUILT and torch.cuda.is_available()


def architectures() -> list[str]:
    """What the kernels were compiled for, as "sm_90a" (machine code) or "compute_90" (PTX).

    Raises:
        RuntimeError: this installation has no CUDA kernels.
    """
    return _native().architectures.split()


def use_kernels(name: str) -> contextlib.AbstractContextManager[None]:
    """Use another set of CUDA kernels within a ``with`` block.

    "fast", the default, computes convolutions in tiles, on the matrix units where the dtype allows
    it, and so the gradients of small pools, those of large ones from the winning windows alone; and
    recurrences as ``use_recurrence`` says; "simple" as the definitions read. float64 is always
    "simple". The choice is the whole process's, as ``seqkernels.cpu.use_isa``'s is.

    Raises:
        ValueError: an unknown name.
    """
    return _using("kernels", name, KERNELS)


def use_recurrence(name: str) -> contextlib.AbstractContextManager[None]:
    """Compute recurrences another way within a ``with`` block, the "fast" kernels being in use.

    "fastest", the default: the first of these that fits the shape and the GPU.

    - "cluster": a kernel stays for the whole sequence, the blocks of a cluster exchange states
      through their shared memory.
    - "persistent": a kernel stays, its blocks exchange states through global memory.
    - "steps": a product of torch's and a kernel for every step. float64 is then "simple".

    A recurrence that the named kernel does not fit raises ValueError within the block, which says
    what it expected (``explain_recurrence`` tells beforehand): the forward or, where only that does
    not fit, the backward, which is computed as is chosen when it runs. "cluster" and "persistent"
    fit sequences of 2 steps or more, so no cells. What other kernels than these compute is left as
    it is: layers under autocast and of float64, and derivatives of derivatives. The choice is the
    whole process's.

    Raises:
        ValueError: an unknown name.
    """
    return _using("recurrence", name, RECURRENCES)


@contextlib.contextmanager
def _using(what: str, name: str, names: Sequence[str]) -> Iterator[None]:
    """Use a set of kernels, or a way of recurrences, within a ``with`` block."""
    checks.one_of("name", name, names)
    with _switching:
        before = getattr(_in_use, what)
        setattr(_in_use, what, name)
        try:
            yield
        finally:
            setattr(_in_use, what, before)


def explain_recurrence(
    cell: str,
    steps: int,
    batch: int,
    hidden: int,
    dtype: torch.dtype,
    device: torch.device | str | int = "cuda",
) -> dict[str, dict[str, str]]:
    """Which kernel of this package computes a recurrence on a GPU by default, and how.

    Args:
        cell: "lstm", "rnn_tanh" or "rnn_relu".
        steps, batch, hidden: T, N and H of one layer and direction.
        dtype: of states and weights.
        device: the GPU.

    Returns:
        For "forward" and "backward" each: under "kernel" the name as ``use_recurrence`` and
        ``use_kernels`` know it; under "cluster" and "persistent" how that kernel would cut the work
        (parts of the batch x blocks of hidden units, products of a block x their samples), or what
        it expected and what it got. The layers of ``seqkernels.nn`` may yet be cuDNN's, where that
        is ahead.

    Raises:
        TypeError: a size that is no integer.
        ValueError: an unknown cell, a dtype that no kernel has, or sizes that overflow 64 bits.
        RuntimeError: a size below 0, a device without kernels, or an installation without them.
    """
    checks.one_of("cell", cell, checks.CELLS)
    checks.one_of("dtype", dtype, checks.NATIVE_DTYPES)
    sizes = checks.recurrence_sizes(steps=steps, batch=batch, hidden=hidden)
    _native()  # or raises
    device = torch.device(device)
    is_there = device.type != "cuda" or torch.cuda.is_available()
    tensor = torch.empty(0, device=device) if is_there else None
    if tensor is None or not is_on_device(tensor) or (tensor.is_cuda and not _is_served(tensor)):
        raise RuntimeError(
            f"device: expected a GPU of compute capability {LEAST_CAPABILITY}.0 or more, "
            f"got {device}"
        )
    result = {}
    for direction in ("forward", "backward"):
        call = (cell, *sizes, dtype.itemsize, direction == "forward")
        plans = {way: _plan(*call, way, tensor) for way in _STAYING}
        fitting = [way for way in _STAYING if not plans[way].refusal]
        in_steps = dtype != torch.float64 and 0 not in sizes
        kernel = fitting[0] if fitting else "steps" if in_steps else "simple"
        texts = {way: plan.refusal or plan.description() for way, plan in plans.items()}
        result[direction] = {"kernel": kernel} | texts
    return result


def has_kernel(operation: str, input: Tensor) -> bool:
    """Whether an operation has kernels for the GPU that ``input`` is on."""
    return (
        _IS_BUILT
        and operation in OPERATIONS
        and input.is_cuda
        and torch.cuda.is_available()  # a tensor may be a fake one
        and _is_served(input)
    )


def _is_served(tensor: Tensor) -> bool:
    return torch.cuda.get_device_properties(tensor.device).major >= LEAST_CAPABILITY


def is_ahead_of_cudnn(
    cell: str, input: Tensor, steps: int, batch: int, hidden: int, is_ragged: bool
) -> bool:
    """Whether a recurrent layer is computed sooner by these kernels than by cuDNN's.

    As measured on an H200, for which ``bench/records`` has the figures (of other GPUs nothing is
    known): in bfloat16 and float32 wherever a kernel stays for the whole sequence and makes at most
    two products a step. In float16, for which cuDNN has such a kernel too, but not for ragged
    batches, an LSTM of up to 256 units. With other kernels than the default chosen it is they that
    compute.
    """
    if (_in_use.kernels, _in_use.recurrence) != ("fast", "fastest"):
        return True
    if torch.compiler.is_compiling():  # which cannot ask the native module
        return False
    if torch.cuda.get_device_capability(input.device) != (9, 0):
        return False
    is_small = cell == "lstm" and hidden <= 256
    if input.dtype == torch.float16 and not (is_small or is_ragged):
        return False
    return all(1 <= _rounds(cell, input, steps, batch, hidden, way) <= 2 for way in (True, False))


def _rounds(cell: str, tensor: Tensor, steps: int, batch: int, hidden: int, forward: bool) -> int:
    """Products of a step of a kernel that stays for a whole sequence, 0 where none fits."""
    sizes = (steps, batch, hidden, tensor.dtype.itemsize)
    return _plan(cell, *sizes, forward, "fastest", tensor).rounds


class _Plan(NamedTuple):
    """How a kernel that stays for a whole sequence cuts a recurrence, or why it does not fit."""

    refusal: str  # "expected ..., got ..."; empty where it fits, and the numbers are not 0
    slices: int
    blocks: int
    units: int
    rounds: int
    samples: int

    def description(self) -> str:
        return (
            f"{self.slices} x {self.blocks} blocks of {self.units} units, "
            f"{self.rounds} x {self.samples} samples a step"
        )


def _plan(*arguments) -> _Plan:
    """The native module's plan, asked for with its arguments and, last, a tensor on the device."""
    *call, tensor = arguments
    return _Plan(*_call("recurrence_plan", tensor, *call, tensor.get_device()))


def takes_products_of_steps(cell: str, states: Tensor, steps: int, forward: bool) -> bool:
    """Whether a recurrence of (N, H) states goes a step at a time, by products of torch's.

    Where no kernel stays for the whole sequence: for single steps and large sizes. float64, and all
    by the "simple" kernels, is computed by the definition.
    """
    if _in_use.kernels == "simple" or states.dtype == torch.float64 or 0 in (steps, states.numel()):
        return False
    if _in_use.recurrence != "fastest":
        return _in_use.recurrence == "steps"
    return _rounds(cell, states, steps, *states.shape, forward) == 0


def _recurrence_kernel() -> str:
    """The kernel that computes a whole recurrence, as the native module names it."""
    if _in_use.kernels == "simple" or _in_use.recurrence == "steps":
        return "simple"
    return _in_use.recurrence


def is_on_device(input: Tensor) -> bool:
    """Whether the operations take ``input`` to the CUDA module."""
    return input.is_cuda


def conv1d_max_pool_forward(input, weight, *arguments) -> None:
    """The native forward; arguments up to the activation as the CPU module's."""
    geometry = arguments[-2]
    kernels = _in_use.kernels
    count = _native().conv1d_max_pool_forward_scratch(input, weight, geometry, kernels)
    where = _where(input, count, kernels)
    _call("conv1d_max_pool_forward", input, input, weight, *arguments, where)


def conv1d_max_pool_backward(*arguments) -> None:
    """The native backward; arguments up to the activation as the CPU module's."""
    input, weight, geometry = arguments[3], arguments[4], arguments[-2]
    kernels = _in_use.kernels
    count = _native().conv1d_max_pool_backward_scratch(input, weight, geometry, kernels)
    _call("conv1d_max_pool_backward", input, *arguments, _where(input, count, kernels))


def recurrence_forward(
    cell, reverse, projections, initial_hidden, *tensors, recurrent=None, step=0
) -> None:
    """The native forward over projected inputs, (T, N, G H), or a step by its product."""
    kernel, count = "simple", 0
    if recurrent is None:
        kernel = _recurrence_kernel()
        count = _native().recurrence_scratch(cell, len(projections), initial_hidden, True, kernel)
    arguments = (cell, reverse, projections, initial_hidden, *tensors, recurrent, step)
    _call("recurrence_forward", projections, *arguments, _where(projections, count, kernel))


def recurrence_backward(
    cell, reverse, grad_gates, *tensors, from_following=None, step_gates=None, step=0
) -> None:
    """The native backward, up to the gates' gradients, which it fills; last an LSTM's cell's."""
    kernel, count, grad_hidden = "simple", 0, tensors[-2]
    if from_following is None:
        kernel = _recurrence_kernel()
        count = _native().recurrence_scratch(cell, len(grad_gates), grad_hidden, False, kernel)
    arguments = (cell, reverse, grad_gates, *tensors, from_following, step_gates, step)
    _call("recurrence_backward", grad_gates, *arguments, _where(grad_gates, count, kernel))


def _call(name: str, tensor: Tensor, *arguments):
    """Call the native module with the tensor's device as the current one."""
    index = tensor.get_device()
    if index >= 0 and index != torch.cuda.current_device():
        with torch.cuda.device(index):
            return getattr(_native(), name)(*arguments)
    return getattr(_native(), name)(*arguments)


@functools.lru_cache(maxsize=1)
def _native():
    if not _IS_BUILT:
        raise RuntimeError("seqkernels: this installation has no CUDA kernels")
    return importlib.import_module("seqkernels._cuda")


def _where(tensor: Tensor, scratch_bytes: int, kernels: str) -> tuple:
    """Stream, scratch memory, which kernels, and whether float32 may be rounded to TF32."""
    scratch = tensor.new_empty(scratch_bytes // 8, dtype=torch.int64) if scratch_bytes else None
    tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"
    return _stream(tensor), scratch, kernels, tf32


def _stream(tensor: Tensor) -> int:
    """torch's current stream, as an address."""
    return torch._C._cuda_getCurrentRawStream(tensor.get_device())
