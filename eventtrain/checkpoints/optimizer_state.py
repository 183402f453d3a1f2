"""The states of optimizers, put back to the parameters that they belong to."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..optimizers import named_optimizers
from ..param_groups import set_field
from ..state import RunState
from .names import named_groups

_Groups = list[list[dict[str, Any]]]


@dataclass(frozen=True)
class _Saved:
    """What a content tells of one optimizer.

    Attributes:
        opt: This run's.
        own: Its groups, as ``named_groups`` describes them.
        state: Its state dictionary, as it was saved.
        kind: The name of the class that it had; ``None`` where the content does not tell.
        groups: As ``own``, when it was saved; ``None`` in formats 1 and 2.
    """

    opt: Any
    own: _Groups
    state: Mapping[str, Any]
    kind: str | None
    groups: _Groups | None


def _each(content: Mapping[str, Any], run: RunState) -> Iterator[tuple[str | None, _Saved]]:
    """Yield what is told of each optimizer of the run, which has those that were saved."""
    own, state = named_groups(run), content["opt"]
    kind: Any = content.get("opt_class")
    groups: Any = content.get("parameters")
    for name, opt in named_optimizers(run.opt):
        if name is None:
            yield None, _Saved(opt, own, state, kind, groups)
        else:
            yield name, _Saved(opt, own[name], state[name], kind[name], groups[name])


def check_optimizer(
    content: Mapping[str, Any], run: RunState, origin: str, *, may_lack_groups: bool = False
) -> None:
    """See that each parameter can be given the state that was its own.

    Args:
        content: What ``take_snapshot`` returned.
        run: Its optimizers are not changed.
        origin: Where the snapshot comes from, for messages.
        may_lack_groups: Whether the last groups may be missing as yet, as a handler adds them.

    Raises:
        CheckpointError: An optimizer is of another class, or has other parameters, or there are
            others.
    """
    kind = content.get("opt_class")
    saved = list(kind) if isinstance(kind, Mapping) else [None]
    own = [name for name, _ in named_optimizers(run.opt)]
    if sorted(map(str, saved)) != sorted(map(str, own)):
        raise CheckpointError(
            f"{origin} is of other optimizers: it has {_names(saved)}, and this run has "
            f"{_names(own)}. Give the Learner optimizers of the same names"
        )
    for name, each in _each(content, run):
        _check_one(
            each, origin if name is None else f"{origin} (optimizer {name!r})", may_lack_groups
        )


def _names(names: Sequence[str | None]) -> str:
    return "one without a name" if names == [None] else ", ".join(map(repr, names)) or "none"


def _check_one(saved: _Saved, origin: str, may_lack_groups: bool) -> None:
    opt, own = saved.opt, saved.own
    name, strange = type(opt).__name__, f"{origin} is of another optimizer: "
    if saved.kind not in (None, name):
        raise CheckpointError(f"{strange}{saved.kind}, and this run has {name}")
    if not hasattr(opt, "param_groups") or "param_groups" not in saved.state:
        return
    sizes = [len(group["params"]) for group in saved.state["param_groups"]]
    own_sizes = [len(group) for group in own]
    if may_lack_groups and saved.groups is not None and len(own) < len(sizes):
        sizes = sizes[: len(own)]
    if sizes != own_sizes:
        raise CheckpointError(
            f"{strange}{name} with groups of {sizes} parameters, and this run's has {own_sizes}. "
            "Add the same groups, in the same order, before the fit or where the run that saved "
            "it added them"
        )
    if saved.groups is None:  # formats 1 and 2 tell of no names
        return
    told = [len(group) for group in saved.groups]
    if told != [len(group["params"]) for group in saved.state["param_groups"]]:
        raise CheckpointError(
            f"{origin} contradicts itself: it names groups of {told} parameters, which are not "
            "those of its optimizer. Resume from another one"
        )
    for index, (was, now) in enumerate(zip(saved.groups, own, strict=False)):
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
    """Put the optimizers' states back, in the types they had, to the parameters of their names.

    Groups that an optimizer lacks as yet are passed over.
    """
    for _, each in _each(content, run):
        if each.state:
            _load_one(each)


def _load_one(each: _Saved) -> None:
    opt = each.opt
    if not isinstance(opt, torch.optim.Optimizer):
        opt.load_state_dict(copy.deepcopy(each.state))
        return
    saved = _in_the_order_of(each.own, each.groups, each.state)
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


def _in_the_order_of(own: _Groups, was: _Groups | None, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state whose groups have their parameters in the optimizer's own order."""
    if was is None:
        return dict(saved)
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
