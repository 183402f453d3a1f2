"""Everything that the rest of a run depends on, taken at one moment and put back at another.

A snapshot is taken between batches or between epochs. To go on from one in the
middle of a phase, the loader is iterated anew with the random numbers that it had
when the phase began, and the batches that were done are loaded and dropped: so any
loader resumes, whatever its order and its workers.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checkpoint_files import FORMAT
from .errors import CheckpointError
from .random_state import (
    loader_random_state,
    random_state,
    set_loader_random_state,
    set_random_state,
)

if TYPE_CHECKING:
    from .runner import Runner

_PLAIN = (Tensor, int, float, complex, str, bytes, bool, type(None))


def random_states(run: Runner) -> dict[str, Any]:
    """Return the states of all generators: the global ones and those of the loaders."""
    loaders = [run.data.train_dl, run.data.valid_dl]
    return {"global": random_state(), "loaders": [loader_random_state(dl) for dl in loaders]}


def phase_start(run: Runner) -> Mapping[str, Any] | None:
    """Return the random states from which the loader of the phase that begins is iterated.

    A phase that is resumed iterates it from where the interrupted run began the phase.
    """
    resumption = run._resumption
    if resumption is not None and resumption.phase == run.phase:
        return resumption.phase_start
    return random_states(run)


def set_random_states(run: Runner, states: Mapping[str, Any]) -> None:
    """Put all generators back."""
    for loader, state in zip(
        [run.data.train_dl, run.data.valid_dl], states["loaders"], strict=True
    ):
        set_loader_random_state(loader, state)
    set_random_state(states["global"])


def take_snapshot(
    run: Runner,
    *,
    epoch: int,
    phase: str | None,
    batch: int,
    phase_start: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the state of ``run`` as plain data and tensors, which are not copied.

    Args:
        run: Its fit must be between two batches or two epochs.
        epoch: In which epoch it goes on.
        phase: In which phase of it; ``None`` for its beginning.
        batch: How many batches of the phase are done.
        phase_start: What ``phase_start`` returned when the phase began.

    Raises:
        CheckpointError: A callback's state, or a row of the history, holds what
            could not be read again.
    """
    counters = run.counters()
    if phase is None and run.outcome == "completed":
        counters["_epochs_done"] += 1  # the loop counts it once after_epoch is over
    content = {
        "format": FORMAT,
        "position": {"epoch": epoch, "phase": phase, "batch": batch},
        "epochs": run.epochs,
        "counters": counters,
        "history": [{key: _number(value) for key, value in row.items()} for row in run.history],
        "model": _state_of(run.model),
        "opt": _state_of(run.opt),
        "loss_func": _state_of(run.loss_func),
        "gradients": {i: p.grad for i, p in _parameters(run) if p.grad is not None},
        "callbacks": {cb.name: state for cb in run.cbs if (state := cb.state_dict())},
        "random": random_states(run),
        "phase_start": phase_start,
    }
    for part in ("history", "callbacks", "opt", "loss_func"):
        _check(content[part], part)
    return content


