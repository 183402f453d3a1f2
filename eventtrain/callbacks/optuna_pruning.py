"""Ends a fit that Optuna would rather not see to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..priorities import POLICY
from .shared.extras import import_extra
from .shared.monitored import Mode, Monitored, MonitoringCallback

if TYPE_CHECKING:
    from ..runner import Runner


class OptunaPruning(MonitoringCallback):
    """Reports a number of each row to a trial, and cancels the fit when the trial is to be pruned.

    It reports once a row: in ``after_epoch`` at ``POLICY``, with the epoch as the step; in a fit
    with ``validate_every`` in ``after_row``, with the optimizer steps. Epochs that were cancelled
    are not reported, nor is what a cancelled validation measured. After the fit,
    ``check_pruned`` tells Optuna.

    On several processes rank 0 reports and asks, and all hear the answer: give the others ``None``
    for a trial. With Optuna's ``TorchDistributedTrial`` give each rank its own.

    Args:
        trial: What Optuna calls the objective with; anything with ``report(value, step)`` and
            ``should_prune()``.
        monitor: The key in ``run.history[-1]``. Default ``"valid_loss"``.
        mode: ``"min"`` when lower is better, ``"max"`` when higher is; it must be the direction of
            the study. ``None`` (default) takes that of the study; one that minimizes what is called
            accuracy, f1, auc or the like must have it said.

    Attributes:
        is_pruned: Whether the fit was ended for the trial.
        last: The step and the value that were reported last; ``None`` before that.

    Raises:
        TypeError: ``trial`` is none, or ``monitor`` is no text.
        ValueError: ``mode`` is not the direction of the study; or it is needed and missing; or the
            study has several objectives, which Optuna does not prune.
        ValueError: As a fit begins: the only rank, or rank 0, has no trial. After an epoch: its
            row of the history has no such key.
        TypeError: After an epoch: what its row holds there is no number.
    """

    priority = POLICY

    monitored: Monitored

    def __init__(self, trial: Any, monitor: str = "valid_loss", mode: Mode | None = None) -> None:
        asked = [getattr(trial, name, None) for name in ("report", "should_prune")]
        if isinstance(trial, type) or not (trial is None or all(map(callable, asked))):
            raise TypeError(
                f"OptunaPruning takes the trial that Optuna calls the objective with, got {trial!r}"
                ": def objective(trial): ... OptunaPruning(trial, 'valid_loss')"
            )
        direction = _direction(trial)
        named = None if direction == "min" else direction  # what the name says against "min" counts
        self.monitored = Monitored(monitor, mode or named, user="OptunaPruning")
        if direction is not None and direction != self.monitored.mode:
            other = "maximize" if self.monitored.mode == "max" else "minimize"
            raise ValueError(
                f"OptunaPruning(mode={mode!r}) and the study disagree, whose direction is the "
                f"other one: optuna.create_study(direction={other!r}), or leave mode out"
            )
        self.trial = trial
        self.is_pruned = False
        self.last: tuple[int, float] | None = None

    def begin_fit(self, run: Runner) -> None:
        """See that there is a trial where it is asked, and start over."""
        if self.trial is None and run.is_zero:
            raise ValueError(
                "OptunaPruning has no trial here, and this is the process that reports: None is "
                "for ranks other than 0"
            )
        self.is_pruned, self.last = False, None

    def begin_epoch(self, run: Runner) -> None:
        """End a resumed fit that was pruned."""
        if self.is_pruned:
            self._prune(run)

    def end_row(self, run: Runner) -> None:
        """Report the row's number, and end the fit if that was bad enough."""
        if run.outcome != "completed":
            return
        value, is_bad = self.reading(run), False
        if value is not None:
            assert run.epoch is not None
            self.last = run.epoch if run.validate_every is None else run.steps, value
            if self.trial is not None:
                self.trial.report(value, self.last[0])
                is_bad = bool(self.trial.should_prune())
        if run.world.sums([is_bad])[0]:  # of all, so all ask
            self._prune(run)

    def _prune(self, run: Runner) -> None:
        self.is_pruned = True
        where = ""
        if self.last is not None:
            step, value = self.last
            unit = "epoch" if run.validate_every is None else "step"
            where = f" at {self.monitored.key} {value:g} ({unit} {step})"
        run.token.cancel("fit", f"Optuna prunes the trial{where}")

    def check_pruned(self) -> None:
        """Tell Optuna that the trial was pruned: to be called in the objective, after the fit.

        Raises:
            optuna.TrialPruned: It was.
            ModuleNotFoundError: It was, and Optuna is not installed.
        """
        if self.is_pruned:
            optuna = import_extra("optuna", user="OptunaPruning", extra="optuna")
            step, value = self.last or (None, None)
            raise optuna.TrialPruned(f"{self.monitored.key} was {value} at {step}")

    def state_dict(self) -> dict[str, Any]:
        """Return what was reported last, and whether the fit was ended for it."""
        return {
            "is_pruned": self.is_pruned,
            "last": None if self.last is None else list(self.last),
            "is_partial": self.is_cut_short,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.is_pruned, last = state["is_pruned"], state["last"]
        self.last = None if last is None else (last[0], last[1])
        self.is_cut_short = state["is_partial"]


def _direction(trial: Any) -> Mode | None:
    """Return what the study of a trial calls better; ``None`` where it does not say."""
    directions = getattr(getattr(trial, "study", None), "directions", [])
    if len(directions) > 1:
        raise ValueError(
            f"OptunaPruning reports one number, and this study has {len(directions)} objectives: "
            "Optuna does not prune such, leave OptunaPruning out"
        )
    modes: dict[str, Mode] = {"MINIMIZE": "min", "MAXIMIZE": "max"}
    return modes.get(getattr(directions[0], "name", "")) if directions else None
