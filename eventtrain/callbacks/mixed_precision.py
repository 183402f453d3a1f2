"""Runs the model in half precision, and scales the loss where float16 needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.amp import GradScaler

from ..callback import Callback, handler
from ..data.batch import model_device
from ..param_groups import gradients, trained_parameters
from ..priorities import AFTER_EVERYONE, BEFORE_EVERYONE, TRANSFORM

if TYPE_CHECKING:
    from ..runner import Runner

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Inside of others who change the loss for the backward pass alone (gradient
# accumulation): what is scaled last is put back first.
_SCALE_LOSS = AFTER_EVERYONE - 1
_PUT_LOSS_BACK = BEFORE_EVERYONE + 1


class MixedPrecision(Callback):
    """Calls model and loss function under ``torch.autocast``, in every phase.

    Autocast is on for these two calls only. Handlers run outside of it, and
    see the loss as it is.

    float16 has little room for small gradients, so there the loss is scaled by
    a ``torch.amp.GradScaler`` for the backward pass, and gradients are divided by
    the scale in ``begin_step`` at ``TRANSFORM``, before anyone clips them. A step
    whose gradients are not all finite is cancelled with the reason
    ``"overflow"``, its gradients are zeroed, and the scale goes down. To know
    that, the host has to wait for the device once a step; so does every float16
    loop with a ``GradScaler``. bfloat16 needs no scale and waits for nothing.

    Args:
        dtype: ``torch.bfloat16`` (default) or ``torch.float16``, or ``"bf16"``, ``"fp16"``.
        scaler: A scaler of your own, kept from fit to fit. By default a fit in
            float16 gets a new one with torch's settings, one in bfloat16 none.

    Attributes:
        scaler: The ``GradScaler`` in use, or ``None``.

    Raises:
        ValueError: ``dtype`` is neither.

    Source: Micikevicius et al., "Mixed Precision Training", 2018.
    """

    def __init__(
        self,
        dtype: torch.dtype | Literal["bf16", "fp16"] = torch.bfloat16,
        scaler: GradScaler | None = None,
    ) -> None:
        found = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if found not in _DTYPES.values():
            raise ValueError(f"dtype must be bfloat16 or float16, got {dtype!r}")
        self.dtype = found
        self.scaler = scaler
        self._makes_scaler = scaler is None and found is torch.float16
        self._device_type = "cpu"
        self._autocast: torch.autocast | None = None
        self._true_loss: Tensor | None = None
        self._asked: _Question | None = None

    def begin_fit(self, run: Runner) -> None:
        """Make the scaler."""
        self._asked = None
        if self._makes_scaler:
            self.scaler = GradScaler(model_device(run.model).type)
        if self.scaler is not None:
            # Has it make its scale: a resumed fit may step before it scales a loss.
            self.scaler.scale(torch.zeros((), device=model_device(run.model)))

    @handler(event=["begin_train", "begin_validate", "begin_predict"])
    def choose_device(self, run: Runner) -> None:
        """Take autocast's device from the model."""
        self._device_type = model_device(run.model).type

    @handler(priority=AFTER_EVERYONE)
    def begin_batch(self, run: Runner) -> None:
        """Enter autocast for the model."""
        self._enter()

    @handler(event=["after_pred", "after_loss", "after_batch"], priority=BEFORE_EVERYONE)
    def leave_autocast(self, run: Runner) -> None:
        """Leave autocast before anyone else looks."""
        autocast, self._autocast = self._autocast, None
        if autocast is not None:
            autocast.__exit__(None, None, None)

    @handler(priority=AFTER_EVERYONE)
    def after_pred(self, run: Runner) -> None:
        """Enter autocast again for the loss function, where it is called."""
        if run.phase != "predict":
            self._enter()

    def _enter(self) -> None:
        self._autocast = torch.autocast(self._device_type, self.dtype)
        self._autocast.__enter__()  # type: ignore[no-untyped-call]

    @handler(during="train", priority=_SCALE_LOSS)
    def after_loss(self, run: Runner) -> None:
        """Scale the loss for the backward pass."""
        # Of what has no gradient, backward will say what is wrong with it.
        if (
            self.scaler is not None
            and isinstance(run.loss, torch.Tensor)
            and run.loss.requires_grad
        ):
            self._true_loss = run.loss
            run.loss = self.scaler.scale(run.loss)

    @handler(event=["after_backward", "after_batch"], priority=_PUT_LOSS_BACK)
    def put_loss_back(self, run: Runner) -> None:
        """Show the loss as it was."""
        if self._true_loss is not None:
            run.loss, self._true_loss = self._true_loss, None

    @handler(priority=TRANSFORM)
    def begin_step(self, run: Runner) -> None:
        """Divide the gradients by the scale, and cancel the step if they are not finite."""
        if self.scaler is None or next(gradients(run), None) is None:
            return
        question: Any = _Question(trained_parameters(run))
        self._asked = question
        self.scaler.unscale_(question)
        self.scaler.step(question)
        if not question.is_finite:
            run.token.cancel("step", "overflow")

    @handler(priority=BEFORE_EVERYONE)
    def after_step(self, run: Runner) -> None:
        """Adapt the scale."""
        if self.scaler is not None and self._asked is not None:
            self._asked = None
            self.scaler.update()

    @handler(
        event=["after_cancel_step", "after_batch", "after_epoch", "after_fit"],
        priority=BEFORE_EVERYONE,
    )
    def settle(self, run: Runner) -> None:
        """After a step that was not taken, leave gradients that fit the scale."""
        asked, self._asked = self._asked, None
        if self.scaler is None or asked is None:
            return
        self.scaler.update()
        if not asked.is_finite:
            run.opt.zero_grad()
            return
        # Someone else cancelled it, and the next backward pass adds scaled gradients.
        with torch.no_grad():
            for gradient in gradients(run):
                gradient.copy_(self.scaler.scale(gradient))

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
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])


class _Question:
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
