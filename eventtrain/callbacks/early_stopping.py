"""Ends a fit that has stopped getting better, and goes back to its best weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..arguments import flag, real_number, whole_number
from ..priorities import POLICY
from ..submodules import copies_of, set_tensors, tensors_of
from .shared.monitored import Mode, Monitored, MonitoringCallback

if TYPE_CHECKING:
    from ..runner import Runner


class EarlyStopping(MonitoringCallback):
    """Cancels the fit when a number in ``run.history`` has not improved for some epochs.

    It looks once a row: in ``after_epoch`` at ``POLICY``, and in a fit with ``validate_every`` in
    ``after_row``, where what is said here of epochs holds for validations. So whatever writes
    the history has to come before (``AvgStatsCallback`` does). A NaN is no
    improvement. Epochs that were cancelled are not judged, nor are those that
    lack the number because their training was cancelled, nor by numbers of a validation that was
    cancelled: they are of a part of the data.

    Args:
        monitor: The key in ``run.history[-1]``. Default ``"valid_loss"``.
        patience: Epochs without improvement after which the fit ends, at least 1.
        min_delta: A value counts as better when it differs by more than this, 0 or more.
        mode: ``"min"`` when lower is better, ``"max"`` when higher is. ``None`` (default) is
            ``"min"``; it must be said for a key that is called accuracy, f1, auc or the like.
        restore_best: Keep a copy of the best epoch's parameters and buffers on
            their devices, and put it into the model in ``after_fit`` when this
            callback ended the fit or the fit completed. A fit that something
            else cancelled, or that failed, keeps the weights it has. What is kept are the
            weights that gave the number: where ``EMA`` validates, its averages.

    Attributes:
        best: The best value so far; ``None`` before there is one.
        best_epoch: The epoch it comes from, counted from 0.
        best_step: How many steps had been taken then.
        waited: Epochs since then, or validations.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.
        ValueError: After an epoch: its row of the history has no such key.
        TypeError: After an epoch: what its row holds there is no number.
    """

    priority = POLICY

    monitored: Monitored

    def __init__(
        self,
        monitor: str = "valid_loss",
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Mode | None = None,
        restore_best: bool = True,
    ) -> None:
        if not 0 <= real_number("min_delta", min_delta) < math.inf:
            raise ValueError(f"min_delta must be finite and not negative, got {min_delta!r}")
        self.monitored = Monitored(monitor, mode, user="EarlyStopping")
        self.patience = whole_number("patience", patience, 1, "epochs")
        self.min_delta = min_delta
        self.restore_best = flag("restore_best", restore_best)
        self._forget()

    def _forget(self) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.best_step: int | None = None
        self.waited = 0
        self._weights: dict[str, Tensor] | None = None
        self._has_stopped = False

    def begin_fit(self, run: Runner) -> None:
        """Start over."""
        self._forget()

    def begin_epoch(self, run: Runner) -> None:
        """End a resumed fit that had come to its end."""
        if self.waited >= self.patience:
            self._stop(run)

    def end_row(self, run: Runner) -> None:
        """Compare the row with the best one, and end the fit when patience is used up."""
        if run.outcome != "completed":
            return
        value = self.reading(run)
        if value is None:
            return
        if self.monitored.is_better(value, self.best, self.min_delta):
            self.best, self.best_epoch, self.best_step = value, run.epoch, run.steps
            self.waited = 0
            if self.restore_best:
                self._weights = copies_of(
                    {**tensors_of(run.model), **(self.validated_weights_of(run) or {})}
                )
            return
        self.waited += 1
        if self.waited >= self.patience:
            self._stop(run)

    def _stop(self, run: Runner) -> None:
        self._has_stopped = True
        run.token.cancel("fit", self._reason(run.validate_every is not None))

    def after_fit(self, run: Runner) -> None:
        """Put the best weights back."""
        has_ended_well = run.outcome == "completed" or (
            self._has_stopped and run.outcome == "cancelled"
        )
        if self._weights is not None and has_ended_well:
            set_tensors(run.model, self._weights, replace_buffers=True)

    def _reason(self, is_by_steps: bool) -> str:
        key, waited = self.monitored.key, f"{self.waited} epochs"
        place = f"epoch {self.best_epoch}"
        if is_by_steps:
            waited, place = f"{self.waited} validations", f"step {self.best_step}"
        if self.best is None:
            return f"{key} has been nan for {waited}"
        return f"{key} has not improved on {self.best:g} ({place}) for {waited}"

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its epoch and weights, and what is known of the epochs since."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_step": self.best_step,
            "waited": self.waited,
            "weights": self._weights,
            "is_partial": self.is_cut_short,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.best_step = state.get("best_step")  # earlier formats lack it
        self.waited = state["waited"]
        self._weights, self.is_cut_short = state["weights"], state["is_partial"]
