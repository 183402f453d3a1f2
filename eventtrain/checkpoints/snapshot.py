"""Everything that the rest of a run depends on, taken at one moment and put back at another.

A snapshot is taken between batches or between epochs; ``resuming`` goes on from it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed.engines import Replicated, put_shards_back
from ..optimizer_modes import evaluation_weights, modal_optimizers
from ..optimizers import parameter_groups
from ..state import RunState
from ..submodules import copies_of, fill, is_expanded, set_tensors, tensors_of
from .batch_print import batch_print
from .compatibility import state_of
from .loader_form import loader_form
from .loader_state import loader_state, set_loader_state
from .names import by_optimizer, named_groups, parameter_names, plain_name, under_names_of
from .optimizer_state import load_optimizer
from .plain_data import plain_data
from .random_state import random_state, set_random_state
from .records import FORMAT


def random_states(run: RunState) -> dict[str, Any]:
    """Return on what random numbers and loaders depend: global generators, and the loaders' own."""
    return {"global": random_state(), "loaders": [loader_state(dl) for dl in _loaders(run)]}


def set_random_states(run: RunState, states: Mapping[str, Any]) -> None:
    """Bring all generators, and what else orders the loaders' batches, back to where it was."""
    for loader, state in zip(_loaders(run), states["loaders"], strict=True):
        set_loader_state(loader, state)
    set_random_state(states["global"])  # last: the workers of a loader draw from it when started


def loader_forms(run: RunState) -> list[dict[str, Any] | None]:
    """Describe the training and the validation loaders, as they are before handlers wrap them."""
    return [None if loader is None else loader_form(loader) for loader in _loaders(run)]


