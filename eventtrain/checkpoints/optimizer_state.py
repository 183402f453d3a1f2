"""The state of an optimizer, put back to the parameters that it belongs to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..param_groups import set_field
from ..state import RunState
from .names import named_groups

_Groups = list[list[dict[str, Any]]]


def check_optimizer(
    content: Mapping[str, Any], run: RunState, origin: str, *, may_lack_groups: bool = False
) -> None:
    """See that each parameter can be given the state that was its own.

    Args:
        content: What ``take_snapshot`` returned.
        run: Its optimizer is not changed.
        origin: Where the snapshot comes from, for messages.
        may_lack_groups: Whether the last groups may be missing as yet, as a handler adds them.

    Raises:
        CheckpointError: The optimizer is of another class, or has other parameters.
    """
    opt = run.opt
    name, strange = type(opt).__name__, f"{origin} is of another optimizer: "
    saved_name = content.get("opt_class", name)
    if saved_name != name:
        raise CheckpointError(f"{strange}{saved_name}, and this run has {name}")
    if not hasattr(opt, "param_groups") or "param_groups" not in content["opt"]:
        return
    own = named_groups(run)
    sizes = [len(group["params"]) for group in content["opt"]["param_groups"]]
    own_sizes = [len(group) for group in own]
    if may_lack_groups and "parameters" in content and len(own) < len(sizes):
        sizes = sizes[: len(own)]
    if sizes != own_sizes:
        raise CheckpointError(
            f"{strange}{name} with groups of {sizes} parameters, and this run's has {own_sizes}. "
            "Add the same groups, in the same order, before the fit or where the run that saved "
            "it added them"
        )
    # Formats 1 and 2 tell of no names.
    told = [len(group) for group in content.get("parameters", ())]
    if "parameters" in content and told != [
        len(group["params"]) for group in content["opt"]["param_groups"]
    ]:
        raise CheckpointError(
            f"{origin} contradicts itself: it names groups of {told} parameters, which are not "
            "those of its optimizer. Resume from another one"
        )
    for index, (was, now) in enumerate(zip(content.get("parameters", ()), own, strict=False)):
        _check_group(index, was, now, opt, origin)


def _check_group(
    index: int, was: list[dict[str, Any]], now: list[dict[str, Any]], opt: Any, origin: str
) -> None:
    for one, other in zip(_sorted(was), _sorted(now), strict=True):
        known = None not in (one["shape"], other["shape"])
        if one["name"] == other["name"] and (one["shape"] == other["shape"] or not known):
            continue
        raise CheckpointError(
            f"{origin} is of another optimizer: group {index} of {type(opt).__name__} has "
            f"{_text(one)} in the checkpoint, and {_text(other)} here. Put the same parameters "
            "into the same groups, in the same order of groups"
        )
    names, own_names = [each["name"] for each in was], [each["name"] for each in now]
    if names == own_names or (_keeps_one_state_each(opt) and _are_told_apart(names)):
        return
    raise CheckpointError(
        f"{origin} has the parameters of group {index} of {type(opt).__name__} in another order, "
        f"{names}, and here it is {own_names}; its state cannot be told apart by parameter. Make "
        "the optimizer of the parameters in that order, as model.parameters() gives them"
    )


def _sorted(group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort by name; what has none stays in its order."""
    return sorted(group, key=lambda each: (each["name"] is None, each["name"] or ""))


def _text(parameter: Mapping[str, Any]) -> str:
    name = "one that is not the model's" if parameter["name"] is None else repr(parameter["name"])
    return f"{name} of shape {parameter['shape']}"


def _are_told_apart(names: list[str | None]) -> bool:
    return None not in names and len(set(names)) == len(names)


def _keeps_one_state_each(opt: Any) -> bool:
    """Whether it is known of an optimizer that a parameter's state is about this one alone."""
    is_torchs = f"{type(opt).__module__}.".startswith("torch.optim.")
    return is_torchs and not isinstance(opt, torch.optim.LBFGS)


def load_optimizer(run: RunState, content: Mapping[str, Any]) -> None:
    """Put the optimizer's state back, in the types that it had, to the parameters of its names.

    Groups that the optimizer lacks as yet are passed over.
    """
    opt, saved = run.opt, content["opt"]
    if not isinstance(opt, torch.optim.Optimizer):
        opt.load_state_dict(copy.deepcopy(saved))
        return
    saved = _in_the_order_of(named_groups(run), content.get("parameters"), saved)
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


def _in_the_order_of(own: _Groups, was: _Groups | None, saved: dict[str, Any]) -> dict[str, Any]:
    """Return a state whose groups have their parameters in the optimizer's own order."""
    if was is None:
        return saved
    groups = []
    for group, names, own_names in zip(saved["param_groups"], was, own, strict=False):
        places = {each["name"]: place for place, each in enumerate(names)}
        order = list(range(len(names)))
        if names != own_names and None not in places:
            order = [places[each["name"]] for each in own_names]
        fields = {
            key: [group[key][place] for place in order]
            for key in ("params", "param_names")
            if group.get(key) is not None
        }
        groups.append({**group, **fields})
    known = {index for group in groups for index in group["params"]}
    parameters = {index for group in saved["param_groups"] for index in group["params"]}
    state = {k: v for k, v in saved["state"].items() if k in known or k not in parameters}
    return {**saved, "param_groups": groups, "state": state}
