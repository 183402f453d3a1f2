"""The tensors that a batch changes before its step, copied; and whether it has changed others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..state import RunState

_Slot = tuple[dict[str, Any], str]
"""A dictionary of a module's buffers, and a key of it."""


class KeptTensors:
    """The buffers of a model and a loss function, copied; and the versions of the parameters.

    All buffers are copied each time: code that changes one (the kernels of normalization,
    ``buffer.data``) may leave its version as it is.

    Args:
        run: Whose they are.
    """

    def __init__(self, run: RunState) -> None:
        parts = [each for each in (run.model, run.loss_func) if isinstance(each, nn.Module)]
        self._owners = [module._buffers for part in parts for module in part.modules()]
        # Those that a first batch makes are not watched.
        parameters = {id(p): p for part in parts for p in part.parameters()}.values()
        self._parameters = [
            p for p in parameters if not nn.parameter.is_lazy(p) and not p.is_inference()
        ]
        self._slots: list[_Slot] = []
        self._tensors: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._versions: list[int] = []

    def keep(self) -> None:
        """Copy the buffers as they are now."""
        self._versions = self._versions_now()
        slots: list[_Slot] = []
        tensors: list[Tensor] = []
        for owner in self._owners:
            for key, buffer in owner.items():
                if buffer is not None and not nn.parameter.is_lazy(buffer):
                    slots.append((owner, key))
                    tensors.append(buffer)
        are_known = len(tensors) == len(self._tensors) and all(
            one is other and one.shape == copy.shape
            for one, other, copy in zip(tensors, self._tensors, self._copies, strict=True)
        )
        if not are_known:
            self._slots, self._tensors = slots, tensors
            self._copies = [tensor.detach().clone() for tensor in tensors]
        elif tensors:
            with torch.no_grad():
                torch._foreach_copy_(self._copies, tensors)

    def kept(self, part: Any) -> Iterator[tuple[str, Tensor | None]]:
        """Yield name and copy of each buffer of a module, under each name that it has.

        Args:
            part: The model or the loss function. The copy of a buffer that was not there is
                ``None``.
        """
        if not isinstance(part, nn.Module):
            return
        copies = {
            (id(owner), key): copy
            for (owner, key), copy in zip(self._slots, self._copies, strict=True)
        }
        for path, module in part.named_modules(remove_duplicate=False):
            for key in module._buffers:
                yield f"{path}.{key}".lstrip("."), copies.get((id(module._buffers), key))

    def parameters_have_changed(self) -> bool:
        """Whether something has written to a parameter since."""
        return self._versions != self._versions_now()

    def _versions_now(self) -> list[int]:
        return [parameter._version for parameter in self._parameters]
