"""The order in which gradients arrive, by which DDP sorts them into buckets.

DDP puts gradients into buckets in the order of the parameters at first, and, after its first
backward pass, in the order in which they arrived there. Where in a bucket a number lies decides in
which order three ranks or more add it up. So the first batch after a resume would be rounded
otherwise than in the run that was not interrupted, if DDP were not shown that order before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel


class ArrivalOrder:
    """The order in which gradients arrived in the first backward pass, as names of parameters.

    Attributes:
        is_known: Whether there was such a pass, or whether it is that of a checkpoint.
    """

    def __init__(self) -> None:
        self.is_known = False
        self._names: list[str] = []
        self._undo: list[Callable[[], object]] = []

    @property
    def names(self) -> list[str]:
        """The names, once they are known."""
        return list(self._names) if self.is_known else []

    @names.setter
    def names(self, names: list[str]) -> None:
        self._forget()
        self._names, self.is_known = list(names), bool(names)

    def record(self, model: nn.Module) -> None:
        """Note the order of the next backward pass, in which all parameters get a gradient."""
        self._forget()
        trained = _trained(model)
        for name, parameter in trained.items():
            note = partial(self._note, name, len(trained))
            hooked: Any = parameter  # torch has no types for this method
            self._undo.append(hooked.register_post_accumulate_grad_hook(note).remove)

    def _note(self, name: str, count: int, parameter: Tensor) -> None:
        self._names.append(name)
        if len(self._names) == count:
            self.is_known = True
            while self._undo:
                self._undo.pop()()

    def _forget(self) -> None:
        self._names, self.is_known = [], False
        while self._undo:
            self._undo.pop()()

    def show(self, wrapped: DistributedDataParallel, model: nn.Module | None = None) -> None:
        """Have DDP sort its buckets by this order before its first batch; collective.

        It is shown a backward pass of gradients that are zero. Where a parameter has hooks of
        others, on whatever rank, they would take that for a batch: then nothing is done.

        Args:
            wrapped: Made just now.
            model: The one in it whose parameters have these names; what it holds by default.
        """
        trained = _trained(wrapped.module if model is None else model)
        is_possible = set(trained) == set(self._names) and not any(
            map(_has_hooks, trained.values())
        )
        device = next(iter(trained.values())).device
        everywhere = torch.tensor(int(is_possible), device=device)
        dist.all_reduce(everywhere, dist.ReduceOp.MIN)
        if not int(everywhere):
            return
        held = {name: parameter.grad for name, parameter in trained.items()}
        for parameter in trained.values():
            parameter.grad = None
        try:
            _pass_zeros([trained[name] for name in self._names], wrapped)
        finally:
            for name, parameter in trained.items():
                parameter.grad = held[name]


def _pass_zeros(parameters: list[nn.Parameter], wrapped: DistributedDataParallel) -> None:
    wrapped.reducer.prepare_for_backward([])
    # Of what is ready, autograd goes on with what was made last.
    with torch.enable_grad():
        ends = [parameter.view_as(parameter) for parameter in reversed(parameters)]
    torch.autograd.backward(ends, [torch.zeros_like(end) for end in ends])


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _has_hooks(parameter: Any) -> bool:
    names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return any(getattr(parameter, name, None) for name in names)
