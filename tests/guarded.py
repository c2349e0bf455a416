"""Memory that a kernel cannot leave unnoticed: tensors that end, or begin, at a forbidden page.

``run_all(isa)`` is for a process of its own: one byte too far ends it with a segmentation fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator

import torch
from torch import Tensor

import convolutions
import recurrences
from seqkernels import _cpu, cpu, functional, ops
from seqkernels.ops import _convolution, _recurrence

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Where the arguments that are written begin.
FIRST_OUTPUT = {
    "conv1d_max_pool_forward": 4,
    "conv1d_max_pool_backward": 6,
    "conv1d_max_pool_bank_forward": 4,
    "conv1d_max_pool_bank_backward": 6,
    "recurrence_forward": 11,
    "recurrence_backward": 15,
}


class GuardedMemory:
    """Pages between two forbidden ones, with a tensor of numbers at their end or beginning."""

    def __init__(self, count: int, dtype: torch.dtype, at_end: bool) -> None:
        size = count * dtype.itemsize
        inside = max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE
        self.size = inside + 2 * mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.address = libc.mmap(None, self.size, 0, flags, -1, 0)
        assert self.address not in (None, ctypes.c_void_p(-1).value)
        begin = self.address + mmap.PAGESIZE
        assert libc.mprotect(begin, inside, mmap.PROT_READ | mmap.PROT_WRITE) == 0
        start = begin + (inside - size if at_end else 0)
        self.elements = torch.frombuffer((ctypes.c_char * size).from_address(start), dtype=dtype)

    def free(self) -> None:
        assert libc.munmap(self.address, self.size) == 0


class GuardedKernels:
    """The native module; every tensor handed to it is copied into guarded memory and back."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end

    def __getattr__(self, name: str):
        kernel = getattr(_cpu, name)
        first_output = FIRST_OUTPUT[name]

        def call(*arguments):
            copies: dict[int, tuple] = {}
            given = [self.copied(argument, copies) for argument in arguments]
            kernel(*given)
            written = {id(part) for part in flattened(arguments[first_output:])}
            for original, elements, memory in copies.values():
                if id(original) in written:
                    all_elements(original).copy_(elements)
                else:
                    same = torch.equal(bits(all_elements(original)), bits(elements))
                    assert same, f"{name} wrote to an input"
                memory.free()

        return call

    def copied(self, argument, copies: dict[int, tuple]):
        if isinstance(argument, (list, tuple)) and any(isinstance(x, Tensor) for x in argument):
            return [self.copied(part, copies) for part in argument]
        if not isinstance(argument, Tensor) or argument.numel() == 0:
            return argument
        if id(argument) not in copies:
            elements = all_elements(argument)
            memory = GuardedMemory(len(elements), argument.dtype, self.at_end)
            memory.elements.copy_(elements)
            copies[id(argument)] = (argument, memory.elements, memory)
        return copies[id(argument)][1].as_strided(argument.shape, argument.stride())


def flattened(arguments: tuple) -> Iterator:
    """The arguments, and in the place of a list what it holds."""
    for argument in arguments:
        yield from argument if isinstance(argument, (list, tuple)) else (argument,)


def all_elements(tensor: Tensor) -> Tensor:
    """A tensor's elements and those that its strides skip, in one dimension."""
    extents = zip(tensor.shape, tensor.stride(), strict=True)
    span = 1 + sum((size - 1) * stride for size, stride in extents)
    return tensor.detach().as_strided((span,), (1,))


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(INTEGERS[tensor.dtype.itemsize])


@contextlib.contextmanager
def guard(at_end: bool):
    _convolution._cpu = _recurrence._cpu = GuardedKernels(at_end)
    try:
        yield
    finally:
        _convolution._cpu = _recurrence._cpu = _cpu


