"""Counting how often a fit makes the host wait for the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITED = "called a synchronizing CUDA operation"
"""What torch says of each; of its debug mode itself it says something else, once."""

_aten = torch.ops.aten


class _Reads(TorchDispatchMode):
    """Counts the operations that read a tensor's values on the host."""

    READING = (_aten._local_scalar_dense, _aten.item, _aten.equal, _aten.is_nonzero, _aten.nonzero)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in self.READING
        return func(*args, **(kwargs or {}))


def count_syncs(function: Callable[[], object], device: torch.device) -> int:
    """Call ``function`` and count the times that it makes the host wait for the device.

    On CUDA torch itself tells (``torch.cuda.set_sync_debug_mode``). Elsewhere the
    operations that would wait on CUDA are counted as they are dispatched; on the
    ``meta`` device they raise besides, as there is no value to be read.
    """
    if device.type == "cuda":
        with _told_by_cuda() as told:
            function()
        return sum(WAITED in str(warning.message) for warning in told)
    with _Reads() as reads:
        function()
    return reads.count


@contextmanager
def _told_by_cuda() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield told
        finally:
            torch.cuda.set_sync_debug_mode("default")
