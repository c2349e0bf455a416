"""What every provider has, and how torch's passes are run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..cases import Case
from ..environment import float32_switches
from ..operations import OPERATIONS, Data
from ..timing import SETTLING

Results = dict[str, Tensor]
Run = Callable[[], Results]


class Refusal(Exception):
    """Why a provider does not compute a case."""


class Provider:
    """One way to compute some of the operations.

    ``prepare`` does everything that happens once and returns ``run``: one pass over the data,
    which returns the results by name, as ``Operation.exact`` names them.
    """

    #: "family:variant", or the family alone.
    name: str
    operations: tuple[str, ...]
    #: Whether its ``run`` returns its memory between calls, so that its peak can be measured.
    frees_memory = True

    #: Seconds until its threads have gone to sleep after a call, not to disturb who is next.
    settling = SETTLING

    @property
    def family(self) -> str:
        return self.name.partition(":")[0]

    @property
    def is_ours(self) -> bool:
        return self.family == "seqkernels"

    def missing(self) -> str | None:
        """Why this machine or installation does not have it; None if it does."""
        return None

    def refuse(self, case: Case) -> None:
        """Raise ``Refusal`` for a case that it does not compute."""

    def precision_of(self, case: Case) -> str:
        """That of its float32 products, by which its results are judged."""
        return case.precision

    def settings(self, case: Case) -> contextlib.AbstractContextManager:
        """What holds while ``run`` is called: switches of its library."""
        return contextlib.nullcontext()

    def prepare(self, case: Case, data: Data) -> Run:
        raise NotImplementedError

    def converted(self, case: Case, results: Results) -> Results:
        """What ``run`` returned in torch's names and shapes, to be verified; it is not timed."""
        return results


def require_one_layer(case: Case) -> None:
    """Refuse a recurrence of several layers or directions."""
    sizes = OPERATIONS[case.operation].sizes(case)
    if sizes["layers"] != 1 or sizes["directions"] != 1:
        raise Refusal("one layer in one direction only")


def require_plain_layer(case: Case) -> None:
    """Refuse a recurrence of several layers or directions, or over sequences of unlike length."""
    require_one_layer(case)
    if OPERATIONS[case.operation].sizes(case)["lengths"] != "full":
        raise Refusal("whole sequences only")


def require_whole_pass(case: Case) -> None:
    """Refuse what no CUDA graph can be captured of alone."""
    if case.pass_name == "backward":
        raise Refusal("a graph is captured of whole passes")


def captured(run: Run) -> Run:
    """The kernels that ``run`` starts, recorded once and replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay():
        graph.replay()
        return results

    return replay


def passes(
    case: Case,
    data: Data,
    forward: Callable[[], Results],
    leaves: dict[str, Tensor],
    shapes: dict[str, tuple[int, ...]] | None = None,
) -> Run:
    """One pass of torch's autograd over ``forward``, which reads the tensors in ``leaves``.

    ``shapes`` gives a gradient the shape of its parameter where the leaf has another.
    """
    for leaf in leaves.values():
        leaf.requires_grad_(case.pass_name != "inference")
    if case.pass_name in ("inference", "forward"):
        return forward
    read = list(data.gradients)
    gradients = list(data.gradients.values())
    tensors = list(leaves.values())
    names = [f"gradient of {name}" for name in leaves]

    def named(found: tuple[Tensor, ...]) -> Results:
        results = dict(zip(names, found, strict=True))
        for name, shape in (shapes or {}).items():
            results[f"gradient of {name}"] = results[f"gradient of {name}"].reshape(shape)
        return results

    def training() -> Results:
        outputs = forward()
        found = torch.autograd.grad([outputs[name] for name in read], tensors, gradients)
        return outputs | named(found)

    if case.pass_name == "training":
        return training
    outputs = forward()
    roots = [outputs[name] for name in read]

    def backward() -> Results:
        found = torch.autograd.grad(roots, tensors, gradients, retain_graph=True)
        return outputs | named(found)

    return backward


@contextlib.contextmanager
def torch_precision(precision: str) -> Iterator[None]:
    """torch's switches for float32 products: "high" may use TensorFloat32, "medium" bfloat16.

    On CUDA, where there is nothing below TensorFloat32, "medium" is that as well.
    """
    on_cpu = {"highest": "ieee", "high": "tf32", "medium": "bf16"}[precision]
    on_cuda = "ieee" if precision == "highest" else "tf32"
    switches = float32_switches()
    before = {name: switch.fp32_precision for name, switch in switches.items()}
    for name, switch in switches.items():
        switch.fp32_precision = on_cpu if name.startswith("mkldnn") else on_cuda
    try:
        yield
    finally:
        for name, switch in switches.items():
            switch.fp32_precision = before[name]


@contextlib.contextmanager
def cudnn_chosen_by_measuring() -> Iterator[None]:
    """cuDNN tries its kernels at the first call of each shape, and keeps the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
