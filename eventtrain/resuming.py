"""Where a run starts: at its beginning, or where an interrupted one was saved."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .around import around
from .checkpoints.compatibility import check_fits
from .checkpoints.files import list_checkpoints, shards_path
from .checkpoints.form import check_form, check_position
from .checkpoints.loader_place import Place, rest_of_loader
from .checkpoints.optimizer_state import check_optimizer
from .checkpoints.rank_states import StateForRank
from .checkpoints.reading import is_folder, load_for_rank, none_whole_in
from .checkpoints.restore_point import RestorePoint
from .checkpoints.shards import divided, mesh_of, with_shards
from .checkpoints.snapshot import (
    loader_forms,
    random_states,
    restore_learner,
    restore_rest,
    set_random_states,
)
from .checkpoints.stateful_loaders import Said, StatedBatches, stated_batches
from .checkpoints.trainable_part import with_frozen_part
from .data.workers import batches_of
from .distributed.gathering import gather_text
from .distributed.reductions import OneProcess, joined_world
from .errors import CheckpointError
from .optimizer_modes import set_optimizer_modes
from .optimizers import named_optimizers
from .state import RunState


class FromTheStart:
    """What the loop asks where it begins; here, at the beginning.

    Attributes:
        epoch: Where the loop over epochs starts.
        loader_forms: What the loaders were like before handlers of the fit wrapped or changed them.
        is_continued: Whether the fit was asked to go on from a checkpoint, if there is one.
    """

    epoch = 0
    is_continued = False

    def __init__(self) -> None:
        self.loader_forms: list[dict[str, Any] | None] = [None, None]
        self._is_saved = False
        self._said: dict[str | None, Said] = {}  # by phase, of loaders that keep state

    def check(self, run: RunState) -> None:
        """See that the run can start here, before anything of it is changed."""
        if any(callback.checkpoint_folder is not None for callback in run.cbs):
            self.loader_forms = loader_forms(run)
            self._is_saved = True

    def told(self) -> dict[str, Any] | None:
        """Return from where the run goes on, as plain data; ``None`` where it was not to go on."""
        if not self.is_continued:
            return None
        return {"from": None, "epoch": 0, "phase": None, "batch": 0, "steps": 0}

    def enter_fit(self, run: RunState) -> None:
        """Put back what belongs to the fit, once ``begin_fit`` has fired."""

    def enter_epoch(self, run: RunState) -> bool:
        """Put back what belongs to the epoch, once ``begin_epoch`` has fired.

        Returns:
            Whether the training of this epoch was done before the run was interrupted.
        """
        return False

    def validations(self, run: RunState) -> list[str | None]:
        """Return the names of the loaders that are yet to be validated on, in order."""
        return list(run.valid_loaders)

    def is_yet_to_be_entered(self, run: RunState) -> bool:
        """Whether ``run`` still has to be brought to where it was saved."""
        return False

    def rest_of(self, loader: Iterable[Any], run: RunState) -> tuple[Iterable[Any], int]:
        """Return the batches of the current phase that are to be run, and how many were."""
        stated = stated_batches(loader, run.token) if self._is_saved else None
        self._said[run.phase] = stated.said if stated is not None else Said()
        return stated or batches_of(loader, run.token), 0

    def loader_state(self, phase: str | None, batch: int) -> Any:
        """Return what a loader that keeps state said of itself before the last batch of a phase.

        Args:
            phase: Which one.
            batch: How many of its batches are done.
        """
        return self._said.get(phase, Said()).before if batch else None

    def phase_start(self, run: RunState) -> Mapping[str, Any] | None:
        """Return the random states from which the loader of the current phase is iterated."""
        return random_states(run)


class Resumption(FromTheStart):
    """The way back to where a snapshot was taken.

    A snapshot in the middle of a phase has the loader iterated anew with the random numbers
    that it had when the phase began, and brought behind the batches that were done
    (``rest_of_loader``): so any loader resumes, whatever its order and its workers. The last of
    these batches must be the one that it was; on another number of processes, where the loader must
    be one whose batches are those of all, the order must be.

    Args:
        content: What ``take_snapshot`` returned.
        origin: Where it comes from, for messages.
        shards: Where the tensors are that lie divided, if any do.

    Attributes:
        epoch, phase, batch: Where the run goes on; ``phase`` is ``None`` between epochs.
    """

    def __init__(self, content: dict[str, Any], origin: str, shards: Path | None = None) -> None:
        super().__init__()
        self._shards = shards
        self.epoch: int = content["position"]["epoch"]
        self.phase: str | None = content["position"]["phase"]
        self.batch: int = content["position"]["batch"]
        self._phase_start: Mapping[str, Any] | None = content["phase_start"]
        self._undo: RestorePoint | None = None
        self._content = content  # empty once it has been put back
        self.is_continued = True
        self._origin = origin

    def check(self, run: RunState) -> None:
        """See that the snapshot fits the run, before anything of it is changed.

        Raises:
            CheckpointError: It is another run's, or lies behind the last epoch.
        """
        super().check(run)
        self._fetch_shards(run)
        check_form(self._content, set(run.counters()), self._origin)
        self._content = with_frozen_part(self._content, run, self._origin)
        check_fits(self._content, run, self._origin)
        if self.batch and self._content.get("world_size", 1) != run.world.size:
            assert self._phase_start is not None
            # From there on this number of processes loads, and may have to do so once more.
            self._phase_start = {**self._phase_start, "begun_at": self.batch - 1}

    def _fetch_shards(self, run: RunState) -> None:
        """Have all tensors be there, divided as the model's are."""
        mesh = mesh_of(run.model)
        if self._shards is not None and self._content.get("shards"):
            self._content = with_shards(self._content, self._shards, mesh)
        if mesh is not None:
            self._content = divided(self._content, run.model)

    def told(self) -> dict[str, Any]:
        """Return from where the run goes on, as plain data; before everything has been put back."""
        place = {"epoch": self.epoch, "phase": self.phase, "batch": self.batch}
        return {"from": self._origin, **place, "steps": self._content["counters"]["steps"]}

    def enter_fit(self, run: RunState) -> None:
        """Put everything back once ``begin_fit`` has fired.

        What stands in the current epoch's row follows when the phase is entered.
        """
        self._undo = _restore_point(run)
        with self._undone_if_refused(run):
            check_optimizer(
                self._content, run, self._origin, may_lack_groups=self.phase is not None
            )
            self._restore_learner(run)
            rows = [dict(row) for row in self._content["history"]]
            run.history[:] = rows if self.phase is None else rows[:-1]
            if self.phase is None:
                self._restore_rest(run)

    def enter_epoch(self, run: RunState) -> bool:
        """Put everything back if training had just ended; return whether it had, or before.

        What was interrupted within a phase follows when that is entered.
        """
        is_trained = self._is_to_be_resumed_in(run) and self.phase != "train"
        if is_trained and not self.batch:
            with self._undone_if_refused(run):
                check_optimizer(self._content, run, self._origin)
                self._restore_all(run)
        return is_trained

    def validations(self, run: RunState) -> list[str | None]:
        """Return the names from that on at which the run was interrupted."""
        names = super().validations(run)
        if not (self.batch and self.phase == "validate" and self._is_to_be_resumed_in(run)):
            return names
        return names[names.index(self._content.get("valid_name")) :]

    def is_yet_to_be_entered(self, run: RunState) -> bool:
        """Whether there is anything that has not been put back."""
        return bool(self._content)

    def rest_of(self, loader: Iterable[Any], run: RunState) -> tuple[Iterable[Any], int]:
        """Return the rest of the batches of the phase, everything else being put back.

        Raises:
            CheckpointError: The loader has fewer batches than were done, or other ones.
        """
        if not (self._is_to_be_resumed_in(run) and self.phase == run.phase):
            return super().rest_of(loader, run)
        if not self.batch:  # the loader draws its order while it gives the first batch
            with self._undone_if_refused(run):
                check_optimizer(self._content, run, self._origin)
                self._restore_all(run)
                set_optimizer_modes(run.opt, training=run.in_train)
            return super().rest_of(loader, run)
        start = self._phase_start
        assert start is not None  # as check_position has seen
        place = self._place_in(run, start)
        with self._undone_if_refused(run):
            check_optimizer(self._content, run, self._origin)
            set_random_states(run, start)
            batches = rest_of_loader(loader, run.token, place)
            if isinstance(batches, StatedBatches):
                self._said[run.phase] = batches.said
            self._restore_all(run)
            set_optimizer_modes(run.opt, training=run.in_train)
        return batches, self.batch

    def _place_in(self, run: RunState, start: Mapping[str, Any]) -> Place:
        index = 0 if run.in_train else 1 + list(run.valid_loaders).index(run.valid_name)
        state = start["loaders"][index]
        return Place(
            phase=str(run.phase),
            batch=self.batch,
            begun_at=start.get("begun_at", 0),
            order=state.get("order") if isinstance(state, Mapping) else None,
            last_batch=self._content.get("last_batch"),  # earlier formats lack it
            worlds=(self._content.get("world_size", 1), run.world.size),
            origin=self._origin,
            state=self._content.get("loader_state"),  # earlier formats lack it
        )

    def phase_start(self, run: RunState) -> Mapping[str, Any] | None:
        """Return the states of the interrupted run, in the phase that is being resumed."""
        if self._is_to_be_resumed_in(run) and self.phase == run.phase:
            return self._phase_start
        return super().phase_start(run)

    def _is_to_be_resumed_in(self, run: RunState) -> bool:
        return bool(self._content) and self.phase is not None and self.epoch == run.epoch

    def _restore_learner(self, run: RunState) -> None:
        with self._as_misfit("model, loss function or optimizer"):
            restore_learner(run, self._content)
        run.set_counters(self._content["counters"])

    def _restore_all(self, run: RunState) -> None:
        self._restore_learner(run)
        run.history[-1].update(self._content["history"][-1])
        self._restore_rest(run)

    def _restore_rest(self, run: RunState) -> None:
        with self._as_misfit("gradients, callbacks or random numbers"):
            restore_rest(run, self._content)
        self._content = {}  # as large as model and optimizer, and the fit holds on to this object
        self._undo = None

    @around
    def _as_misfit(self, parts: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise CheckpointError(
                f"{self._origin} holds what does not fit this run's {parts}: "
                f"{type(error).__name__}: {error}. Resume with the program that saved it"
            ) from error

    @around
    def _undone_if_refused(self, run: RunState) -> Iterator[None]:
        """Leave learner and random numbers as they were, should the run not go on after all."""
        try:
            yield
        except BaseException:
            if self._undo is not None:
                self._undo.restore(run)
            raise


def _restore_point(run: RunState) -> RestorePoint | None:
    """Copy what is about to be replaced, where that can be done before the first batch."""
    if not all(isinstance(opt, torch.optim.Optimizer) for _, opt in named_optimizers(run.opt)):
        return None
    try:
        return RestorePoint(run, on_host=True)
    except TypeError:  # a lazy module has nothing yet
        return None


def find_start(run: RunState, resume: str | os.PathLike[str] | None) -> FromTheStart:
    """Return where a fit of ``run`` starts.

    Args:
        run: Whose ``Checkpoint`` callback ``"auto"`` stands for.
        resume: As for ``Runner.fit``.

    Raises:
        TypeError: ``resume`` is something else, ``True`` say.
        ValueError: ``"auto"`` finds no ``Checkpoint``.
        CheckpointError: The checkpoint is missing or damaged.
    """
    if resume is None:
        return FromTheStart()
    if not isinstance(resume, (str, os.PathLike)):
        raise TypeError(
            f"resume must be a path or 'auto', got {resume!r}: 'auto' goes on from the newest "
            "checkpoint of this run's Checkpoint callback, and starts afresh without one"
        )
    path = Path(resume)
    if resume == "auto":
        folders = [cb.checkpoint_folder for cb in run.cbs if cb.checkpoint_folder is not None]
        if len(folders) != 1:
            raise ValueError(
                f"resume='auto' needs one Checkpoint callback and this run has {len(folders)}: "
                "pass the path of a checkpoint or of a folder of them"
            )
        path = folders[0]
    found = _find(path, run, is_auto=resume == "auto")
    if found is None:
        start = FromTheStart()
        start.is_continued = True
        return start
    content, file = found
    origin = f"checkpoint {path}"
    check_position(content, origin)
    return Resumption(content, origin, shards_path(file))


def _find(path: Path, run: RunState, *, is_auto: bool) -> tuple[dict[str, Any], Path] | None:
    """Return the newest content that all ranks can read, and its file; collective.

    Rank 0 alone says which checkpoints there are: another rank may see an older state of the
    folder.
    """
    world = joined_world()
    states = {callback.name: callback.state_for_rank for callback in run.cbs}
    names = _said_by_zero(path, world, is_auto=is_auto)
    for name in names:
        file = path if name is None else path / name
        content, error = _loaded(file, world, states)
        errors = gather_text(error, world)
        if not any(errors) and content is not None:
            return content, file
        failed = [f"rank {rank}: {each}" for rank, each in enumerate(errors) if each]
        text = errors[0] if world.size == 1 else "; ".join(failed)
        if name is None:
            raise CheckpointError(text)
        if world.rank == 0:
            warnings.warn(f"{text}; the one before it is tried", RuntimeWarning, stacklevel=4)
    if not names and is_auto:
        return None
    raise none_whole_in(path, len(names))


def _loaded(
    file: Path, world: OneProcess, states: Mapping[str, StateForRank]
) -> tuple[dict[str, Any] | None, str]:
    try:
        return load_for_rank(file, world.rank, world.size, states), ""
    except CheckpointError as error:
        return None, str(error)


def _said_by_zero(path: Path, world: OneProcess, *, is_auto: bool) -> list[str | None]:
    """Return the names of what rank 0 finds in a folder, newest first; ``None`` for a file."""
    said: dict[str, Any] = {}
    if world.rank == 0:
        try:
            if is_auto or is_folder(path):
                said["names"] = [each.path.name for each in reversed(list_checkpoints(path))]
            else:
                said["names"] = [None]
        except CheckpointError as error:
            said["error"] = str(error)
    said = json.loads(gather_text(json.dumps(said), world)[0])
    if "error" in said:
        raise CheckpointError(said["error"])
    return said["names"]  # type: ignore[no-any-return]
