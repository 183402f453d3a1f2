"""Runs the model in half precision, and scales the loss where float16 needs it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..callback import Callback, handler
from ..data.batch import model_device
from ..optimizers import named_optimizers
from ..param_groups import (
    refuse_closure,
    stepped_optimizer,
    stepped_parameters,
    trained_parameters,
)
from ..priorities import AFTER_EVERYONE, BEFORE_EVERYONE, TRANSFORM
from .shared.autocast_calls import AutocastCalls
from .shared.loss_scaling import LossScaling, Question

if TYPE_CHECKING:
    from ..runner import Runner

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Inside of others who change the loss for the backward pass alone (gradient
# accumulation): what is scaled last is put back first.
_SCALE_LOSS = AFTER_EVERYONE - 1
_PUT_LOSS_BACK = BEFORE_EVERYONE + 1

_CLOSURE = (
    "the scale of the loss is found out between the steps, and a step cannot be taken back where "
    "one of its gradients overflows. Use bfloat16, MixedPrecision('bf16')"
)


class MixedPrecision(Callback):
    """Calls model and loss function under ``torch.autocast``, in every phase.

    Autocast is on where ``one_batch`` calls the two: from ``begin_batch`` to ``after_pred``, and
    from there to ``after_loss``. Further calls of the model, of parts of it, and of a loss that
    is a module are under autocast too, wherever in the batch they are made, in a handler say.
    All else in handlers is outside, and sees the loss as it is; ``autocast()`` is for what else
    belongs inside.

    float16 has little room for small gradients, so there the loss is scaled by
    a ``torch.amp.GradScaler`` for the backward pass, and gradients are divided by
    the scale in ``begin_step`` at ``TRANSFORM``, before anyone clips them. A step
    whose gradients are not all finite is cancelled with the reason
    ``"overflow"``, its gradients are zeroed, and the scale goes down. To know
    that, the host has to wait for the device once a step; so does every float16
    loop with a ``GradScaler``. bfloat16 needs no scale and waits for nothing.

    A loss that has a backward pass of its own, besides that of ``run.loss``, is scaled by
    ``scale()``; an optimizer besides those of the learner is stepped by ``step()``. Both do without
    a scaler what is to be done without one. A gradient that would be divided and was not
    scaled, or would be applied and was not divided, is an error.

    Args:
        dtype: ``torch.bfloat16`` (default) or ``torch.float16``, or ``"bf16"``, ``"fp16"``.
        scaler: A scaler of your own, kept from fit to fit. By default a fit in
            float16 gets a new one with torch's settings, one in bfloat16 none.

    Attributes:
        scaler: The ``GradScaler`` in use, or ``None``.

    Raises:
        ValueError: ``dtype`` is neither.
        TypeError: ``scaler`` is no ``GradScaler``.
        RuntimeError: In training: a gradient is not what it should be, as above, or a step begins
            while autocast is on, because ``one_batch`` has left out ``after_loss``.

    Source: Micikevicius et al., "Mixed Precision Training", 2018.
    """

    held_in_run = ("_watching",)

    def __init__(
        self,
        dtype: torch.dtype | Literal["bf16", "fp16"] = torch.bfloat16,
        scaler: GradScaler | None = None,
    ) -> None:
        found = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if found is None or found not in _DTYPES.values():
            raise ValueError(
                f"dtype must be bfloat16 or float16, got {dtype!r}: write 'bf16' or 'fp16', or "
                "torch.bfloat16 or torch.float16; without MixedPrecision all is in float32"
            )
        if scaler is not None and not isinstance(scaler, GradScaler):
            raise TypeError(f"scaler must be a torch.amp.GradScaler, got {scaler!r}")
        self.dtype = found
        self._makes_scaler = scaler is None and found is torch.float16
        self._scaling = None if scaler is None else LossScaling(scaler)
        self._calls = AutocastCalls(found)
        self._is_in_batch = False
        self._watching: Any = None
        self._window: torch.autocast | None = None
        self._true_loss: Tensor | None = None
        self._scaled_loss: Tensor | None = None
        self._asked: Question | None = None

    @property
    def scaler(self) -> GradScaler | None:
        """The ``GradScaler`` in use, or ``None``."""
        return None if self._scaling is None else self._scaling.scaler

    # What people call.

    def autocast(self) -> torch.autocast:
        """Return autocast for a ``with`` statement, for what is computed outside of it otherwise.

        A loss of another model, say. Calls of the learner's model need none.
        """
        return self._calls.context()

    def around_evaluation(self) -> torch.autocast:
        """Have an optimizer with a closure compute under autocast."""
        return self.autocast()

    def scale(self, loss: Tensor) -> Tensor:
        """Return a further loss of this batch, scaled for its backward pass.

        ``run.mixed_precision.scale(loss).backward()``; ``run.loss`` is scaled already between
        ``after_loss`` and ``after_backward``.

        Args:
            loss: A scalar.

        Returns:
            The loss times the scale, and the loss itself where there is no scaler.

        Raises:
            RuntimeError: In float16, before the first fit, which makes the scaler.
        """
        if self._scaling is not None:
            return self._scaling.scale(loss)
        if self._makes_scaler:
            raise RuntimeError("there is no scale before a fit begins: call scale() in a batch")
        return loss

    def step(self, opt: Any) -> None:
        """Step an optimizer besides ``learn.opt``, with its gradients divided by the scale.

        It is not stepped where they are not all finite. Its gradients have the scale afterwards
        as they had before, and are left to be zeroed.

        Args:
            opt: An optimizer of torch's.

        Raises:
            RuntimeError: A gradient of it was not scaled.
        """
        self._refuse_autocast()
        params = [p for group in opt.param_groups for p in group["params"] if p.grad is not None]
        if self._scaling is None or not params or self._scaling.divide(params, opt).is_finite:
            opt.step()
        if self._scaling is not None:
            self._scaling.multiply(params)

    # Begin and end.

    @handler(priority=AFTER_EVERYONE)
    def begin_fit(self, run: Runner) -> None:
        """Make the scaler, and scale gradients that an earlier fit has left."""
        if self._makes_scaler or self._scaling is not None:
            refuse_closure(run, "MixedPrecision in float16", _CLOSURE)
        self._asked = None
        device = model_device(run.model)
        self._calls.device_type = device.type
        if self._makes_scaler:
            self._scaling = LossScaling(GradScaler(device.type))
        if self._scaling is not None:
            # Has it make its scale: a resumed fit may step before it scales a loss.
            self._scaling.scaler.scale(torch.zeros((), device=device))
            self._scaling.gradients.forget()
            self._scaling.multiply(_with_gradients(trained_parameters(run)))

    @handler(event=["begin_train", "begin_validate", "begin_predict"])
    def choose_device(self, run: Runner) -> None:
        """Take autocast's device from the model."""
        self._calls.device_type = model_device(run.model).type

    @handler("begin_train", priority=AFTER_EVERYONE)  # whoever freezes has frozen by now
    def watch_gradients(self, run: Runner) -> None:
        """Have backward passes and steps noted."""
        self._watching = register_optimizer_step_pre_hook(partial(self._before_step_of, run))
        if self._scaling is not None:
            parts = [part for part in (run.model, run.loss_func) if isinstance(part, nn.Module)]
            of_parts = [p for part in parts for p in part.parameters()]
            self._scaling.watch([*of_parts, *trained_parameters(run)])

    @handler(["after_train", "after_validate", "after_predict"], priority=AFTER_EVERYONE)
    def let_go(self, run: Runner) -> None:
        """Remove all hooks; but for those of a training that goes on after a validation."""
        self._calls.let_go()
        if run.phase != "train" and "train" in run.token.open_scopes:
            return
        if self._scaling is not None:
            self._scaling.gradients.let_go()
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.remove()

    @handler(priority=AFTER_EVERYONE)  # what is saved is to be gone on with
    def after_fit(self, run: Runner) -> None:
        """Divide gradients that are left by the scale, as others know nothing of it."""
        if self._scaling is not None:
            self._scaling.finish(_with_gradients(trained_parameters(run)))

    # Autocast.

    @handler("begin_batch", priority=BEFORE_EVERYONE)
    def watch_calls(self, run: Runner) -> None:
        """Have calls of model and loss function put under autocast, whoever makes them."""
        self._calls.follow(run.model, run.loss_func)
        self._calls.is_on = self._is_in_batch = True
        if self._scaling is not None:
            self._scaling.gradients.begin()

    @handler(priority=AFTER_EVERYONE)
    def begin_batch(self, run: Runner) -> None:
        """Enter autocast for the model."""
        self._enter()

    @handler(event=["after_pred", "after_loss", "after_batch"], priority=BEFORE_EVERYONE)
    def leave_autocast(self, run: Runner) -> None:
        """Leave autocast before anyone else looks."""
        self._calls.close()
        window, self._window = self._window, None
        if window is not None:
            window.__exit__(None, None, None)

    @handler(priority=AFTER_EVERYONE)
    def after_pred(self, run: Runner) -> None:
        """Enter autocast again for the loss function, where it is called."""
        if run.phase != "predict":
            self._enter()

    @handler("after_batch", priority=AFTER_EVERYONE)
    def leave_calls(self, run: Runner) -> None:
        """Leave calls alone until the next batch."""
        self._calls.close()
        self._calls.is_on = self._is_in_batch = False
        if self._scaling is not None:
            self._scaling.gradients.is_on = False

    def _enter(self) -> None:
        self._calls.close()  # before, as contexts are left in reverse order
        self._window = self.autocast()
        self._window.__enter__()  # type: ignore[no-untyped-call]

    # The scale.

    @handler(during="train", priority=_SCALE_LOSS)
    def after_loss(self, run: Runner) -> None:
        """Scale the loss for the backward pass."""
        # Of what has no gradient, backward will say what is wrong with it.
        is_scaled = isinstance(run.loss, Tensor) and run.loss.requires_grad
        if self._scaling is not None and is_scaled:
            self._true_loss = run.loss
            run.loss = self._scaled_loss = self._scaling.scale(run.loss)

    @handler(event=["after_loss", "after_backward", "after_batch"], priority=_PUT_LOSS_BACK)
    def put_loss_back(self, run: Runner) -> None:
        """Show the loss as it was, unless somebody has set another since."""
        true_loss, scaled = self._true_loss, self._scaled_loss
        self._true_loss = self._scaled_loss = None
        if true_loss is not None and run.loss is scaled:
            run.loss = true_loss

    @handler(priority=BEFORE_EVERYONE)
    def after_backward(self, run: Runner) -> None:
        """See that the backward pass was outside of autocast."""
        self._refuse_autocast()

    @handler(priority=TRANSFORM)
    def begin_step(self, run: Runner) -> None:
        """Divide the gradients by the scale, and cancel the step if they are not finite."""
        self._refuse_autocast()
        parameters = _with_gradients(stepped_parameters(run))
        if self._scaling is None or not parameters:
            return
        self._asked = self._scaling.divide(parameters, stepped_optimizer(run))
        if not self._asked.is_finite:
            run.token.cancel("step", "overflow")

    @handler(priority=BEFORE_EVERYONE)
    def after_step(self, run: Runner) -> None:
        """Know that the step was taken: the loop is about to zero the gradients."""
        self._asked = None
        if self._scaling is not None:
            self._scaling.gradients.drop(stepped_parameters(run))

    @handler(priority=BEFORE_EVERYONE)
    def after_cancel_step(self, run: Runner) -> None:
        """After a step that was not taken, leave gradients that fit the scale."""
        asked, self._asked = self._asked, None
        if asked is None or self._scaling is None:
            return
        if not asked.is_finite:
            stepped_optimizer(run).zero_grad()
            self._scaling.gradients.drop(stepped_parameters(run))
            return
        # Someone else cancelled it, and the next backward pass adds scaled gradients.
        self._scaling.adapt()
        self._scaling.multiply(_with_gradients(stepped_parameters(run)))

    @handler(event=["after_batch", "after_epoch", "after_fit"], priority=BEFORE_EVERYONE)
    def settle(self, run: Runner) -> None:
        """Adapt the scale, and see to a step that something else than its scope has ended."""
        self.after_cancel_step(run)
        if self._scaling is not None:
            self._scaling.adapt()

    # What is refused.

    def _before_step_of(self, run: Runner, opt: Any, args: Any, kwargs: Any) -> None:
        """Look at any step of an optimizer of torch's in the batch, whoever takes it."""
        if torch.compiler.is_compiling() or not self._is_in_batch:
            return
        is_ours = any(opt is each for _, each in named_optimizers(run.opt))
        if self._window is not None and (is_ours or _trains(opt, run.model)):
            self._refuse_autocast()
        if self._scaling is not None:
            self._scaling.look_at_step(opt)

    def _refuse_autocast(self) -> None:
        if self._window is not None:
            raise RuntimeError(
                "backward pass and step belong outside of autocast, and a step begins while "
                "autocast is on. one_batch has to call emit.after_pred() when the model has been "
                "called, and emit.after_loss() when the loss is in self.loss, before backward()"
            )

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return the scaler's state; reads the scale from the device."""
        return {"scaler": None if self.scaler is None else self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned.

        Raises:
            ValueError: One of the two runs has a scaler and the other has none.
        """
        if (state["scaler"] is None) != (self.scaler is None):
            raise ValueError(
                "the saved run and this one differ in precision: one scales its loss, the other "
                f"does not. This one uses {self.dtype}."
            )
        if self._scaling is not None:
            self._scaling.scaler.load_state_dict(state["scaler"])
            self._scaling.gradients.forget()
            # Those that wait for a step were scaled when they were saved.
            self._scaling.gradients.passes = 1


def _with_gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter for parameter in parameters if parameter.grad is not None]


def _trains(opt: Any, model: Any) -> bool:
    own = (
        {id(parameter) for parameter in model.parameters()} if isinstance(model, nn.Module) else ()
    )
    return any(id(parameter) in own for group in opt.param_groups for parameter in group["params"])
