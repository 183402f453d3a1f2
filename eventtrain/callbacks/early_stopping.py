"""Ends a fit that has stopped getting better, and goes back to its best weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..arguments import flag, real_number, whole_number
from ..callback import Callback
from ..priorities import POLICY
from ..submodules import tensors_of
from .shared.readings import monitored

if TYPE_CHECKING:
    from ..runner import Runner


class EarlyStopping(Callback):
    """Cancels the fit when a number in ``run.history`` has not improved for some epochs.

    It looks once an epoch, in ``after_epoch`` at ``POLICY``, so whatever writes
    the history has to come before (``AvgStatsCallback`` does). A NaN is no
    improvement. Epochs that were cancelled are not judged, nor are those that
    lack the number because their training or validation was cancelled.

    Args:
        monitor: The key in ``run.history[-1]``. Default ``"valid_loss"``.
        patience: Epochs without improvement after which the fit ends, at least 1.
        min_delta: A value counts as better when it differs by more than this, 0 or more.
        mode: ``"min"`` when lower is better (default), ``"max"`` when higher is.
        restore_best: Keep a copy of the best epoch's parameters and buffers on
            their devices, and put it into the model in ``after_fit`` when this
            callback ended the fit or the fit completed. A fit that something
            else cancelled, or that failed, keeps the weights it has.

    Attributes:
        best: The best value so far; ``None`` before there is one.
        best_epoch: The epoch it comes from, counted from 0.
        waited: Epochs since then.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.
        KeyError: After an epoch, ``monitor`` is not in its row of the history.
        TypeError: After an epoch, what its row holds there is no number.
    """

    priority = POLICY

    def __init__(
        self,
        monitor: str = "valid_loss",
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] = "min",
        restore_best: bool = True,
    ) -> None:
        if not 0 <= real_number("min_delta", min_delta) < math.inf:
            raise ValueError(f"min_delta must be finite and not negative, got {min_delta!r}")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        if not isinstance(monitor, str):
            raise TypeError(f"monitor must be a key of run.history's rows, got {monitor!r}")
        self.monitor = monitor
        self.patience = whole_number("patience", patience, 1, "epochs")
        self.min_delta = min_delta
        self.mode = mode
        self.restore_best = flag("restore_best", restore_best)
        self._is_partial = False
        self._forget()

    def _forget(self) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.waited = 0
        self._weights: dict[str, Tensor] | None = None
        self._has_stopped = False

    def begin_fit(self, run: Runner) -> None:
        """Start over."""
        self._forget()

    def begin_epoch(self, run: Runner) -> None:
        """Expect a whole epoch; end a resumed fit that had come to its end."""
        self._is_partial = False
        if self.waited >= self.patience:
            self._stop(run)

    def after_cancel_train(self, run: Runner) -> None:
        """Remember that numbers about the training may be missing."""
        self._is_partial = True

    def after_cancel_validate(self, run: Runner) -> None:
        """Remember that numbers about the validation may be missing."""
        self._is_partial = True

    def after_epoch(self, run: Runner) -> None:
        """Compare the epoch with the best one, and end the fit when patience is used up."""
        if run.outcome != "completed":
            return
        row = run.history[-1]
        if self.monitor not in row:
            if self._is_partial:
                return
            raise KeyError(
                f"EarlyStopping monitors {self.monitor!r}, but the history of epoch {run.epoch} "
                f"holds {', '.join(map(repr, row))}. Name one of these, or add a callback that "
                "writes it at a higher priority."
            )
        value = monitored(run, self.monitor, "EarlyStopping")
        if self._is_better(value):
            self.best, self.best_epoch, self.waited = value, run.epoch, 0
            if self.restore_best:
                self._weights = _copy_of(run.model)
            return
        self.waited += 1
        if self.waited >= self.patience:
            self._stop(run)

    def _stop(self, run: Runner) -> None:
        self._has_stopped = True
        run.token.cancel("fit", self._reason())

    def after_fit(self, run: Runner) -> None:
        """Put the best weights back."""
        has_ended_well = run.outcome == "completed" or (
            self._has_stopped and run.outcome == "cancelled"
        )
        if self._weights is None or not has_ended_well:
            return
        with torch.no_grad():
            for name, tensor in tensors_of(run.model).items():
                if name in self._weights:  # a buffer may have appeared since
                    tensor.copy_(self._weights[name])

    def _is_better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        gain = self.best - value if self.mode == "min" else value - self.best
        return gain > self.min_delta

    def _reason(self) -> str:
        if self.best is None:
            return f"{self.monitor} has been nan for {self.waited} epochs"
        return (
            f"{self.monitor} has not improved on {self.best:g} (epoch {self.best_epoch}) "
            f"for {self.waited} epochs"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its epoch and weights, and what is known of the epochs since."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "waited": self.waited,
            "weights": self._weights,
            "is_partial": self._is_partial,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.waited = state["waited"]
        self._weights, self._is_partial = state["weights"], state["is_partial"]


def _copy_of(model: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}
