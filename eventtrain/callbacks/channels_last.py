"""Lays images out with their channels last, as convolutions on many devices like them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..callback import Callback
from ..priorities import TRANSFORM
from ..submodules import tensors_of

if TYPE_CHECKING:
    from ..runner import Runner


class ChannelsLast(Callback):
    """Keeps model and inputs in ``torch.channels_last`` format during a fit.

    Values and shapes stay; only the order in memory changes. The model's
    4-dimensional parameters and buffers are converted in ``begin_fit`` and put
    back in ``after_fit``; inputs ``[n, channels, height, width]`` in
    ``begin_batch`` at ``TRANSFORM``, inside of tuples, lists and dicts too.
    Targets stay as they are.

    Other kernels add up in another order, so results agree to rounding.
    """

    priority = TRANSFORM

    def __init__(self) -> None:
        self._converted: list[Tensor] = []
        self._is_on = False

    def begin_fit(self, run: Runner) -> None:
        """Convert the model."""
        self._is_on = True
        self._converted = [
            tensor for tensor in _tensors(run.model) if not _is_channels_last(tensor)
        ]
        _lay_out(self._converted, torch.channels_last)

    def begin_batch(self, run: Runner) -> None:
        """Convert the input."""
        if self._is_on:
            run.xb = _converted(run.xb)

    def after_fit(self, run: Runner) -> None:
        """Put the model's format back."""
        converted, self._converted, self._is_on = self._converted, [], False
        _lay_out(converted, torch.contiguous_format)


def _tensors(model: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_of(model).values() if tensor.ndim == 4]


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def _lay_out(tensors: list[Tensor], memory_format: torch.memory_format) -> None:
    for tensor in tensors:
        # As nn.Module.to does it: the parameter stays the one the optimizer knows.
        tensor.data = tensor.data.contiguous(memory_format=memory_format)


def _converted(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch
    if isinstance(batch, dict):
        return {key: _converted(part) for key, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        parts = [_converted(part) for part in batch]
        return batch._make(parts) if hasattr(batch, "_make") else type(batch)(parts)
    return batch
