"""Checkpoints, from which a run goes on as if it had never stopped."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import absolute_path, flag, real_number, whole_number
from ..callback import handler
from ..cancellation import CancellationToken, Request
from ..checkpoints.files import list_checkpoints
from ..checkpoints.folder import CheckpointWriter, buffers_of
from ..checkpoints.kept_tensors import KeptTensors
from ..checkpoints.pace import Pace
from ..checkpoints.ranks import Ranks
from ..checkpoints.records import Record
from ..checkpoints.save_point import SavePoint
from ..checkpoints.shards import mesh_of
from ..checkpoints.snapshot import (
    take_snapshot,
    with_evaluation_weights,
    with_validated_weights,
)
from ..checkpoints.trainable_part import TrainablePart, WholeModel
from ..param_groups import gradients
from ..priorities import AFTER_EVERYONE, BEFORE_EVERYONE, CHECKPOINTS
from .shared.monitored import Mode, Monitored, MonitoringCallback, checked_mode
from .shared.readings import numbers_of

if TYPE_CHECKING:
    from ..runner import Runner


class Checkpoint(MonitoringCallback):
    """Saves the whole state of a run now and then, between two batches or two epochs.

    ``run.fit(epochs, learn, resume="auto")`` goes on from the newest one; model,
    optimizer, callbacks, counters, history, gradients and random numbers are
    put back, and the loader is brought to where it was, so that the run ends
    with the weights, bit for bit, that it would have ended with.

    A checkpoint is written whole or not at all, and checked by its SHA-256 sum
    when it is read. Saving reads everything from the device: it is the one thing here that
    waits for it.

    A fit that ends by request, whoever asked, leaves a checkpoint of its last whole step. A
    signal, a timer, another thread, or a handler that comes after the step ends the fit when
    the batch has ended; a second signal does not wait. A handler that comes before the
    step is obeyed at once, so that a step can be prevented; the checkpoint is then of the place
    before that batch, which is run again when the run goes on. (What else writes a line a batch
    shows such a batch twice.) A fit that fails leaves no checkpoint of its own.

    Args:
        folder: Where the files go, made if it is not there. Runs do not share one at a
            time; earlier checkpoints in it stay as they are.
        every_epochs: Save after every so many epochs; ``None`` for not at all. Default 1.
        every_steps: Save after every so many optimizer steps. Default ``None``.
        every_seconds: Save at the end of the first training batch for which so
            much time has passed since the last one. Default ``None``.
        keep_last: How many of the newest to keep, at least 1. With 2, the default,
            a damaged one leaves one to go back to.
        monitor: A key of ``run.history``'s rows; the checkpoints of the ``keep_best`` best
            epochs are kept besides. In a fit with ``validate_every`` each of its validations is
            saved too, and the best of these are kept. Needs ``every_epochs``. Default ``None``. The
            ``"model"`` in such a checkpoint has the weights that gave the number. Numbers of a
            validation that was cancelled do not count: they are of a part of the data.
        mode: Whether the smallest (``"min"``) or the largest (``"max"``) is best. ``None``
            (default) is ``"min"``; it must be said for a key that is called accuracy, f1, auc or
            the like.
        keep_best: How many of the best to keep. Default 1.
        asynchronous: Copy the state to host memory and write it in a thread while the
            run goes on. One is written at a time: the next one waits.
        trainable_only: Leave out the parameters of the model that need no gradient and are in no
            optimizer, such as what an adapter is for. Default ``False``. The model of a run that
            goes on must have the same ones; ``load_checkpoint(path)["model"]`` lacks them.

    Attributes:
        last: Path of the newest checkpoint of this fit, ``None`` before there is one.
        best: Path of the best by ``monitor``, ``None`` where there is none.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of range.
        ValueError: In ``begin_fit``: ``trainable_only`` leaves nothing out, or FSDP2 has divided
            the model.
        CheckpointError: In ``begin_fit``: the folder cannot be written to, or several processes
            have not the same one. Later: a checkpoint cannot be written. All processes raise it.
        ValueError: After an epoch or a validation: its row of the history has no key ``monitor``.
        TypeError: After an epoch or a validation: what its row holds there is no number.
    """

    held_in_run = ("_writer", "_phase_start", "_save_point", "_tensors")
    priority = CHECKPOINTS
    checkpoint_folder: Path

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every_epochs: int | None = 1,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        keep_last: int = 2,
        monitor: str | None = None,
        mode: Mode | None = None,
        keep_best: int = 1,
        asynchronous: bool = False,
        trainable_only: bool = False,
    ) -> None:
        for name, value in (
            ("every_epochs", every_epochs),
            ("every_steps", every_steps),
            ("keep_last", keep_last),
            ("keep_best", keep_best),
        ):
            if value is not None:
                whole_number(name, value, 1)
        if mode is not None:
            checked_mode(mode)
        if monitor is not None and every_epochs is None:
            raise ValueError("monitor needs every_epochs: it is known at the end of an epoch only")
        # Absolute: a handler may change the working directory.
        self.checkpoint_folder = Path(absolute_path("folder", folder))
        self.every_epochs, self.every_steps = every_epochs, every_steps
        self.keep_last, self.keep_best = keep_last, keep_best
        self.monitored = None if monitor is None else Monitored(monitor, mode, user="Checkpoint")
        self.asynchronous = flag("asynchronous", asynchronous)
        self.trainable_only = flag("trainable_only", trainable_only)
        self._part = TrainablePart() if trainable_only else WholeModel()
        self._writer: CheckpointWriter | None = None
        self._fit = ""
        self._phase_start: Mapping[str, Any] | None = None
        self._steps = 0
        self._row_saved = -1  # of the last row that is in a checkpoint: its step
        self._pace = Pace(math.inf)
        self.every_seconds = every_seconds
        self._is_phase_over = False
        self._is_within_batch = False  # a validation that somebody makes in after_batch
        self._save_point: SavePoint | None = None
        self._tensors: KeptTensors | None = None

    @property
    def every_seconds(self) -> float | None:
        """Seconds from one checkpoint to the next; may be set anew, on all processes alike."""
        return self._every_seconds

    @every_seconds.setter
    def every_seconds(self, seconds: float | None) -> None:
        if seconds is not None and not real_number("every_seconds", seconds) > 0:
            raise ValueError(f"every_seconds must be positive, got {seconds!r}")
        self._every_seconds = seconds
        self._pace.change_to(math.inf if seconds is None else seconds)

    @property
    def last(self) -> Path | None:
        """Path of the newest checkpoint of this fit."""
        records = self._records()
        return records[-1].path if records else None

    @property
    def best(self) -> Path | None:
        """Path of the best checkpoint of this fit by ``monitor``."""
        best = self._best(self._records())
        return best[0].path if best else None

    def report_parts(self) -> dict[str, Any]:
        """Return the records of this fit's checkpoints."""
        return {"checkpoints": self._records()}

    def state_dict(self) -> dict[str, Any]:
        """Return which fit the checkpoints belong to, and what they have of its epoch."""
        return {
            "fit": self._fit,
            "is_partial": self.is_cut_short,
            "row_saved": self._row_saved,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count the checkpoints that were there as this fit's own."""
        self._fit, self.is_cut_short = state["fit"], state["is_partial"]
        self._row_saved = state.get("row_saved", -1)  # earlier formats lack it
        if self._writer is not None:
            self._writer.fit = self._fit
        if self.run is not None:
            self._steps = self.run.steps  # those of the checkpoint: it was the last one

    def begin_fit(self, run: Runner) -> None:
        """Make the folder, and clear away what a killed run left half written."""
        self._part.check(run)
        self._writer = CheckpointWriter(
            self.checkpoint_folder, self._kept, asynchronous=self.asynchronous
        )
        world = run.world
        ranks = Ranks(world.exchange, world.rank, world.size)
        self._writer.begin(ranks, is_divided=mesh_of(run.model) is not None)
        self._fit = self._writer.fit
        self._steps, self._row_saved = run.steps, -1
        self._pace.restart()
        self._save_point, self._tensors = None, KeptTensors(run)
        self._is_within_batch = False
        if run.token.grant_by is None:  # otherwise others see to it that batches are ended
            run.token.grant_by = self._grant

    @handler("begin_validate", priority=float("inf"))
    def note_whether_within_batch(self, run: Runner) -> None:
        """See whether a batch has yet to end, so that what ends the fit waits for that.

        A run that goes on behind the batch does not make this validation anew.
        """
        is_asked_for = run.in_interlude and not run.rows.is_between_batches
        self._is_within_batch = is_asked_for and run.batch_index is not None

    @handler(["begin_train", "begin_validate"], priority=AFTER_EVERYONE)
    def note_random_states(self, run: Runner) -> None:
        """Keep the random numbers with which the loader is about to be iterated."""
        if run.epoch is None or run.in_interlude:
            return
        self._phase_start = run.starting_point.phase_start(run)
        if run.phase == "train" and not run.starting_point.is_yet_to_be_entered(run):
            self._note(run, run.epoch, "train", 0)

    @handler("after_batch", priority=float("inf"))
    def save_before_cut_batch(self, run: Runner) -> None:
        """Save the place before a batch in which the fit was cancelled: others yet may count."""
        if run.outcome != "cancelled" or not self._is_ending(run) or run.in_interlude:
            return
        place, tensors = self._save_point, self._tensors
        if place is None or tensors is None or place.is_saved or place.steps != run.steps:
            return
        if run.in_train and place.batches and tensors.parameters_have_changed():
            self._save_point = None
            warnings.warn(
                "the fit was cancelled in a batch that had changed parameters before its step, "
                "which running it again would do twice: no checkpoint of the last whole step is "
                f"written, and the newest is {self.last}. Cancel the fit after the step, or in "
                "begin_batch",
                RuntimeWarning,
                stacklevel=2,
            )
        self._save_place(run)

    def after_batch(self, run: Runner) -> None:
        """Save when it is time to, and where the run is about to end."""
        if self._is_within_batch:
            return
        pending = run.token.pending
        if pending is None or run.outcome == "failed":
            run.token.release()  # else an inner scope is being left, and its end is the place
        if "predict" in run.token.open_scopes:
            return  # a pass that somebody makes after the fit, and from which none goes on
        if run.in_interlude:
            return  # the run goes on before this validation, which is then made anew
        if run.epoch is None or run.phase is None or run.batch_index is None or not _is_whole(run):
            return
        place = run.epoch, run.phase, run.batch_index + 1
        if run.in_train and self._has_no_gradients(run):
            self._note(run, *place)
        if run.token.pending is not None:
            self._save_place(run) if _gradients_are_kept_apart(run) else self._save(run, *place)
        elif run.in_train and self._is_due(run):
            self._save(run, *place)

    @handler(["after_train", "after_validate"], priority=BEFORE_EVERYONE)
    def note_how_phase_ended(self, run: Runner) -> None:
        """Note whether the phase has ended, or is left for a scope around it."""
        self._is_phase_over = run.token.pending is None and run.outcome != "failed"

    @handler(["after_train", "after_validate"], priority=AFTER_EVERYONE)
    def save_at_phase_end(self, run: Runner) -> None:
        """Save where the fit is cancelled between two batches, or between the phases."""
        if self._is_within_batch:
            self._is_within_batch = False
            return
        run.token.release()
        if run.epoch is None or run.token.closing_error is not None or run.in_interlude:
            return
        # Gradients that are left may wait for a step of after_train that has been cut.
        is_trained = self._is_phase_over and run.phase == "train" and self._has_no_gradients(run)
        if self._is_ending(run) and is_trained:
            self._save(run, run.epoch, "validate", 0)
        elif self._is_ending(run):
            self._save_place(run)
        elif is_trained:
            self._note(run, run.epoch, "validate", 0)
            if self._is_row_due(run):
                self._save(run, run.epoch, "validate", 0)

    @handler("after_epoch", priority=BEFORE_EVERYONE)
    def save_before_cut_epoch(self, run: Runner) -> None:
        """Save the place before an epoch in whose ``begin_epoch`` the fit was cancelled."""
        if run.outcome == "cancelled" and self._is_ending(run):
            self._save_place(run)

    def after_row(self, run: Runner) -> None:
        """Save the row of a validation between two batches, where it may be of the best.

        Where somebody asked for it in ``after_batch``, other handlers have yet to hear of that.
        """
        run.token.release()
        if not run.rows.is_between_batches:
            return
        assert run.epoch is not None
        pending = run.token.pending
        is_ending = pending is not None and _ends_fit(pending.scope, run.token.open_scopes)
        if run.token.closing_error is not None or (pending is not None and not is_ending):
            return
        place = run.epoch, "train", 0 if run.batch_index is None else run.batch_index + 1
        if self._has_no_gradients(run):
            self._note(run, *place)
        if is_ending or self._is_row_due(run):
            self._save(run, *place)

    @handler("after_row", priority=AFTER_EVERYONE)
    def release_what_waits(self, run: Runner) -> None:
        """Have what was asked for by then take effect: no handler of the epoch comes after."""
        run.token.release()

    def after_epoch(self, run: Runner) -> None:
        """Save every so many epochs."""
        run.token.release()
        assert run.epoch is not None
        if not _is_whole(run):
            return
        self._note(run, run.epoch + 1, None, 0)
        due = self.every_epochs is not None and (run.epoch + 1) % self.every_epochs == 0
        if due or run.extent.is_last_epoch(run) or run.token.pending is not None:
            self._save(run, run.epoch + 1, None, 0)

    def after_fit(self, run: Runner) -> None:
        """Save where the fit was cancelled last of all; wait until everything is written."""
        if run.token.grant_by == self._grant:
            run.token.grant_by = None
        run.token.release()
        if run.outcome == "cancelled":
            self._save_place(run)
        self._phase_start = self._save_point = self._tensors = None
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.end()

    # When

    def _grant(self, request: Request) -> None:
        """Have what ends the fit wait for the end of the batch, unless it may prevent a step."""
        run = self.run
        assert run is not None
        token: CancellationToken = run.token
        scopes = token.open_scopes
        place = self._save_point
        # A scaler has looked at the gradients of a step that was cancelled, and adapts its scale.
        is_past_step = request.cancellation.event == "after_cancel_step" or (
            place is not None and place.steps != run.steps
        )
        may_wait = "batch" in scopes or token.outcome is not None  # in a closing event
        waits = is_past_step or not request.is_by_handler or self._is_within_batch
        is_in_time = may_wait or self._is_within_batch
        if is_in_time and waits and _ends_fit(request.cancellation.scope, scopes):
            token.hold_back(request)
        else:
            token.grant(request)

    def _is_ending(self, run: Runner) -> bool:
        pending = run.token.pending
        return pending is not None and _ends_fit(pending.scope, run.token.open_scopes)

    def _has_no_gradients(self, run: Runner) -> bool:
        """Whether no gradient waits for a step, so that the run can go on from here without."""
        place = self._save_point
        if place is not None and place.steps != run.steps:
            return True  # a step zeroes them
        if _gradients_are_kept_apart(run):
            return False
        return next(gradients(run), None) is None

    def _is_due(self, run: Runner) -> bool:
        if _gradients_are_kept_apart(run):
            return False  # nobody can read them; the batch that steps comes soon
        is_time = self.every_seconds is not None and self._pace.is_due(_agreement_on_time(run))
        is_step = self.every_steps is not None and run.steps - self._steps >= self.every_steps
        return is_time or is_step or self._is_row_due(run)

    def _is_row_due(self, run: Runner) -> bool:
        is_by_steps = run.validate_every is not None
        return self.monitored is not None and is_by_steps and self._is_of_row(run, None)

    def _is_of_row(self, run: Runner, phase: str | None) -> bool:
        """Whether the last row is of the weights that are there now, and not in a checkpoint."""
        if run.validate_every is None:
            return phase is None
        step = run.history[-1].get("step") if run.history else None
        return step == run.steps != self._row_saved

    # What

    def _note(self, run: Runner, epoch: int, phase: str | None, batch: int) -> None:
        assert self._tensors is not None
        state = run.starting_point.loader_state(phase, batch)
        self._save_point = SavePoint(run, self._tensors, epoch, phase, batch, state)

    def _save_place(self, run: Runner) -> None:
        """Save the last place from which the run can go on."""
        place = self._save_point
        if place is None or not place.batches or place.is_saved or place.steps != run.steps:
            return
        phase_start = self._phase_start if place.phase == "train" else None
        forms = run.starting_point.loader_forms
        self._write(
            run,
            lambda: place.snapshot(run, phase_start, forms),
            (place.epoch, place.phase, place.batch),
        )

    def _save(self, run: Runner, epoch: int, phase: str | None, batch: int) -> None:
        start = self._phase_start if phase is not None else None

        def take() -> dict[str, Any]:
            return take_snapshot(
                run,
                epoch=epoch,
                phase=phase,
                batch=batch,
                phase_start=start,
                loader_forms=run.starting_point.loader_forms,
                loader_state=run.starting_point.loader_state(phase, batch),
            )

        self._write(run, take, (epoch, phase, batch))

    def _write(
        self,
        run: Runner,
        take: Callable[[], dict[str, Any]],
        place: tuple[int, str | None, int],
    ) -> None:
        writer, (epoch, phase, batch) = self._writer, place
        assert writer is not None

        def take_with_record() -> tuple[Record, dict[str, Any]]:
            is_of_row, is_by_steps = self._is_of_row(run, phase), run.validate_every is not None
            if is_of_row and is_by_steps:
                self._row_saved = run.steps
            content = take()
            metrics = numbers_of(run.history[-1], is_by_steps=is_by_steps)
            if self.monitored is not None:
                metrics.pop(self.monitored.key, None)
                value = self.reading(run) if is_of_row else None
                metrics |= {} if value is None else {self.monitored.key: value}
            weights = self.validated_weights_of(run) if is_of_row else None
            if weights is not None:
                content = with_validated_weights(content, run, weights)
            else:
                content = with_evaluation_weights(content, run)
            content = self._part.of(content, run)
            about = Record(Path(), 0, writer.fit, epoch, phase, batch, run.steps, metrics)
            return about, content

        writer.write(take_with_record, buffers_of(run.model))
        self._steps = run.steps
        self._pace.restart()
        if self._save_point is not None:
            self._save_point.is_saved = True

    def _records(self) -> list[Record]:
        return [r for r in list_checkpoints(self.checkpoint_folder) if r.fit == self._fit]

    def _kept(self, records: list[Record]) -> list[Record]:
        return [*records[-self.keep_last :], *self._best(records)]

    def _best(self, records: list[Record]) -> list[Record]:
        if self.monitored is None:
            return []
        key = self.monitored.key
        return self.monitored.best_of(records, self.keep_best, lambda each: each.metrics.get(key))


def _ends_fit(scope: str, open_scopes: tuple[str, ...]) -> bool:
    """Whether a request for ``scope`` ends the fit: it is the fit, or a scope around it."""
    around = open_scopes[: open_scopes.index("fit") + 1] if "fit" in open_scopes else ()
    return scope in around


def _is_whole(run: Runner) -> bool:
    """Whether the batch or epoch that ends here leaves a state from which a run can go on."""
    if run.token.closing_error is not None:
        return False  # another handler has not done what it had to do
    pending = run.token.pending
    if pending is not None:
        # An inner scope is being left: its next batches would not be run, but be resumed.
        return run.outcome == "completed" and _ends_fit(pending.scope, run.token.open_scopes)
    return run.outcome in ("completed", "cancelled")


def _gradients_are_kept_apart(run: Runner) -> bool:
    """Whether gradients wait for a step where they cannot be read, as in FSDP2 between groups."""
    sync = run.world.gradient_sync
    return sync.keeps_apart() and not sync.is_on


def _agreement_on_time(run: Runner) -> Callable[[float], float] | None:
    """Return what makes the seconds of rank 0 those of all; ``None`` where a process is alone."""
    if run.world.size == 1:
        return None
    exchange = run.world.exchange
    return lambda seconds: float(json.loads(exchange(json.dumps(seconds))[0]))
