"""Keeping the mode of the model right, module by module, and the log of the phase open."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from .callback import Callback, handler
from .optimizer_modes import set_optimizer_modes
from .phase_log import NO_PHASE, NoPhase, PhaseLog, merged
from .state import RunState

Modes = list[tuple[Any, bool]]
"""Modules, each with its ``training``."""

# Beside the models: a fit leaves a model in evaluation mode as a whole, and the next one may be
# another runner's (tests/test_modes.py: test_it_stays_so_in_a_fit_of_another_runner).
_KEPT_IN_EVAL: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Any]] = weakref.WeakKeyDictionary()


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
    ``model.backbone.eval()``. They stay so, in later fits of the model by any runner too, until
    ``model.train()`` is called. Any other model that is in evaluation mode as a whole is trained
    as a whole.

    It also opens and closes what ``run.log`` adds up, so that the averages stand in the row before
    anybody else hears of the end of the phase. Where a row is of the steps since the last
    validation, what is logged in training is averaged over these.
    """

    counts_within_batch = True
    priority = float("inf")  # everyone else is to find the mode right

    def __init__(self) -> None:
        self._kept_in_eval: Iterable[Any] = ()
        self._of_row: NoPhase = NO_PHASE  # what has been logged of a row that goes on

    def begin_fit(self, run: RunState) -> None:
        """Enter training mode."""
        self._kept_in_eval = _what_stays(run.model)
        self._of_row = NO_PHASE
        self._enter(run, None, training=True)

    def begin_epoch(self, run: RunState) -> None:
        """Enter training mode."""
        self._enter(run, None, training=True)

    def begin_train(self, run: RunState) -> None:
        """Enter training mode, and begin to log."""
        self._enter(run, "train", training=True)
        log, self._of_row = self._of_row, NO_PHASE
        run.phase_log = PhaseLog("train", run.phase_log) if log is NO_PHASE else log

    def begin_validate(self, run: RunState) -> None:
        """Enter evaluation mode, and begin to log."""
        self._enter(run, "validate", training=False)
        if run.validate_every is not None:
            self._complete_row(run)
        run.phase_log = PhaseLog(run.prefix, run.phase_log)

    def _complete_row(self, run: RunState) -> None:
        """Write what was logged in training since the last validation."""
        if run.phase_log is NO_PHASE:
            log, self._of_row = self._of_row, NO_PHASE
            log.write(run)
        else:
            run.phase_log = PhaseLog("train", run.phase_log.write(run))

    def begin_predict(self, run: RunState) -> None:
        """Enter evaluation mode."""
        self._enter(run, "predict", training=False)

    def after_fit(self, run: RunState) -> None:
        """Have everyone find the weights to evaluate with."""
        if run.learn is not None:  # somebody may emit the event himself, outside of a run
            set_optimizer_modes(run.opt, training=False)

    @handler(["after_train", "after_validate"])
    def write_log(self, run: RunState) -> None:
        """Write what was logged in the phase."""
        written, run.phase_log = run.phase_log, NO_PHASE  # which stays, should it fail
        if run.validate_every is not None and isinstance(written, PhaseLog) and written.is_of_train:
            self._of_row = written
        else:
            run.phase_log = written.write(run)

    def state_dict(self) -> dict[str, Any]:
        """Return what was logged in the current phase; nothing if nothing was."""
        logged = [] if self.run is None else self.run.phase_log.state()
        of_row = self._of_row.state()
        return {"logged": logged, "row": of_row} if any((*logged, *of_row)) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the averages of the phase in which the state was saved."""
        run = self.run
        if run is not None and state:
            run.phase_log.load(state["logged"])
            if state.get("row"):
                self._of_row = PhaseLog("train", NO_PHASE)
                self._of_row.load(state["row"])

    def state_for_rank(
        self, states: Sequence[dict[str, Any]], rank: int, size: int, phase: str | None
    ) -> dict[str, Any]:
        """Give the first rank what all have logged in a phase, and the others nothing."""
        known = [state for state in states if state]
        if not known or rank:
            return {}
        return {key: merged([state[key] for state in known]) for key in ("logged", "row")}

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


def _what_stays(model: Any) -> Iterable[Any]:
    """Return the parts of ``model`` that are to stay in evaluation mode while it is trained."""
    modes = modes_of(model)
    if not modes:
        return ()
    if getattr(model, "training", False):
        _KEPT_IN_EVAL[model] = weakref.WeakSet(part for part, training in modes if not training)
    # Else it is as its last fit left it, or as somebody who means all of it.
    return _KEPT_IN_EVAL.get(model, ())
