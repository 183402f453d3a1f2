"""Whether a content is a snapshot by its form: asked before anything is taken from it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .records import is_count


def check_position(content: Mapping[str, Any], origin: str) -> None:
    """See that a content tells where the run stood.

    Args:
        content: What ``load_checkpoint`` returned.
        origin: Where it comes from, for messages.

    Raises:
        CheckpointError: It does not.
    """
    _check(content, origin, {"position": _is_position, "phase_start": _is_anything})
    batch, start = content["position"]["batch"], content["phase_start"]
    begun_at = start.get("begun_at", 0) if isinstance(start, Mapping) else 0
    if batch and (start is None or not (is_count(begun_at) and begun_at < batch)):
        raise _no_snapshot(origin, "its 'phase_start' and its 'position' contradict each other")


def check_form(content: Mapping[str, Any], counters: set[str], origin: str) -> None:
    """See that a content has all that a run is put back from, each of its kind.

    Args:
        content: What ``load_checkpoint`` returned.
        counters: The names of a run's counters.
        origin: Where it comes from, for messages.

    Raises:
        CheckpointError: Something is missing or of another kind.
    """
    check_position(content, origin)
    _check(content, origin, _KINDS)
    _check_optimizers(content, origin)
    for name in counters:
        number = content["counters"].get(name, "missing")
        if not (is_count(number) or (name == "train_iters" and number is None)):
            raise _no_snapshot(origin, f"its counter {name!r} is {number!r}")
    if content["position"]["phase"] is not None and not content["history"]:
        raise _no_snapshot(origin, "its 'history' lacks the epoch that it was taken in")


def _check(
    content: Mapping[str, Any], origin: str, kinds: Mapping[str, Callable[[Any], bool]]
) -> None:
    for key, is_right in kinds.items():
        if key not in content and key in _ADDED_LATER:
            continue
        if key not in content:
            raise _no_snapshot(origin, f"it lacks {key!r}")
        if not is_right(content[key]):
            raise _no_snapshot(origin, f"its {key!r} is of another kind")


def _check_optimizers(content: Mapping[str, Any], origin: str) -> None:
    """See that what is told of each optimizer is of its kind, and of each the same is told."""
    kind: Any = content.get("opt_class")
    names = list(kind) if isinstance(kind, dict) else None
    kinds = {"opt": _is_optimizers, "parameters": _are_groups}
    if names is None:
        _check(content, origin, kinds)
        return
    for key in ("opt", "opt_class", "parameters"):
        told = content.get(key)
        if not isinstance(told, dict) or list(told) != names:
            raise _no_snapshot(origin, f"its {key!r} is of another kind")
    for name in names:
        each = {key: content[key][name] for key in kinds}
        _check(each, origin, kinds)
        if not isinstance(kind[name], str):
            raise _no_snapshot(origin, "its 'opt_class' is of another kind")


def _no_snapshot(origin: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{origin} is whole, but no run can go on from it: {why}. It was made by another program, "
        "or changed: resume from another one"
    )


def _is_anything(value: Any) -> bool:
    return True


def _is_position(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and is_count(value.get("epoch"))
        and is_count(value.get("batch"))
        and isinstance(value.get("phase", 0), (str, type(None)))
    )


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _are_named(value: Any) -> bool:
    return isinstance(value, list) and all(_is_named(each) for each in value)


def _are_states(value: Any) -> bool:
    return _is_named(value) and all(_is_dict(each) for each in value.values())


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, Tensor) for each in value.values())


def _is_optimizers(value: Any) -> bool:
    """Whether it is the state of an optimizer, of torch's where it tells of groups."""
    if not isinstance(value, dict):
        return False
    if "param_groups" not in value:
        return True
    groups, state = value["param_groups"], value.get("state")
    if not _are_named(groups) or not isinstance(state, dict):
        return False
    if not all(isinstance(group.get("params"), list) for group in groups):
        return False
    indices = [index for group in groups for index in group["params"]]
    are_counted = all(is_count(index) for index in indices) and len(set(indices)) == len(indices)
    return are_counted and all(_is_named(each) for index, each in state.items() if is_count(index))


def _are_groups(value: Any) -> bool:
    return isinstance(value, list) and all(
        _are_named(group) and all(each.keys() == {"name", "shape"} for each in group)
        for group in value
    )


def _are_forms(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 2
        and all(each is None or _is_named(each) for each in value)
    )


def _is_order(value: Any) -> bool:
    """Whether it is what ``SharedBatches.order_form`` returned, or nothing."""
    return _is_named(value) and all(
        each is None or isinstance(each, bool) or is_count(each) for each in value.values()
    )


def _are_random(value: Any) -> bool:
    """Whether it is what ``random_states`` returned: generators made for it take the states."""
    if value is None:
        return True  # the phase has not begun
    try:
        for loader in value["loaders"]:
            if isinstance(loader, Mapping):
                if not (_is_named(loader["generators"]) and _is_named(loader["numbers"])):
                    return False
                loader["started"].index  # noqa: B018
                if not _is_order(loader.get("order", {})):
                    return False
            else:
                [torch.Generator().set_state(each) for each in loader]
        version, internal, gauss = value["global"]["python"]
        random.Random().setstate((version, tuple(internal), gauss))
        torch.Generator().set_state(value["global"]["torch"])
        if "numpy" in value["global"]:
            import numpy

            name, keys, *rest = value["global"]["numpy"]
            numpy.random.RandomState().set_state((name, keys.numpy().astype("uint32"), *rest))
        return len(value["loaders"]) >= 2
    except Exception:  # of whatever the generators think of it
        return False


_ADDED_LATER = {
    "training_model",
    "buffers",
    "opt_class",
    "parameters",
    "loaders",
    "valid_names",
    "valid_name",
    "last_batch",
    "loader_state",
    "frozen",
    "epochs",
    "validate_every",
    "world_size",
    "syncs_buffers",
    "arrival_order",
}
_KINDS: dict[str, Callable[[Any], bool]] = {
    "counters": _is_dict,
    "history": lambda value: isinstance(value, list) and all(_is_dict(row) for row in value),
    "model": _is_dict,
    "training_model": _is_dict,
    "buffers": _are_tensors,
    "opt": _is_anything,
    "opt_class": lambda value: isinstance(value, str) or _is_named(value),
    "parameters": _is_anything,
    "loss_func": _is_dict,
    "gradients": _are_tensors,
    "callbacks": _are_states,
    "random": lambda value: value is not None and _are_random(value),
    "phase_start": _are_random,
    "loaders": _are_forms,
    "valid_names": lambda value: (
        isinstance(value, list) and all(isinstance(each, (str, type(None))) for each in value)
    ),
    "valid_name": lambda value: isinstance(value, (str, type(None))),
    "validate_every": lambda value: value is None or is_count(value),
    "last_batch": lambda value: value is None or _are_named(value),
    "loader_state": _is_anything,
    "frozen": lambda value: _is_named(value) and all(_is_named(each) for each in value.values()),
    "world_size": lambda value: is_count(value) and value > 0,
    "syncs_buffers": lambda value: isinstance(value, bool),
    "arrival_order": lambda value: (
        isinstance(value, list) and all(isinstance(each, str) for each in value)
    ),
}
