"""Everything that the rest of a run depends on, taken at one moment and put back at another.

A snapshot is taken between batches or between epochs; ``resuming`` goes on from it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..param_groups import set_field
from ..state import RunState
from ..submodules import copies_of, set_tensors, tensors_of
from .compatibility import state_of
from .files import FORMAT
from .plain_data import plain_data
from .random_state import (
    loader_random_state,
    random_state,
    set_loader_random_state,
    set_random_state,
)


def random_states(run: RunState) -> dict[str, Any]:
    """Return the states of all generators: the global ones and those of the loaders."""
    loaders = [run.data.train_dl, run.data.valid_dl]
    return {"global": random_state(), "loaders": [loader_random_state(dl) for dl in loaders]}


def set_random_states(run: RunState, states: Mapping[str, Any]) -> None:
    """Put all generators back."""
    for loader, state in zip(
        [run.data.train_dl, run.data.valid_dl], states["loaders"], strict=True
    ):
        set_loader_random_state(loader, state)
    set_random_state(states["global"])


def counters_at(run: RunState, phase: str | None) -> dict[str, Any]:
    """Return the counters with which ``run`` goes on in ``phase``, ``None`` between epochs."""
    counters = run.counters()
    if phase is None and run.outcome == "completed":
        counters["epochs_done"] += 1  # the loop counts it once after_epoch is over
    return counters


def take_snapshot(
    run: RunState,
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
        phase_start: The random states from which the loader of the phase was iterated.

    Raises:
        CheckpointError: A callback's state, or a row of the history, holds what
            could not be read again.
    """
    gradients = {index: p.grad for index, p in _parameters(run) if p.grad is not None}
    return {
        "format": FORMAT,
        "position": {"epoch": epoch, "phase": phase, "batch": batch},
        "epochs": run.epochs,
        "counters": counters_at(run, phase),
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


def with_validated_weights(
    content: dict[str, Any], run: RunState, weights: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Have a snapshot hold, as its model, the weights that its epoch was validated with.

    Args:
        content: What ``take_snapshot`` returned.
        run: The run that it was taken of.
        weights: By name, as in ``submodules.tensors_of``.

    Returns:
        The content with a copy of the model's state under these weights at ``"model"``, and with
        the state from which training goes on at ``"training_model"``.
    """
    held = copies_of(tensors_of(run.model))
    try:
        set_tensors(run.model, weights)
        state = copy.deepcopy(plain_data(state_of(run.model), "model"))
    finally:
        set_tensors(run.model, held)
    return {**content, "model": state, "training_model": content["model"]}


def restore_learner(run: RunState, content: Mapping[str, Any]) -> None:
    """Put model, loss function and optimizer back to what ``take_snapshot`` found."""
    # Copies: optimizers keep the very objects that they are given.
    model = content.get("training_model", content["model"])
    states = copy.deepcopy({"model": model, "loss_func": content["loss_func"]})
    for part, name in [(run.model, "model"), (run.loss_func, "loss_func")]:
        if states[name]:
            part.load_state_dict(states[name])
    _set_buffers(run.model, content.get("buffers", {}))
    if content["opt"]:
        _load_optimizer(run.opt, content["opt"])


def restore_rest(run: RunState, content: Mapping[str, Any]) -> None:
    """Put back what else ``take_snapshot`` found: gradients, callbacks, random numbers last."""
    gradients = content["gradients"]
    for index, parameter in _parameters(run):
        gradient = gradients.get(index)
        parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
    own = {callback.name: callback for callback in run.cbs}
    for name, state in content["callbacks"].items():
        own[name].load_state_dict(copy.deepcopy(state))
    set_random_states(run, content["random"])


def _parameters(run: RunState) -> Iterator[tuple[int, Tensor]]:
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
