"""Keeping the mode of the model right, module by module."""

from __future__ import annotations

import weakref
from typing import Any

from .callback import Callback
from .optimizer_modes import set_optimizer_modes
from .state import RunState

Modes = list[tuple[Any, bool]]
"""Modules, each with its ``training``."""


def modes_of(model: Any) -> Modes:
    """Return the modules of ``model`` with the modes that they are in; none of a function."""
    modules = getattr(model, "modules", None)
    if callable(modules):
        return [(module, module.training) for module in modules()]
    return [(model, model.training)] if hasattr(model, "training") else []


def set_modes(modes: Modes) -> None:
    """Put each module back into its mode."""
    for module, training in modes:
        module.training = training


class TrainEvalCallback(Callback):
    """Keeps ``run.in_train``, ``run.phase`` and the model's mode right; every runner has one.

    The model is in training mode from ``begin_fit`` or ``begin_epoch`` on, and
    in evaluation mode from ``begin_validate`` or ``begin_predict`` on. So is an optimizer that has
    modes, with ``train()`` and ``eval()`` (a schedule-free one); in ``after_fit`` it is in
    evaluation mode, and behind the run in the mode that it had before.

    Parts that are to stay in evaluation mode (normalization that keeps its statistics) are put
    there before the fit, while the model is in training mode: ``model.train()``, then
    ``model.backbone.eval()``. They stay so, in later fits of the model too, until
    ``model.train()`` is called. A model that is in evaluation mode as a whole is trained
    as a whole.
    """

    priority = float("inf")  # everyone else is to find the mode right

    def __init__(self) -> None:
        self._model: weakref.ref[Any] | None = None
        self._kept_in_eval: weakref.WeakSet[Any] = weakref.WeakSet()

    def begin_fit(self, run: RunState) -> None:
        """Enter training mode."""
        self._note_what_stays(run.model)
        self._enter(run, None, training=True)

    def begin_epoch(self, run: RunState) -> None:
        """Enter training mode."""
        self._enter(run, None, training=True)

    def begin_train(self, run: RunState) -> None:
        """Enter training mode."""
        self._enter(run, "train", training=True)

    def begin_validate(self, run: RunState) -> None:
        """Enter evaluation mode."""
        self._enter(run, "validate", training=False)

    def begin_predict(self, run: RunState) -> None:
        """Enter evaluation mode."""
        self._enter(run, "predict", training=False)

    def after_fit(self, run: RunState) -> None:
        """Have everyone find the weights to evaluate with."""
        set_optimizer_modes(run.opt, training=False)

    def _note_what_stays(self, model: Any) -> None:
        is_known = self._model is not None and self._model() is model
        modes = modes_of(model)
        if is_known and not getattr(model, "training", False):
            return  # as the last fit left it
        self._kept_in_eval = weakref.WeakSet()
        self._model = weakref.ref(model) if modes else None
        if modes and model.training:
            self._kept_in_eval.update(module for module, training in modes if not training)

    def _enter(self, run: RunState, phase: str | None, *, training: bool) -> None:
        run.phase = phase
        run.in_train = training
        train = getattr(run.model, "train", None)
        if train is not None:  # a plain function has no modes
            train(training)
        set_optimizer_modes(run.opt, training=training)
        if training:
            for module in self._kept_in_eval:
                module.training = False
