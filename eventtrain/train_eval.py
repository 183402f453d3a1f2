"""Keeping the mode of the model right."""

from __future__ import annotations

from .callback import Callback
from .state import RunState


class TrainEvalCallback(Callback):
    """Keeps ``run.in_train``, ``run.phase`` and the model's mode right; every runner has one.

    The model is in training mode from ``begin_fit`` or ``begin_epoch`` on, and
    in evaluation mode from ``begin_validate`` or ``begin_predict`` on.
    """

    priority = float("inf")  # everyone else is to find the mode right

    def begin_fit(self, run: RunState) -> None:
        """Enter training mode."""
        _enter(run, None, training=True)

    def begin_epoch(self, run: RunState) -> None:
        """Enter training mode."""
        _enter(run, None, training=True)

    def begin_train(self, run: RunState) -> None:
        """Enter training mode."""
        _enter(run, "train", training=True)

    def begin_validate(self, run: RunState) -> None:
        """Enter evaluation mode."""
        _enter(run, "validate", training=False)

    def begin_predict(self, run: RunState) -> None:
        """Enter evaluation mode."""
        _enter(run, "predict", training=False)


def _enter(run: RunState, phase: str | None, *, training: bool) -> None:
    run.phase = phase
    run.in_train = training
    train = getattr(run.model, "train", None)
    if train is not None:  # a plain function has no modes
        train(training)
