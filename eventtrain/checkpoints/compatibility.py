"""Whether what a snapshot holds fits a run: asked before anything of the run is changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..state import RunState


def check_fits(content: Mapping[str, Any], run: RunState, origin: str) -> None:
    """See that a run can go on from a snapshot.

    Args:
        content: What ``take_snapshot`` returned.
        run: It has not begun yet; nothing of it is changed.
        origin: Where the snapshot comes from, for messages.

    Raises:
        CheckpointError: It lies behind the last epoch, is of another model, loss
            function or optimizer, or holds the state of callbacks that the run lacks, or
            that does not fit them.
    """
    position = content["position"]
    assert run.epochs is not None
    if position["phase"] is not None and position["epoch"] >= run.epochs:
        raise CheckpointError(
            f"{origin} was taken in epoch {position['epoch']}, counted from 0, and a fit of "
            f"{run.epochs} epochs ends before that: ask for {position['epoch'] + 1} or more"
        )
    _check_module("model", content["model"], state_of(run.model), origin)
    if content["loss_func"]:  # a handler may have put one without state in its place for a while
        own = state_of(run.loss_func)
        _check_module("loss function", content["loss_func"], own, origin)
    _check_optimizer(content, run.opt, origin)
    missing = sorted(set(content["callbacks"]) - {callback.name for callback in run.cbs})
    if missing:
        raise CheckpointError(
            f"{origin} holds the state of callbacks that this run lacks: "
            f"{', '.join(missing)}. Resume with the callbacks of the run that saved it"
        )
    for callback in run.cbs:
        state = content["callbacks"].get(callback.name)
        reason = callback.why_not_load(state, run) if state else None
        if reason is not None:
            raise CheckpointError(f"{origin} does not fit this run: {reason}")


def state_of(part: Any) -> dict[str, Any]:
    """Return the state dictionary of a part of a learner, empty where it has none."""
    state = part.state_dict() if hasattr(part, "state_dict") else {}
    return state if isinstance(state, OrderedDict) else dict(state)


def _check_module(part: str, saved: Mapping[str, Any], own: Mapping[str, Any], origin: str) -> None:
    strange = [f"{key} is missing in the {part}" for key in saved if key not in own]
    strange += [f"{key} is missing in the checkpoint" for key in own if key not in saved]
    shared = ((key, own[key], value) for key, value in saved.items() if key in own)
    strange += [text for each in shared if (text := _difference(*each))]
    if strange:
        more = f", and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise CheckpointError(f"{origin} is of another {part}: {'; '.join(strange[:3])}{more}")


def _check_optimizer(content: Mapping[str, Any], opt: Any, origin: str) -> None:
    name = type(opt).__name__
    saved_name = content.get("opt_class", name)
    if saved_name != name:
        raise CheckpointError(
            f"{origin} is of another optimizer: {saved_name}, and this run has {name}"
        )
    if not isinstance(opt, torch.optim.Optimizer):
        return
    saved, own = (
        [len(group["params"]) for group in groups]
        for groups in (content["opt"]["param_groups"], opt.param_groups)
    )
    if saved != own:
        raise CheckpointError(
            f"{origin} is of another optimizer: {name} with groups of {saved} parameters, and this "
            f"run's has {own}"
        )


def _difference(key: str, own: Any, saved: Any) -> str:
    """Say in what two tensors differ that must be alike; empty where they do not."""
    if not isinstance(own, Tensor) or not isinstance(saved, Tensor):
        return ""
    # Extra state is a module's own business, and a lazy parameter takes the shape that it gets.
    if key.endswith("_extra_state") or nn.parameter.is_lazy(own):
        return ""
    if own.shape != saved.shape:
        return f"{key} has shape {list(own.shape)}, and {list(saved.shape)} in the checkpoint"
    if own.dtype != saved.dtype:  # torch would convert it, and the run would go on as another
        return f"{key} is {own.dtype}, and {saved.dtype} in the checkpoint"
    return ""
