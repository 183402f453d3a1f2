"""What those have in common that tell a tracker of fits: when, and what."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...arguments import absolute_path, flag
from ...callback import handler, listify
from ...errors import describe
from ...priorities import AFTER_EVERYONE, BEFORE_EVERYONE, REPORTS
from .row_ends import RowCallback, RowClock

if TYPE_CHECKING:
    from ...state import RunState

# Nothing here imports torch before a fit begins: those who list plugins do not wait for it.

_MOST_CANCELLATIONS = 20  # that are written down, the last of them
SIGNALS = ("SIGINT", "SIGTERM")
PARTIAL = "partial/"
"""Before the names of a row that a fit which goes on will measure whole."""


class Tracker(RowCallback):
    """Tells a tracker what is trained, the rows as they come, and how it ended.

    A subclass has ``start``, ``send_row`` and ``finish``, called in the loop, which must not wait
    long there and must not raise for what a server or a network does. On several processes rank 0
    alone calls them.

    Args:
        params: What is written down besides what the run is of, by name; it wins where a name is of
            both.
        system: Have the tracker record processor, memory and GPU.
        checkpoints: Hand the newest and the best checkpoint over when the fit ends.
        artifacts: Files and folders to hand over when the fit ends.
        fork: Go on from a checkpoint as a new run.

    Attributes:
        run_id: What the tracker calls the run of this fit, or of the last one; ``None`` as long as
            that is not known.
        forked_from: With ``fork``, the run that the checkpoint was of.
    """

    priority = REPORTS
    ranks = "zero"

    def __init__(
        self,
        params: Mapping[str, Any] | None,
        *,
        system: bool,
        checkpoints: bool,
        artifacts: Any,
        fork: bool,
    ) -> None:
        if not (params is None or isinstance(params, Mapping)):
            raise TypeError(f"params must be a mapping of names to values, got {params!r}")
        self.params = {str(name): value for name, value in (params or {}).items()}
        self.system, self.checkpoints = flag("system", system), flag("checkpoints", checkpoints)
        self.fork = flag("fork", fork)
        paths = [artifacts] if isinstance(artifacts, (str, Path)) else listify(artifacts)
        self.artifacts = [Path(absolute_path("artifacts", path)) for path in paths]
        self.run_id: str | None = None
        self.forked_from: str | None = None
        self._continued: dict[str, Any] = {}  # the state to go on from, until the run is started
        self._added: list[Path] = []
        self._is_noted = self._is_started = False
        self._known = 0
        self._began = 0.0
        self._clock = RowClock()

    # What a subclass does

    def start(self, run: RunState, continued: Mapping[str, Any]) -> None:
        """Begin a run of the tracker's, or go on with one.

        Args:
            run: Which has begun.
            continued: The state that a checkpoint had of this callback; empty for a new run.
        """
        raise NotImplementedError

    def send_row(self, steps: int, epoch: int, row: Mapping[str, float]) -> None:
        """Hand over a row; one that was not completed has ``PARTIAL`` before its names.

        Args:
            steps: Optimizer steps of the fit until then.
            epoch: The row's.
            row: Its numbers by name.
        """
        raise NotImplementedError

    def finish(self, outcome: Mapping[str, Any], artifacts: Iterable[Path]) -> None:
        """Hand over how the fit ended, and end the run.

        Args:
            outcome: What ``outcome_of`` returns.
            artifacts: Files and folders to hand over.
        """
        raise NotImplementedError

    # When

    @handler("begin_fit", priority=BEFORE_EVERYONE)
    def note_beginning(self, run: RunState) -> None:
        """Note when the fit begins, before anything of it can fail."""
        self.run_id = None
        self._is_noted, self._is_started = True, False
        self._known, self._began = run.token.accepted, time.perf_counter()
        self._clock, self._added = RowClock(), []

    def begin_fit(self, run: Any) -> None:
        """Start, unless a checkpoint has yet to say as which run."""
        if not run.starting_point.is_yet_to_be_entered(run):
            self._start(run)

    def _start(self, run: RunState) -> None:
        if self._is_started:
            return
        self._is_started = True  # first: what fails here is not tried again
        continued, self._continued = self._continued, {}
        self.forked_from = continued.get("run_id") if self.fork else None
        self.start(run, {} if self.fork else continued)

    def begin_epoch(self, run: Any) -> None:
        """Start the epoch's clock."""
        self._clock.begin_epoch(run)

    def end_row(self, run: Any) -> None:
        """Hand the row over."""
        self._start(run)
        row = row_of(run, self._clock.lap(run))
        if not ends_with_fit(run):
            self.send_row(run.steps, run.epoch, row)
        elif len(run.history[-1]) > 1:  # something was measured
            self.send_row(run.steps, run.epoch, {f"{PARTIAL}{k}": v for k, v in row.items()})
        if run.validate_every is None:
            self._clock = RowClock()

    @handler("after_fit", priority=AFTER_EVERYONE)
    def finish_fit(self, run: RunState) -> None:
        """Hand over how it ended, after checkpoints and whatever else is written at the end."""
        is_noted, self._is_noted = self._is_noted, False
        if not is_noted:  # it ended before this callback's turn to begin
            return
        self._start(run)
        outcome = outcome_of(run, self._known, time.perf_counter() - self._began)
        saved = checkpoint_files(run) if self.checkpoints else []
        self.finish(outcome, [*saved, *self.artifacts, *self._added])

    def add_artifact(self, path: Any) -> None:
        """Have a file or folder handed over when the fit ends, whatever it holds by then.

        Args:
            path: Where it is.
        """
        self._added.append(Path(absolute_path("path", path)))

    def state_dict(self) -> dict[str, Any]:
        """Return which run of the tracker's it is."""
        return {"run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the run of the checkpoint."""
        self._continued = dict(state)
        run = self.run
        if self._is_noted and run is not None and self.runs_here:
            self._start(run)

    def all_params(self, run: RunState) -> dict[str, Any]:
        """Return what is to be written down of ``run``, and what the user has added."""
        from .description import describe_run

        own = f"callbacks.{self.name}"  # whose options say nothing of the training
        found = {k: v for k, v in describe_run(run).items() if not k.startswith(f"{own}.")}
        return {**found, **self.params}


def look_for(package: str, user: str, extra: str | None = None) -> None:
    """See that a package is installed, without the time that importing it takes.

    Args:
        package: Its name.
        user: Who needs it, for the message.
        extra: The extra of eventtrain that brings it; ``None`` (default): the one of that name.

    Raises:
        ModuleNotFoundError: It is missing; the message says how to install it.
    """
    if find_spec(package) is None:
        message = f'{user} needs {package}: pip install "eventtrain[{extra or package}]"'
        raise ModuleNotFoundError(message, name=package)


def row_of(run: RunState, seconds: float | None) -> dict[str, float]:
    """Return the numbers of the row that is complete, with its epoch, its time and the rates.

    Args:
        run: In ``after_epoch`` or ``after_row``.
        seconds: Wall time of the row; ``None`` where it is not known.
    """
    from .readings import labelled_hyperparameters, numbers_of, to_host

    rates = {
        f"lr/{label}".rstrip("/"): rate
        for label, rate in to_host(labelled_hyperparameters(run.opt, "lr")).items()
        if isinstance(rate, (int, float))
    }
    row = numbers_of(run.history[-1], is_by_steps=run.validate_every is not None)
    own = {} if seconds is None else {"seconds": seconds}
    return {**rates, **own, **row, "epoch": float(run.epoch or 0)}


def ends_with_fit(run: RunState) -> bool:
    """Whether the row is not complete and never will be, as the fit is left in it."""
    is_left = run.outcome == "cancelled" and run.token.pending is not None
    return run.outcome == "failed" or is_left


def outcome_of(run: RunState, known: int, seconds: float) -> dict[str, Any]:
    """Return how a fit ended: what, why, who asked for it and where.

    Args:
        run: In ``after_fit``.
        known: ``run.token.accepted`` when the fit began.
        seconds: Since then.

    Returns:
        Plain data, ``None`` for what there is not: ``outcome``, ``reason``; ``by``, ``event``,
        ``epoch``, ``batch``, ``rank`` of the cancellation that ended it; ``where`` of the
        exception; ``epochs``, ``steps``, ``seconds``; ``cancellations``, the last of them, and
        their number at ``cancelled``.
    """
    names = ("reason", "where", "by", "event", "epoch", "batch", "rank")
    found: dict[str, Any] = {"outcome": run.outcome, **dict.fromkeys(names)}
    if run.exception is not None:
        found |= _of_exception(run.exception)
    elif run.outcome == "cancelled" and run.token.absorbed is not None:
        found |= _of_cancellation(run.token.absorbed, ("reason", "by", "event", "epoch", "batch"))
    requests = run.token.accepted_since(known)
    fields = ("scope", "reason", "by", "event", "epoch", "batch", "time", "rank")
    return {
        **found,
        "epochs": run.epochs_done,
        "steps": run.steps,
        "seconds": seconds,
        "cancelled": run.token.accepted - known,
        "cancellations": [_of_cancellation(c, fields) for c in requests[-_MOST_CANCELLATIONS:]],
    }


def _of_cancellation(cancellation: Any, fields: Iterable[str]) -> dict[str, Any]:
    found = {name: getattr(cancellation, name) for name in fields}
    rank = cancellation.rank
    return found if rank is None else {**found, "rank": rank}


def _of_exception(error: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames[-1:]]
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    return {"reason": describe(error), "where": "\n".join([*where, *notes])}


def checkpoint_files(run: RunState) -> list[Path]:
    """Return the files and folders of the newest and the best checkpoint of a fit."""
    owners = [callback for callback in run.cbs if callback.checkpoint_folder is not None]
    names = ("last", "best")  # asked of the class, as a callback that lacks them asks the run
    paths = [getattr(own, name) for own in owners for name in names if hasattr(type(own), name)]
    found = {path for path in paths if path is not None}
    return sorted(each for path in found for each in path.parent.glob(f"{path.stem}.*"))
