"""Lays images out with their channels last, as convolutions on many devices like them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..callback import Callback
from ..data.batch import convert_parts
from ..priorities import TRANSFORM
from ..submodules import tensors_of

if TYPE_CHECKING:
    from ..runner import Runner


class ChannelsLast(Callback):
    """Keeps model and inputs in ``torch.channels_last`` format during a fit.

    Values and shapes stay; only the order in memory changes. The model's
    4-dimensional parameters and buffers are converted in ``begin_fit`` and put
    back in ``after_fit`` (not those that FSDP2 has divided, which it gathers contiguous);
    inputs ``[n, channels, height, width]`` in ``begin_batch`` at ``TRANSFORM``, inside of tuples,
    lists and dicts too. Targets stay as they are.

    Other kernels add up in another order, so results agree to rounding.
    """

    priority = TRANSFORM

    def __init__(self) -> None:
        # With the strides that they had.
        self._converted: list[tuple[Tensor, tuple[int, ...]]] = []
        self._is_on = False

    def begin_fit(self, run: Runner) -> None:
        """Convert the model."""
        self._is_on = True
        self._converted = [
            (tensor, tensor.stride())
            for tensor in _tensors(run.model)
            if not _is_channels_last(tensor)
        ]
        for tensor, _ in self._converted:
            # As nn.Module.to does it: the parameter stays the one the optimizer knows.
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)

    def begin_batch(self, run: Runner) -> None:
        """Convert the input."""
        if self._is_on:
            run.xb = _converted(run.xb)

    def after_fit(self, run: Runner) -> None:
        """Put the model's format back."""
        converted, self._converted, self._is_on = self._converted, [], False
        for tensor, strides in converted:
            tensor.data = _with_strides(tensor.data, strides)


def _tensors(model: Any) -> list[Tensor]:
    own = (t for t in tensors_of(model).values() if not hasattr(t, "to_local"))
    return [tensor for tensor in own if tensor.ndim == 4]


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def _with_strides(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    contiguous = tensor.contiguous()
    # An expanded tensor has strides of 0, which nothing can be copied into.
    if contiguous.stride() == strides or 0 in strides:
        return contiguous
    shape, dtype, device = tensor.shape, tensor.dtype, tensor.device
    return torch.empty_strided(shape, strides, dtype=dtype, device=device).copy_(tensor)


def _converted(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch
    return convert_parts(batch, _converted)