def convolution_calls():
    """Names of calls, and functions that compute their results and gradients."""
    cases = list(convolutions.CASES.values())
    for width in convolutions.WIDTHS:
        cases.append(((2, width, 7, width, 3), {"padding": 1}))
        cases.append(((2, width, 7, 3, 2), {"pool_size": 2}))
    cases.append(((1, 64, 1100, 9, 3), {"pool_size": 90, "padding": 2}))
    for index, (sizes, keywords) in enumerate(cases):
        ragged = torch.tensor([sizes[2] - n % (sizes[2] + 1) for n in range(sizes[0])])
        for turn, dtype in enumerate(functional.NATIVE_DTYPES):
            lengths = ragged if index % 2 else None
            channels_last = index // 2 % 2 == turn % 2
            arguments = convolutions.converted(convolutions.tensors(sizes), dtype)
            arguments = convolutions.laid_out(arguments, channels_last)
            arguments |= keywords | {"lengths": lengths}
            yield (
                f"convolution {sizes} {keywords} {lengths} {channels_last} {dtype}",
                lambda arguments=arguments: [
                    functional.conv1d_max_pool(**arguments),
                    *convolutions.gradients(functional.conv1d_max_pool, arguments),
                ],
            )


def bank_calls():
    """The same of several convolutions at once."""
    for turn, width in enumerate(convolutions.WIDTHS):
        for dtype in functional.NATIVE_DTYPES:
            taps = (2, 1 + turn % 5, 4)
            x, *weights = (
                convolutions.normal(3, 9, width),
                *(
                    convolutions.normal(filters, width, k)
                    for filters, k in zip((width, 3, 17), taps, strict=True)
                ),
            )
            leaves = [
                tensor.to(dtype).requires_grad_()
                for tensor in (x, *weights, *(weight[:, 0, 0] for weight in weights))
            ]
            options = {
                "padding": turn % 3,
                "dilation": 1 + turn % 2,
                "activation": "tanh",
                "channels_last": True,
                "lengths": torch.tensor([9, 0, 6]) if turn % 2 else None,
            }

            def call(leaves=leaves, options=options) -> list[Tensor]:
                output = functional.conv1d_max_pool_bank(
                    leaves[0], leaves[1:4], leaves[4:], **options
                )
                with torch.no_grad():
                    functional.conv1d_max_pool_bank(leaves[0], leaves[1:4], leaves[4:], **options)
                return [output, *torch.autograd.grad(output, leaves, torch.ones_like(output))]

            yield f"bank {width} {taps} {dtype} {options}", call


def recurrence_calls():
    """The same of recurrences; lengths, reading order and layouts take turns."""
    cases = [sizes for sizes in recurrences.SIZES.values() if max(sizes) < 200]
    for width in recurrences.WIDTHS:
        cases += [(2, 3, width, width), (1, 7, width, width)]
    cases.append((3, 2, 540, recurrences.UNITS_BEYOND_CACHES["lstm"]))
    turn = 0
    for steps, batch, inputs, hidden in cases:
        for kind in recurrences.KINDS:
            for dtype in functional.NATIVE_DTYPES:
                turn += 1
                arguments = recurrences.tensors(kind, (steps, batch, inputs, hidden))
                arguments = recurrences.converted(arguments, dtype)
                arguments["lengths"] = torch.arange(batch) % (steps + 1) if turn % 3 else None
                arguments["reverse"] = turn % 4 == 1
                if kind == "lstm":
                    arguments["recompute"] = turn % 7 == 0
                if turn % 5 < 2:  # a batch_first layer's
                    transposed = arguments["input"].transpose(0, 1).contiguous()
                    arguments["input"] = transposed.transpose(0, 1)
                if turn % 6 == 5 and steps > 0 and batch > 0:
                    arguments["lengths"] = (steps - torch.arange(batch)).clamp(min=1)
                    arguments, _ = recurrences.packed(arguments)
                if turn % 5 == 2:  # weights whose rows are not contiguous
                    arguments["w_hh"] = arguments["w_hh"].T.contiguous().T
                yield (
                    f"{kind} {(steps, batch, inputs, hidden)} {dtype} turn {turn}",
                    lambda kind=kind, arguments=arguments: [
                        *recurrences.run(kind, arguments),
                        *recurrences.gradients(recurrences.run, kind, arguments),
                    ],
                )


