"""What every peer trains, and the same by hand."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Fit = Callable[[], object]
"""Trains for one epoch."""

BY_HAND, BY_PEER = "by hand", "by peer"
"""The two figures in a worker's answer."""


class Work:
    """A model, its optimizer and batches, fresh for one fit, and handlers that do nothing.

    Attributes:
        model: ``Linear(10, 1)``, the same at every start.
        opt: ``torch.optim.SGD`` over its parameters.
        loss_func: Mean squared error.
        batches: A list of ``(xb, yb)``, four rows each.
        handlers: How many handlers are to listen on every hook.
        calls: When handlers are to be counted, how often those of each hook have run.
    """

    lr = 0.01

    def __init__(
        self,
        batches: list[tuple[Tensor, Tensor]],
        *,
        handlers: int = 0,
        seed: int = 0,
        counting: bool = False,
    ) -> None:
        torch.manual_seed(seed)
        self.model = nn.Linear(10, 1)
        self.opt = torch.optim.SGD(self.model.parameters(), lr=self.lr)
        self.loss_func = F.mse_loss
        self.batches = batches
        self.handlers = handlers
        self.calls: Counter[str] | None = Counter() if counting else None

    def functions(self, hook: str, parameters: str) -> list[Callable[..., None]]:
        """Make this fit's handlers of one hook, each compiled for itself."""
        return [self._idle(hook, parameters) for _ in range(self.handlers)]

    def callbacks(
        self, base: type, hooks: Iterable[str], parameters: str | None = None
    ) -> list[Any]:
        """Make this fit's handlers as callbacks: an instance of each of as many subclasses.

        Args:
            base: The peer's class of callbacks.
            hooks: The methods to override with ones that do nothing.
            parameters: Theirs, ``self`` included; as in ``base`` by default.
        """
        made = []
        for number in range(self.handlers):
            methods = {
                hook: self._idle(hook, parameters or _parameters(getattr(base, hook)))
                for hook in hooks
            }
            made.append(type(f"Idle{number}", (base,), methods)())
        return made

    def _idle(self, hook: str, parameters: str) -> Callable[..., None]:
        # One code object each: copies of one function would run as if it were always the same.
        body = "pass" if self.calls is None else f"calls[{hook!r}] += 1"
        names: dict[str, Any] = {"calls": self.calls}
        exec(f"def {hook}({parameters}): {body}", names)
        function: Callable[..., None] = names[hook]
        return function


def make_batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return random batches of four rows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, 10, generator=generator)
    y = torch.randn(count, 4, 1, generator=generator)
    return list(zip(x, y, strict=True))


def by_hand(work: Work) -> Fit:
    """Return the loop that one would write: the baseline."""

    def fit(model: Any, loss_func: Any, opt: Any, batches: Any) -> None:
        for xb, yb in batches:
            loss = loss_func(model(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()

    return lambda: fit(work.model, work.loss_func, work.opt, work.batches)


def _parameters(method: Callable[..., Any]) -> str:
    parameters = inspect.signature(method).parameters.values()
    bare = [
        each.replace(
            annotation=each.empty, default=each.empty if each.default is each.empty else None
        )
        for each in parameters
    ]
    return str(inspect.Signature(bare))[1:-1]