def _loaders(run: RunState) -> list[Any]:
    return [run.data.train_dl, *(run.valid_loaders.values() or [None])]


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
    loader_forms: list[dict[str, Any] | None],
    loader_state: Any = None,
) -> dict[str, Any]:
    """Return the state of ``run`` as plain data and tensors, which are not copied.

    Args:
        run: Its fit must be between two batches or two epochs.
        epoch: In which epoch it goes on.
        phase: In which phase of it; ``None`` for its beginning.
        batch: How many batches of the phase are done.
        phase_start: The random states from which the loader of the phase was iterated.
        loader_forms: What ``loader_forms`` returned before the fit began.
        loader_state: What the loader's own ``state_dict`` returned before the last of the batches;
            ``None`` (default) of a loader that has none.

    Raises:
        CheckpointError: A callback's state, or a row of the history, holds what
            could not be read again.
    """
    put_shards_back(run.model)
    gradients = {name: p.grad for name, p in _parameters(run) if p.grad is not None}
    wrapped = _wrapped(run)
    return {
        "format": FORMAT,
        "position": {"epoch": epoch, "phase": phase, "batch": batch},
        "world_size": run.world.size,
        "epochs": run.epochs,
        "validate_every": run.validate_every,
        "counters": counters_at(run, phase),
        "history": plain_data(list(run.history), "history"),
        "model": plain_data(state_of(run.model), "model"),
        "buffers": plain_data(_other_buffers(run.model), "buffers"),
        "opt": plain_data(by_optimizer(run.opt, state_of), "opt"),
        "opt_class": by_optimizer(run.opt, lambda opt: type(opt).__name__),
        "parameters": named_groups(run),
        "loss_func": plain_data(state_of(run.loss_func), "loss_func"),
        "gradients": plain_data(gradients, "gradients"),
        "callbacks": {
            cb.name: plain_data(state, f"callbacks[{cb.name!r}]")
            for cb in run.cbs
            if (state := cb.state_dict())
        },
        "random": random_states(run),
        "phase_start": phase_start,
        "loaders": loader_forms,
        "valid_names": list(run.valid_loaders),
        "valid_name": run.valid_name if phase == "validate" and batch else None,
        "last_batch": None if phase is None else batch_print(run.batch),
        "loader_state": plain_data(loader_state, "the state_dict() of the loader"),
        "syncs_buffers": getattr(wrapped, "require_forward_param_sync", True),
        "arrival_order": wrapped.arrival_order if isinstance(wrapped, Replicated) else [],
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


def with_evaluation_weights(content: dict[str, Any], run: RunState) -> dict[str, Any]:
    """Have a snapshot that was taken in training hold, as its model, the weights to evaluate with.

    Args:
        content: What ``take_snapshot`` returned.
        run: The run that it was taken of. Its optimizer may hold other weights while it trains.

    Returns:
        As ``with_validated_weights`` does; the content as it is where the weights are the same.
    """
    if not (run.in_train and modal_optimizers(run.opt)):
        return content
    with evaluation_weights(run.opt):
        state = copy.deepcopy(plain_data(state_of(run.model), "model"))
    parameters = dict(run.model.named_parameters(remove_duplicate=False))
    state.update((k, v) for k, v in content["model"].items() if k not in parameters)
    return {**content, "model": state, "training_model": content["model"]}


def gradients_of(run: RunState) -> dict[str, Tensor]:
    """Return copies of the gradients that are there, by the names of their parameters."""
    return {name: p.grad.clone() for name, p in _parameters(run) if p.grad is not None}


def restore_learner(run: RunState, content: Mapping[str, Any]) -> None:
    """Put model, loss function and optimizer back to what ``take_snapshot`` found."""
    # Copies: optimizers keep the very objects that they are given.
    model = content.get("training_model", content["model"])
    states = copy.deepcopy({"model": model, "loss_func": content["loss_func"]})
    for part, name in [(run.model, "model"), (run.loss_func, "loss_func")]:
        if states[name]:
            _load_module(part, states[name])
    _set_buffers(run.model, content.get("buffers", {}))
    if content["opt"]:
        load_optimizer(run, content)


def restore_rest(run: RunState, content: Mapping[str, Any]) -> None:
    """Put back what else ``take_snapshot`` found: gradients, callbacks, random numbers last."""
    gradients = content["gradients"]
    for index, (name, parameter) in enumerate(_parameters(run)):
        # Formats 1 and 2 number all parameters.
        gradient = gradients.get(name if "parameters" in content else index)
        parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
    wrapped = _wrapped(run)
    if hasattr(wrapped, "require_forward_param_sync"):
        wrapped.require_forward_param_sync = content.get("syncs_buffers", True)
    if isinstance(wrapped, Replicated):
        wrapped.arrival_order = content.get("arrival_order", [])
    own = {callback.name: callback for callback in run.cbs}
    for name, state in content["callbacks"].items():
        own[name].load_state_dict(copy.deepcopy(state))
    set_random_states(run, content["random"])


def _wrapped(run: RunState) -> Any:
    return None if run.learn is None else run.learn.model_wrapped


def _parameters(run: RunState) -> Iterator[tuple[str, Tensor]]:
    """Name every tensor whose gradient may wait for a step, each once."""
    names = parameter_names(run)
    modules = (part for part in (run.model, run.loss_func) if hasattr(part, "parameters"))
    groups = (group["params"] for _, group in parameter_groups(run.opt))
    owners = [*(part.parameters() for part in modules), *groups]
    for index, parameter in enumerate({id(p): p for each in owners for p in each}.values()):
        yield names.get(id(parameter), f"number {index}"), parameter


def _load_module(module: Any, saved: dict[str, Any]) -> None:
    """Put a state dictionary back, also that of a compiled model, and into expanded buffers."""
    saved = under_names_of(state_of(module), saved)
    modules = module.modules() if isinstance(module, nn.Module) else ()
    expanded = [
        (each._buffers, key, buffer)
        for each in modules
        for key, buffer in each._buffers.items()
        if buffer is not None and is_expanded(buffer)
    ]
    try:
        for buffers, key, buffer in expanded:
            buffers[key] = buffer.clone(memory_format=torch.contiguous_format)
        module.load_state_dict(saved)
        for buffers, key, buffer in expanded:
            fill(buffer, buffers[key])  # type: ignore[arg-type]
    finally:
        for buffers, key, buffer in expanded:
            buffers[key] = buffer


def _other_buffers(model: Any) -> dict[str, Tensor]:
    """Return the buffers that a state dictionary leaves out."""
    if not isinstance(model, nn.Module):
        return {}
    kept = set(model.state_dict(keep_vars=True))
    return {name: buffer for name, buffer in model.named_buffers() if name not in kept}


@torch.no_grad()
def _set_buffers(model: Any, saved: Mapping[str, Tensor]) -> None:
    names = {plain_name(name): name for name, _ in model.named_buffers()} if saved else {}
    for saved_name, value in saved.items():
        name = names.get(plain_name(saved_name), saved_name)
        path, _, key = name.rpartition(".")
        owner = model.get_submodule(path)
        own = owner._buffers.get(key)
        if own is not None and own.shape == value.shape:
            fill(own, value)
        elif key not in owner._buffers:  # a batch had made it
            owner.register_buffer(key, value.clone(), persistent=False)
        else:
            new = value.clone() if own is None else value.to(own.device, copy=True)
            owner._buffers[key] = new
