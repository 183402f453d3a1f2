"""What fails on everything that would make the host wait for a device, on the CPU too."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class NoReading(TorchFunctionMode):
    """Fails on Python calls that read a tensor's values, whatever device it is on."""

    FORBIDDEN = frozenset(
        (
            Tensor.item,
            Tensor.tolist,
            Tensor.numpy,
            Tensor.cpu,
            Tensor.__bool__,
            Tensor.__float__,
            Tensor.__int__,
            Tensor.__index__,
            torch.equal,
        )
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.FORBIDDEN:
            raise AssertionError(f"{func} makes the host wait")
        return func(*args, **(kwargs or {}))


class NoScalars(TorchDispatchMode):
    """Fails on operations that read a value in the end, wherever they were called."""

    FORBIDDEN = (aten._local_scalar_dense, aten.item, aten.equal, aten.nonzero, aten.is_nonzero)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in self.FORBIDDEN:
            raise AssertionError(f"{func} makes the host wait")
        return func(*args, **(kwargs or {}))


class NoSync(AbstractContextManager[None]):
    """Fails on everything that would make the host wait for a device."""

    def __enter__(self) -> None:
        self._modes = ExitStack()
        self._modes.enter_context(NoScalars())
        self._modes.enter_context(NoReading())

    def __exit__(self, *error: Any) -> None:
        self._modes.close()
