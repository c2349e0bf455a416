"""Convolution over time with max pooling, and Kim's bank of several filter lengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import checks, functional
from .parameters import named


class Conv1dMaxPool(nn.Conv1d):
    """``max_pool(activation(nn.Conv1d(...)(input)))`` as one layer.

    Weight (out_channels, in_channels, kernel_size) and bias (out_channels,) have the names, the
    initialisation and the state_dict of ``torch.nn.Conv1d``, the arguments too; groups and other
    padding modes than zeros are left out.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias: as in
            ``torch.nn.Conv1d``; padding is an int, "same" or "valid".
        activation: "identity", "relu", "tanh" or "sigmoid".
        pool_size: windows to a pooled position; None pools over all time.
        pool_stride: distance of one pooled position from the next; None means ``pool_size``.
        channels_last: input is (N, L, C), as an embedding's output is, and not (N, C, L).
        device, dtype: of the parameters.

    Raises:
        ValueError: an unknown activation or padding; "same" with a stride other than 1;
            ``pool_stride`` without ``pool_size``.
        RuntimeError: ``pool_size`` or ``pool_stride`` below 1; and at the first call, as
            in torch: a stride, dilation or padding below its least value.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | str = 0,
        dilation: int = 1,
        bias: bool = True,
        *,
        activation: str = "identity",
        pool_size: int | None = None,
        pool_stride: int | None = None,
        channels_last: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.one_of("activation", activation, checks.ACTIVATIONS)
        checks.pooling(pool_size, pool_stride)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.activation = activation
        self.pool_size = pool_size
        self.pool_stride = pool_stride
        self.channels_last = channels_last

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The pooled maxima; shapes, lengths and errors as in ``functional.conv1d_max_pool``.

        (N, out_channels) if ``pool_size`` is None; otherwise (N, out_channels, L_pooled), with
        ``channels_last`` (N, L_pooled, out_channels).
        """
        return functional.conv1d_max_pool(
            input,
            *named(self, ("weight", "bias")),
            self.stride,
            self.padding,
            self.dilation,
            activation=self.activation,
            pool_size=self.pool_size,
            pool_stride=self.pool_stride,
            lengths=lengths,
            channels_last=self.channels_last,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.activation != "identity":
            text += f", activation={self.activation}"
        if self.pool_size is not None:
            text += f", pool_size={self.pool_size}"
        if self.pool_stride is not None:
            text += f", pool_stride={self.pool_stride}"
        if self.channels_last:
            text += ", channels_last=True"
        return text


class Conv1dMaxPoolBank(nn.Module):
    """Filters of several lengths side by side, each pooled over all time, concatenated.

    Kim, "Convolutional Neural Networks for Sentence Classification" (arXiv 1408.5882, 2014). The
    layers, one ``Conv1dMaxPool`` for each of ``kernel_sizes``, are named "0", "1", ...: the
    state_dict is that of ``nn.ModuleList([nn.Conv1d(in_channels, out_channels, k), ...])``.

    Args:
        in_channels: channels of the input, C.
        out_channels: filters of each length.
        kernel_sizes: the filter lengths, one at least.
        stride, padding, dilation, bias, activation, channels_last, device, dtype: of every layer,
            as in ``Conv1dMaxPool``.

    Raises:
        ValueError: no kernel size; and what ``Conv1dMaxPool`` raises.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Sequence[int],
        stride: int = 1,
        padding: int | str = 0,
        dilation: int = 1,
        bias: bool = True,
        *,
        activation: str = "identity",
        channels_last: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kernel_sizes = tuple(kernel_sizes)
        if not self.kernel_sizes:
            raise ValueError("kernel_sizes: expected at least one filter length, got none")
        for index, kernel_size in enumerate(self.kernel_sizes):
            layer = Conv1dMaxPool(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                dilation,
                bias,
                activation=activation,
                channels_last=channels_last,
                device=device,
                dtype=dtype,
            )
            self.add_module(str(index), layer)

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(N, len(kernel_sizes) * out_channels), in the order of ``kernel_sizes``.

        input and lengths are those of ``functional.conv1d_max_pool``; without a batch the result
        has no N. A sample too short for a filter yields 0 for that filter.

        The layers are called one by one only where that is more than their parameters tell: where
        one has hooks, or is called otherwise than the others. Else ``conv1d_max_pool_bank`` is.
        """
        layers = list(self.children())
        is_eager = isinstance(input, Tensor) and not torch.compiler.is_compiling()
        if not is_eager or not _are_alike(layers):
            return torch.cat([layer(input, lengths) for layer in layers], dim=-1)
        weights, biases = zip(*(named(layer, ("weight", "bias")) for layer in layers), strict=True)
        first = layers[0]
        return functional.conv1d_max_pool_bank(
            input,
            weights,
            biases,
            first.stride,
            first.padding,
            first.dilation,
            activation=first.activation,
            lengths=lengths,
            channels_last=first.channels_last,
        )


def _are_alike(layers: list[nn.Module]) -> bool:
    """Whether one function computes all layers: what they are called with but their parameters is
    the same, and nothing hangs on the call of any (a hook, a subclass's forward)."""
    calls = [_call_of(layer) for layer in layers]
    if not calls or calls[0] is None or any(call != calls[0] for call in calls):
        return False
    return not nn.modules.module._has_any_global_hook()


def _call_of(layer: nn.Module) -> tuple | None:
    """What a layer's function is called with besides parameters; None where a call does more."""
    hooks = (
        layer._forward_pre_hooks,
        layer._forward_hooks,
        layer._backward_pre_hooks,
        layer._backward_hooks,
    )
    if type(layer) is not Conv1dMaxPool or any(hooks) or "forward" in layer.__dict__:
        return None
    if layer._compiled_call_impl is not None:
        return None
    if layer.pool_size is not None or layer.pool_stride is not None:
        return None
    return (layer.stride, layer.padding, layer.dilation, layer.activation, layer.channels_last)