class Resumption:
    """A run's way back to where a snapshot was taken.

    Args:
        content: What ``take_snapshot`` returned.
        origin: Where it comes from, for messages.

    Attributes:
        epoch, phase, batch: Where the run goes on.
        phase_start: The random states from which the phase's loader was iterated, ``None``
            between epochs.
    """

    def __init__(self, content: dict[str, Any], origin: str) -> None:
        self.epoch: int = content["position"]["epoch"]
        self.phase: str | None = content["position"]["phase"]
        self.batch: int = content["position"]["batch"]
        self.phase_start: Mapping[str, Any] | None = content["phase_start"]
        self._content = content
        self._origin = origin

    def check(self, run: Runner) -> None:
        """See that the snapshot fits the model, before anything is changed.

        Raises:
            CheckpointError: It is another model's.
        """
        saved, own = self._content["model"], _state_of(run.model)
        strange = [f"{key} is missing in the model" for key in saved if key not in own]
        strange += [f"{key} is missing in the checkpoint" for key in own if key not in saved]
        strange += [
            f"{key} has shape {list(own[key].shape)}, and {list(value.shape)} in the checkpoint"
            for key, value in saved.items()
            if isinstance(value, Tensor) and key in own and own[key].shape != value.shape
        ]
        if strange:
            more = f", and {len(strange) - 3} more" if len(strange) > 3 else ""
            raise CheckpointError(
                f"{self._origin} is of another model: {'; '.join(strange[:3])}{more}"
            )

    def enter_fit(self, run: Runner) -> None:
        """Put everything back once ``begin_fit`` has fired.

        What stands in the current epoch's row follows when the phase is entered.
        """
        self._restore_learner(run)
        run.set_counters(self._content["counters"])
        rows = [dict(row) for row in self._content["history"]]
        run.history[:] = rows if self.phase is None else rows[:-1]
        if self.phase is None:
            self._restore_rest(run)

    def batches(self, run: Runner, loader: Any) -> Iterator[Any]:
        """Return the rest of the batches of the phase, everything else being put back.

        Raises:
            CheckpointError: The loader has fewer batches than were done.
        """
        assert self.phase_start is not None
        set_random_states(run, self.phase_start)
        batches: Iterator[Any] = iter(loader)
        for index in range(self.batch):
            try:
                next(batches)
            except StopIteration:
                raise CheckpointError(
                    f"{self._origin} was taken after {self.batch} batches of the {self.phase} "
                    f"loader, which now ends after {index}: it must be the same data"
                ) from None
        self._restore_learner(run)
        run.set_counters(self._content["counters"])
        run.history[-1].update(self._content["history"][-1])
        self._restore_rest(run)
        return batches

    def _restore_learner(self, run: Runner) -> None:
        learner: list[tuple[Any, str]] = [(run.model, "model"), (run.opt, "opt")]
        for part, name in [*learner, (run.loss_func, "loss_func")]:
            if self._content[name]:
                # A copy: optimizers keep the very objects that they are given.
                part.load_state_dict(copy.deepcopy(self._content[name]))

    def _restore_rest(self, run: Runner) -> None:
        gradients = self._content["gradients"]
        for index, parameter in _parameters(run):
            gradient = gradients.get(index)
            parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
        states = self._content["callbacks"]
        own = {callback.name: callback for callback in run.cbs}
        missing = sorted(set(states) - set(own))
        if missing:
            raise CheckpointError(
                f"{self._origin} holds the state of callbacks that this run lacks: "
                f"{', '.join(missing)}. Resume with the callbacks of the run that saved it"
            )
        for name, state in states.items():
            own[name].load_state_dict(copy.deepcopy(state))
        set_random_states(run, self._content["random"])


def _state_of(part: Any) -> dict[str, Any]:
    return dict(part.state_dict()) if hasattr(part, "state_dict") else {}


def _parameters(run: Runner) -> Iterator[tuple[int, Tensor]]:
    yield from enumerate(run.model.parameters() if hasattr(run.model, "parameters") else ())


def _number(value: Any) -> Any:
    """Return a NumPy scalar as the Python number that it is, and all else as it is."""
    if isinstance(value, Tensor) or getattr(value, "ndim", None) != 0:
        return value
    return value.item()


def _check(value: Any, where: str) -> None:
    """See that a value can be read again with ``weights_only=True``."""
    if isinstance(value, Mapping):
        if type(value) in (dict, OrderedDict) or type(value).__name__ == "defaultdict":
            for key, each in value.items():
                _check(each, f"{where}[{key!r}]")
            return
    elif type(value) in (list, tuple, set, torch.Size):
        for index, each in enumerate(value):
            _check(each, f"{where}[{index}]")
        return
    elif isinstance(value, (*_PLAIN, torch.dtype, torch.device)):
        return
    raise CheckpointError(
        f"{where} is {value!r} of type {type(value).__name__}, which a checkpoint cannot hold: "
        "keep plain data and tensors in state_dict()"
    )
