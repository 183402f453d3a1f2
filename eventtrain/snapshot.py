"""Everything that the rest of a run depends on, taken at one moment and put back at another.

A snapshot is taken between batches or between epochs. To go on from one in the
middle of a phase, the loader is iterated anew with the random numbers that it had
when the phase began, and the batches that were done are loaded and dropped: so any
loader resumes, whatever its order and its workers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checkpoint_files import FORMAT
from .compatibility import check_fits, state_of
from .errors import CheckpointError
from .param_groups import set_field
from .plain_data import plain_data
from .random_state import (
    loader_random_state,
    random_state,
    set_loader_random_state,
    set_random_state,
)

if TYPE_CHECKING:
    from .runner import Runner


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
    gradients = {index: p.grad for index, p in _parameters(run) if p.grad is not None}
    return {
        "format": FORMAT,
        "position": {"epoch": epoch, "phase": phase, "batch": batch},
        "epochs": run.epochs,
        "counters": counters,
        "history": plain_data(list(run.history), "history"),
        "model": plain_data(state_of(run.model), "model"),
        "buffers": plain_data(_other_buffers(run.model), "buffers"),
        "opt": plain_data(state_of(run.opt), "opt"),
        "opt_class": type(run.opt).__name__,
        "loss_func": plain_data(state_of(run.loss_func), "loss_func"),
        "gradients": plain_data(gradients, "gradients"),
        "callbacks": {
            cb.name: plain_data(state, f"callbacks[{cb.name!r}]")
            for cb in run.cbs
            if (state := cb.state_dict())
        },
        "random": random_states(run),
        "phase_start": phase_start,
    }


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
        """See that the snapshot fits the run, before anything is changed.

        Raises:
            CheckpointError: It is another run's, or lies behind the last epoch.
        """
        check_fits(self._content, run, self._origin)

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
        # Copies: optimizers keep the very objects that they are given.
        content = copy.deepcopy({name: self._content[name] for name in ("model", "loss_func")})
        for part, name in [(run.model, "model"), (run.loss_func, "loss_func")]:
            if content[name]:
                part.load_state_dict(content[name])
        _set_buffers(run.model, self._content.get("buffers", {}))
        if self._content["opt"]:
            _load_optimizer(run.opt, self._content["opt"])

    def _restore_rest(self, run: Runner) -> None:
        gradients = self._content["gradients"]
        for index, parameter in _parameters(run):
            gradient = gradients.get(index)
            parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
        own = {callback.name: callback for callback in run.cbs}
        for name, state in self._content["callbacks"].items():
            own[name].load_state_dict(copy.deepcopy(state))
        set_random_states(run, self._content["random"])
        self._content = {}  # as large as model and optimizer, and the fit holds on to this object


def _parameters(run: Runner) -> Iterator[tuple[int, Tensor]]:
    """Number every tensor whose gradient may wait for a step, each once."""
    modules = (part for part in (run.model, run.loss_func) if hasattr(part, "parameters"))
    groups = getattr(run.opt, "param_groups", ())
    owners = [*(part.parameters() for part in modules), *(group["params"] for group in groups)]
    yield from enumerate({id(p): p for each in owners for p in each}.values())


def _other_buffers(model: Any) -> dict[str, Tensor]:
    """Return the buffers that a state dictionary leaves out."""
    if not isinstance(model, nn.Module):
        return {}
    kept = set(model.state_dict(keep_vars=True))
    return {name: buffer for name, buffer in model.named_buffers() if name not in kept}


@torch.no_grad()
def _set_buffers(model: Any, saved: Mapping[str, Tensor]) -> None:
    for name, value in saved.items():
        path, _, key = name.rpartition(".")
        buffers = model.get_submodule(path)._buffers
        own = buffers.get(key)
        if own is not None and own.shape == value.shape:
            own.copy_(value)
        else:
            buffers[key] = value.clone() if own is None else value.to(own.device, copy=True)


def _load_optimizer(opt: Any, saved: dict[str, Any]) -> None:
    """Put an optimizer's state back, in the types that it had."""
    if not isinstance(opt, torch.optim.Optimizer):
        opt.load_state_dict(copy.deepcopy(saved))
        return
    before = list(opt.param_groups)
    opt.load_state_dict(copy.deepcopy(saved))
    for group, own in zip(opt.param_groups, before, strict=True):
        # A tensor, a rate say, stays the one that it was: on its device, where it is read.
        for key, tensor in own.items():
            if key in group and isinstance(tensor, Tensor):
                value, group[key] = group[key], tensor
                set_field(group, key, value)
    # torch makes floating-point state of the parameter's type, which for some optimizers it is not.
    indices = (index for group in saved["param_groups"] for index in group["params"])
    parameters = (p for group in opt.param_groups for p in group["params"])
    for index, parameter in zip(indices, parameters, strict=True):
        state = opt.state.get(parameter, {})
        for key, value in saved["state"].get(index, {}).items():
            if isinstance(value, Tensor) and state[key].dtype != value.dtype:
                state[key] = value.to(state[key].device, copy=True)
