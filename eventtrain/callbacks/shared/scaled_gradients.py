"""Which gradients were made from a scaled loss, and which were not."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

Made = Literal["scaled", "unscaled", "mixed", "divided"]
"""From a scaled loss; from one that was not; from both; from a scaled loss, and divided since."""


class ScaledGradients:
    """Notes for each parameter what its gradient was made from, while it is on.

    A backward pass counts as one of a scaled loss if it came through a tensor that was passed to
    ``watch``. Gradients that torch does not add up itself (those of sharded parameters, and what
    somebody assigns to ``.grad``) are not known.

    Attributes:
        is_on: Whether gradients are noted.
        passes: How often a gradient has come through a watched tensor.
    """

    def __init__(self) -> None:
        self.is_on = False
        self.passes = 0
        self._under_way = 0
        self._handles: dict[int, Any] = {}
        # The gradient itself is part of it: one that was dropped takes its note along.
        self._notes: dict[int, tuple[weakref.ref[Tensor], Made]] = {}

    def follow(self, parameters: Iterable[Tensor]) -> None:
        """Note the gradients of these besides those before."""
        for parameter in parameters:
            is_plain = type(parameter) in (nn.Parameter, Tensor)
            if is_plain and parameter.requires_grad and id(parameter) not in self._handles:
                register: Any = parameter.register_post_accumulate_grad_hook
                self._handles[id(parameter)] = register(self._note)

    def let_go(self) -> None:
        """Remove all hooks."""
        handles, self._handles = self._handles, {}
        for handle in handles.values():
            handle.remove()

    def forget(self) -> None:
        """Start over."""
        self.passes = self._under_way = 0
        self._notes.clear()

    def begin(self) -> None:
        """Begin a batch, after one whose backward pass failed perhaps."""
        self.is_on, self._under_way = True, 0

    def watch(self, scaled: Tensor) -> None:
        """Know backward passes that come through this tensor as those of a scaled loss."""
        if scaled.requires_grad:
            scaled.register_hook(self._begin_pass)  # type: ignore[no-untyped-call]

    def _begin_pass(self, gradient: Tensor) -> None:
        self.passes += 1
        self._under_way += 1
        # Not the number of the pass under way, which is another one inside of a checkpoint.
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(self._end_pass)

    def _end_pass(self) -> None:
        self._under_way -= 1

    def _note(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        if not self.is_on or gradient is None:
            return
        made: Made = "scaled" if self._under_way else "unscaled"
        known = self.made(parameter)
        if known is not None and known != made:
            made = "mixed"
        self._notes[id(parameter)] = weakref.ref(gradient), made

    def made(self, parameter: Tensor) -> Made | None:
        """Return what the gradient of a parameter was made from, ``None`` where it is not known."""
        reference, made = self._notes.get(id(parameter), (None, None))
        gradient = None if reference is None else reference()
        return made if gradient is not None and gradient is parameter.grad else None

    def is_known(self, parameter: Tensor) -> bool:
        """Whether this parameter is one whose gradients would have been noted."""
        return id(parameter) in self._handles

    def waiting(self) -> list[Tensor]:
        """Return the gradients that are there and have the scale."""
        found = (reference() for reference, made in self._notes.values() if made == "scaled")
        return [gradient for gradient in found if gradient is not None]

    def drop(self, parameters: Iterable[Tensor]) -> None:
        """Know nothing of the gradients of these, which are being zeroed."""
        for parameter in parameters:
            self._notes.pop(id(parameter), None)

    def mark(self, parameters: Iterable[Tensor], made: Made) -> None:
        """Note what somebody has made of the gradients of these."""
        for parameter in parameters:
            if parameter.grad is not None:
                self._notes[id(parameter)] = weakref.ref(parameter.grad), made
