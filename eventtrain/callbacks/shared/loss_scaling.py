"""Scaling losses for float16, dividing their gradients again, and refusing to mix the two up."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler

from .scaled_gradients import ScaledGradients

_NOT_SCALED = (
    "a gradient (of the parameter of shape {shape}) is to be divided by the scale of float16, and "
    "comes from a loss that was not scaled. Call backward() on run.loss, between after_loss and "
    "after_backward, and write run.mixed_precision.scale(loss).backward() for any further loss"
)
_DIVIDED = (
    "the gradients of {name} were divided by the scale already, by a step of this batch: call its "
    "zero_grad() after that step, before the next backward pass"
)
_DIVIDED_BY_HAND = (
    "scaler.unscale_({name}) was called already in this batch, and MixedPrecision divides the "
    "gradients in begin_step: leave the call out. A handler of begin_step finds them divided, and "
    "GradientClip clips them then"
)
_NOT_DIVIDED = (
    "{name}.step() would apply gradients that are multiplied by the scale of float16. Step "
    "learn.opt with run.optimizer_step(), and another optimizer with "
    "run.mixed_precision.step(optimizer)"
)


class Question:
    """Stands in for the optimizer where a scaler is asked whether to step.

    ``GradScaler.step`` tells nobody whether it stepped, and the loop steps by
    itself: so the scaler steps this one, which notes it.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        self.param_groups = [{"params": parameters}]
        self.is_finite = False

    def step(self) -> None:
        """Note that the scaler found every gradient finite."""
        self.is_finite = True


class LossScaling:
    """A ``GradScaler``, and what it is known to have been used for.

    Args:
        scaler: The scaler.

    Attributes:
        scaler: As given.
        gradients: What gradients were made from.
    """

    def __init__(self, scaler: GradScaler) -> None:
        self.scaler = scaler
        self.gradients = ScaledGradients()
        # Until the scale has been adapted: the scaler knows them by their identity.
        self._answered: list[Question] = []
        self._last: weakref.ref[Tensor] | None = None

    def watch(self, parameters: Iterable[Tensor]) -> None:
        """Have the gradients of these noted; nothing to do for a scaler that is switched off."""
        if self.scaler.is_enabled():
            self.gradients.follow(parameters)

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale, and one that was returned here as it is."""
        if self.is_scaled(loss):
            return loss
        scaled = self.scaler.scale(loss)
        if self.scaler.is_enabled():
            self.gradients.watch(scaled)
            self._last = weakref.ref(scaled)
        return scaled

    def is_scaled(self, loss: Any) -> bool:
        """Whether this very tensor is the last that ``scale`` returned."""
        return self._last is not None and self._last() is loss

    def divide(self, parameters: list[Tensor], opt: Any) -> Question:
        """Divide gradients by the scale, and tell whether they are all finite.

        Args:
            parameters: Those of them that have gradients.
            opt: Whose they are.

        Raises:
            RuntimeError: A gradient does not have the scale.
        """
        if self.scaler.is_enabled():
            self._refuse(parameters, opt)
        question: Any = Question(parameters)
        self._answered.append(question)
        self.scaler.unscale_(question)
        self.gradients.mark(parameters, "divided")
        self.scaler.step(question)
        return question  # type: ignore[no-any-return]

    def adapt(self) -> None:
        """Adapt the scale once for all that was divided, as it all had the same one."""
        if not self._answered:
            return
        waiting = self.gradients.waiting()
        before = [self._scale_at(gradient) for gradient in waiting]
        self.scaler.update()
        for gradient, scale in zip(waiting, before, strict=True):
            gradient.mul_(self._scale_at(gradient) / scale)
        self.gradients.passes = len(waiting)
        self._answered.clear()

    def _scale_at(self, gradient: Tensor) -> Tensor:
        return self.scaler.scale(torch.ones((), device=gradient.device))

    def multiply(self, parameters: list[Tensor]) -> None:
        """Scale gradients themselves, which the next backward passes are to add to."""
        with torch.no_grad():
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad.copy_(self.scaler.scale(parameter.grad))
        self.gradients.mark(parameters, "scaled")
        self.gradients.passes += bool(parameters)

    def finish(self, parameters: list[Tensor]) -> None:
        """Divide gradients that nobody has, as what comes after knows nothing of a scale."""
        for parameter in parameters:
            if self.gradients.made(parameter) == "scaled" and parameter.grad is not None:
                parameter.grad.mul_(self._scale_at(parameter.grad).reciprocal())
        self.gradients.forget()
        self._last = None

    def look_at_step(self, opt: Any) -> None:
        """Refuse a step that would apply scaled gradients.

        Raises:
            RuntimeError: It would.
        """
        parameters = [p for group in opt.param_groups for p in group["params"]]
        if not any(self.gradients.made(p) in ("scaled", "mixed") for p in parameters):
            return
        # A fused optimizer divides them itself, by what the scaler has put there.
        if not (self._was_divided_by_hand(opt) or getattr(opt, "grad_scale", None) is not None):
            raise RuntimeError(_NOT_DIVIDED.format(name=type(opt).__name__))
        self.gradients.mark(parameters, "divided")

    def _refuse(self, parameters: list[Tensor], opt: Any) -> None:
        name = type(opt).__name__
        if self._was_divided_by_hand(opt):
            raise RuntimeError(_DIVIDED_BY_HAND.format(name=name))
        for parameter in filter(self.gradients.is_known, parameters):
            made = self.gradients.made(parameter)
            if made in ("unscaled", "mixed") or (made is None and not self.gradients.passes):
                raise RuntimeError(_NOT_SCALED.format(shape=list(parameter.shape)))
            if made == "divided":
                raise RuntimeError(_DIVIDED.format(name=name))

    def _was_divided_by_hand(self, opt: Any) -> bool:
        states = getattr(self.scaler, "_per_optimizer_states", {})
        return id(opt) in states and states[id(opt)]["stage"].name == "UNSCALED"
