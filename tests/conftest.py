"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from eventtrain import DataBunch, Learner, TensorLoader

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


@pytest.fixture
def no_sync() -> NoSync:
    """``with no_sync:`` fails on everything that would make the host wait for a device."""
    return NoSync()


@pytest.fixture
def make_learner() -> Callable[..., Learner]:
    """Make a learner on random data: ``train`` and ``valid`` batches of four rows each."""

    def make(train: int = 3, valid: int = 2) -> Learner:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4 * (train + valid), 5, generator=generator)
        y = torch.randint(0, 3, (len(x),), generator=generator)
        rows = 4 * train
        valid_dl = TensorLoader(x[rows:], y[rows:], bs=4) if valid else None
        data = DataBunch(TensorLoader(x[:rows], y[:rows], bs=4), valid_dl, c=3)
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        return Learner(model, opt, nn.functional.cross_entropy, data)

    return make


@pytest.fixture
def learner(make_learner: Callable[..., Learner]) -> Learner:
    """A learner with three training and two validation batches."""
    return make_learner()
