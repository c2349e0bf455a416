"""Calls of every CUDA kernel on small shapes, for NVIDIA's checkers to watch.

Each tensor has memory of its own: the caching allocator would hide what goes beyond one.
"""

from __future__ import annotations

import os
import pathlib
import sys

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]

import torch  # noqa: E402

import convolutions  # noqa: E402
import gpu  # noqa: E402
import recurrences  # noqa: E402
from seqkernels import cuda, functional  # noqa: E402

SHAPES = (
    ((2, 40, 33, 20, 3), {"padding": 1}),
    ((2, 13, 33, 20, 3), {"dilation": 2, "stride": 2}),
    ((1, 72, 300, 70, 2), {}),
    ((5, 24, 150, 130, 2), {"padding": 1}),
    ((3, 24, 70, 20, 3), {"pool_size": 3, "pool_stride": 2}),
    ((2, 40, 70, 40, 3), {"pool_size": 2}),  # dense gradients
    ((1, 8, 200, 20, 3), {"pool_size": 90, "pool_stride": 40}),
)


# Kinds, T, N, I, H.
RECURRENCES = (
    ("lstm", (4, 5, 6, 20)),
    ("lstm", (3, 40, 6, 33)),
    ("rnn_tanh", (4, 20, 6, 50)),
    ("lstm", (70, 9, 6, 40)),  # the exchange's slots twice
    ("lstm", (3, 9, 6, 300)),  # beyond a cluster
)


def run_recurrences(name: str) -> None:
    for kind, sizes in RECURRENCES:
        for dtype in functional.NATIVE_DTYPES:
            for reverse in (False, True):
                arguments = recurrences.converted(recurrences.tensors(kind, sizes), dtype)
                arguments["lengths"] = torch.arange(sizes[1]) % (sizes[0] + 1)
                for way in ways(kind, sizes, dtype) if name == "fast" else ("fastest",):
                    with gpu.kernels(name, None), cuda.use_recurrence(way):
                        more = {"reverse": reverse}
                        recurrences.gradients(recurrences.run, kind, arguments | more)


def ways(kind: str, sizes: tuple[int, int, int, int], dtype: torch.dtype) -> list[str]:
    """Those that compute a recurrence of these sizes, forward and backward."""
    steps, batch, _, hidden = sizes
    plans = cuda.explain_recurrence(kind, steps, batch, hidden, dtype).values()
    return [
        way
        for way in cuda.RECURRENCES
        if not any(plan.get(way, "").startswith("expected") for plan in plans)
    ]


def main() -> None:
    assert cuda.is_available(), "no GPU"
    for name in cuda.KERNELS:
        run_recurrences(name)
        for precision in ("ieee", "tf32"):
            for sizes, keywords in SHAPES:
                for dtype in functional.NATIVE_DTYPES:
                    for channels_last in (False, True):
                        arguments = convolutions.converted(convolutions.tensors(sizes), dtype)
                        arguments = convolutions.laid_out(arguments, channels_last) | keywords
                        arguments["lengths"] = torch.arange(sizes[2], sizes[2] - sizes[0], -1)
                        with gpu.kernels(name, None), gpu.float32_products(precision):
                            convolutions.gradients(functional.conv1d_max_pool, arguments)
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