def run_nonsense_argmax() -> None:
    """The backward pass with windows that no forward pass chose."""
    generator = torch.Generator().manual_seed(0)
    geometry = (3, 2, 2, 2, 4, 3)
    for dtype in functional.NATIVE_DTYPES:
        for lowest, highest in ((-(2**31), 2**31), (-20, 40)):
            input = torch.randn(3, 50, 5, dtype=dtype)
            shape = (3, 5, 7)
            argmax = torch.randint(lowest, highest, shape, generator=generator, dtype=torch.int32)
            grad_input, grad_weight, grad_bias = ops.conv1d_max_pool_backward(
                torch.ones(shape, dtype=dtype),
                torch.ones(shape, dtype=dtype),
                argmax,
                input,
                torch.ones(7, 5, 4, dtype=dtype),
                torch.tensor([50, 31, 0]),
                geometry,
                "identity",
                True,
                [True] * 3,
            )
            assert grad_input.isfinite().all() and grad_weight.isfinite().all()
            windows = torch.tensor([16, 10, 0]).view(3, 1, 1)
            first = 3 * torch.arange(5).view(1, 5, 1)
            own = (argmax >= first) & (argmax < first + 4) & (argmax < windows)
            assert torch.equal(grad_bias, own.sum((0, 1)).to(dtype))
            over_time = (3, 2, 2, 2, 0, 0)
            grad_input, *grad_weights, _, grad_bias = ops.conv1d_max_pool_bank_backward(
                torch.ones(3, 35, dtype=dtype),
                torch.ones(3, 35, dtype=dtype),
                argmax.flatten(),
                input,
                [torch.ones(28, 5, 4, dtype=dtype), torch.ones(7, 5, 4, dtype=dtype)],
                torch.tensor([50, 31, 0]),
                [over_time, over_time],
                "identity",
                [True] * 5,
            )
            assert all(part.isfinite().all() for part in (grad_input, *grad_weights))
            parts = [part.view(3, -1) for part in argmax.flatten().split([3 * 28, 3 * 7])]
            won = [(part >= 0) & (part < windows.view(3, 1)) for part in parts]
            assert torch.equal(grad_bias, won[1].sum(0).to(dtype))
            # Of ones, every winner gives each tap within its sample one, for each channel.
            taps = sum(part.sum() for part in won)
            assert 0 <= grad_input.double().sum() <= taps * 4 * 5
            # Of many short samples the weights' gradient is summed over copies of positions.
            shape = (17, 40)
            argmax = torch.randint(lowest, highest, shape, generator=generator, dtype=torch.int32)
            _, grad_weight, grad_bias = ops.conv1d_max_pool_backward(
                torch.ones(shape, dtype=dtype),
                torch.ones(shape, dtype=dtype),
                argmax,
                torch.ones(17, 9, 5, dtype=dtype),
                torch.ones(40, 5, 4, dtype=dtype),
                None,
                (1, 0, 0, 1, 0, 0),
                "identity",
                True,
                [True] * 3,
            )
            wins = ((argmax >= 0) & (argmax < 6)).sum(0).to(dtype)
            assert torch.equal(grad_bias, wins)
            assert torch.equal(grad_weight, wins.view(40, 1, 1).expand(40, 5, 4))


def run_all(isa: str) -> None:
    """Every call gives the same bits in guarded memory; prints each call before it runs."""
    calls = [*convolution_calls(), *bank_calls(), *recurrence_calls()]
    of_float = [call for call in calls if str(torch.float32) in call[0]]
    with cpu.use_isa(isa):
        for threads, precision, chosen in (
            (1, "highest", calls),
            (2, "highest", calls[::9]),
            (1, "medium", of_float[::2]),
            (1, "high", of_float[1::4]),
        ):
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            for name, call in chosen:
                print(threads, precision, name, flush=True)
                expected = call()
                for at_end in (True, False):
                    with guard(at_end):
                        found = call()
                    assert all(map(torch.equal, found, expected))
        torch.set_float32_matmul_precision("highest")
        for at_end in (True, False):
            print("nonsense argmax", flush=True)
            with guard(at_end):
                run_nonsense_argmax()
        print("done")
