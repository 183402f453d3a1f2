"""What the loop steps: an optimizer, the one of several that was named, or one with a closure."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NoReturn

import torch
from torch import Tensor

from .model_call import whole_loss
from .optimizers import names_in_text, needs_closure, why_no_such_name

Loss = Callable[[Any, Any], Any]


class NoStep:
    """What stands for the optimizer that has stepped where none has."""

    def zero_grad(self) -> None:
        """Leave all gradients where they are."""


NO_STEP = NoStep()


class OneStepper(dict[Any, Any]):
    """The one optimizer of a learner, which has no name: ``steppers[None]``.

    Args:
        opt: The optimizer, for messages.
        stepper: What is stepped for it.

    Attributes:
        chosen: ``None``, its name.
    """

    chosen: str | None = None

    def __init__(self, opt: Any, stepper: Any) -> None:
        super().__init__({None: stepper})
        self._opt = opt

    def __missing__(self, name: Any) -> NoReturn:
        raise ValueError(why_no_such_name(name, self._opt))


class SeveralSteppers:
    """Several optimizers by name.

    Args:
        opt: The mapping. What is put into it counts from then on.

    Attributes:
        chosen: The name of the one that steps, or was the last to do so.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.chosen: str | None = None
        self._opt = opt

    def __getitem__(self, name: str | None) -> Any:
        """Return the optimizer that is about to step, and remember that it does.

        Raises:
            TypeError: No name was given.
            ValueError: There is none of that name.
        """
        if name is None:
            first = next(iter(self._opt), "g")
            raise TypeError(
                f"the Learner has several optimizers, {names_in_text(self._opt)}, and "
                f"optimizer_step was not told which one steps: have a one_batch of a Runner of "
                f"yours call self.optimizer_step({first!r})"
            )
        if name not in self._opt:
            raise ValueError(why_no_such_name(name, self._opt))
        self.chosen = name
        return self._opt[name]


class ClosureStepper:
    """Steps an optimizer that asks for the loss again and again, as ``LBFGS`` does.

    The first time it gets the loss that the batch has: the backward pass for it has just been made,
    with its events. Each further time its gradients are zeroed, and model, loss function and
    backward pass are run again on the same ``xb`` and ``yb``, without events: averages, readings
    and counters have the batch once, and ``run.loss`` stays the first.

    Args:
        opt: The optimizer.
        learn: Whose it is.
        run: The run that uses it.
    """

    def __init__(self, opt: Any, learn: Any, run: Any) -> None:
        self._opt, self._learn, self._run = opt, learn, run
        self._is_first = True

    def step(self) -> None:
        """Step once, with as many evaluations as the optimizer asks for.

        Raises:
            RuntimeError: The loss of the batch is not the one that would be computed anew.
        """
        if not self._learn.compute_loss.gave(self._run.loss):
            raise RuntimeError(
                f"{type(self._opt).__name__} computes the loss anew in its step, with loss_func, "
                "and run.loss is another one: a handler has replaced it, or the loss function was "
                "another when it was computed (Mixup and CutMix exchange it for a while). Have "
                "loss_func, or Learner(..., forward=), compute all of it"
            )
        self._is_first = True
        self._opt.step(self._evaluate)

    def zero_grad(self) -> None:
        """Zero its gradients."""
        self._opt.zero_grad()

    def _evaluate(self) -> Any:
        run, learn = self._run, self._learn
        if self._is_first:
            self._is_first = False
            return run.loss
        with torch.enable_grad():
            self._opt.zero_grad()
            with ExitStack() as around:
                for callback in run.cbs:
                    around.enter_context(callback.around_evaluation())
                loss = learn.compute_loss.anew(learn.call_model(run.xb), run.yb)
            loss.backward()
        return loss


class RememberedLoss:
    """Computes losses, and knows which was the last and how to compute one again.

    Args:
        compute: The loss of a prediction and a target, a number or a mapping.
        run: Is told of the parts; ``None`` outside of one.
    """

    def __init__(self, compute: Loss, run: Any) -> None:
        self._compute, self._run = compute, run
        # Weak: its graph is to be gone before the next batch is computed.
        self._last: weakref.ref[Tensor] | None = None

    def __call__(self, pred: Any, yb: Any) -> Any:
        """Return the loss of a batch."""
        loss = whole_loss(self._compute(pred, yb), self._run)
        self._last = weakref.ref(loss) if isinstance(loss, Tensor) else None
        return loss

    def gave(self, loss: Any) -> bool:
        """Whether this very tensor is the last that it returned."""
        return self._last is not None and self._last() is loss

    def anew(self, pred: Any, yb: Any) -> Any:
        """Return the loss of a batch that has been computed before; nobody is told its parts."""
        return whole_loss(self._compute(pred, yb), None)


def steppers_of(opt: Any, learn: Any, run: Any) -> OneStepper | SeveralSteppers:
    """Return what the loop steps for ``opt``, by name.

    Args:
        opt: ``learn.opt``.
        learn: Whose it is.
        run: The run that uses it.
    """
    if isinstance(opt, Mapping):
        return SeveralSteppers(opt)
    return OneStepper(opt, ClosureStepper(opt, learn, run) if needs_closure(opt) else opt)
