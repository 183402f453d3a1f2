"""How long torch's learning-rate schedulers are, read from their state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_SPANS = (
    *("T_0", "T_max", "T_mult", "total_iters", "total_size", "total_steps"),
    *("_milestones", "milestones", "step_ratio", "step_size"),
    *("t_initial", "warmup_t", "decay_t", "cycle_mul", "cycle_limit"),
)
"""What the constructors of torch's and timm's schedulers are told, and the state has, in steps."""


def shadow_of(opt: Any) -> Any:
    """Return an optimizer of the same class and groups, on which a scheduler can be tried."""
    shadow = copy.copy(opt)
    shadow.param_groups = [
        {key: value.clone() if isinstance(value, Tensor) else value for key, value in group.items()}
        for group in opt.param_groups
    ]
    return shadow


def spans_of(scheduler: Any) -> dict[str, Any]:
    """Return the lengths that a scheduler was made with, as ``spans_in`` finds them."""
    return spans_in(scheduler.state_dict())


def spans_in(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lengths in the state of a scheduler, with those of the ones it is made of."""
    # As a checkpoint has them: a Counter as a dictionary, a tuple as a list.
    found = {
        key: dict(value) if isinstance(value, dict) else value
        for key, value in state.items()
        if key in _SPANS
    }
    inner = state.get("_schedulers")
    return {**found, "parts": [spans_in(each) for each in inner]} if inner else found


def end_of(state: Mapping[str, Any]) -> int | None:
    """Return the step at which a scheduler has come to its end; ``None`` where it has none."""
    inner = [end_of(each) for each in state.get("_schedulers", ())]
    if inner and "_milestones" in state:  # SequentialLR: one after the other
        return None if inner[-1] is None else state["_milestones"][-1] + inner[-1]
    if inner:  # ChainedScheduler: at the same time
        return max((end for end in inner if end is not None), default=None)
    return next((state[k] for k in ("total_steps", "T_max", "total_iters") if k in state), None)
