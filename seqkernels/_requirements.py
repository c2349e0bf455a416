"""What the package needs of the environment, said in one sentence where it is missing."""

from __future__ import annotations

OLDEST_TORCH = (2, 10)


def require_torch() -> None:
    """Raise ImportError unless a torch of at least version 2.10 can be imported."""
    oldest = ".".join(map(str, OLDEST_TORCH))
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f"seqkernels needs PyTorch {oldest} or newer, which is not installed: "
            "see https://pytorch.org/get-started/locally for the build that fits this machine."
        ) from None
    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if found < OLDEST_TORCH:
        raise ImportError(
            f"seqkernels needs PyTorch {oldest} or newer, and found {torch.__version__}."
        )
