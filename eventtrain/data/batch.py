"""What the loop has to know about a batch, its parts and its place, and a loader's length."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from ..errors import DataError


def batch_parts(batch: Any) -> tuple[Any, Any]:
    """Tell a batch's input from its target.

    Args:
        batch: What a loader yielded.

    Returns:
        The two parts of a tuple or list of exactly two. Any other batch (one
        tensor, a dict, three parts) comes back as ``(batch, batch)``, so that
        the model and the loss function each see all of it.
    """
    # Plain pairs first: this runs once a batch.
    if batch.__class__ is tuple and len(batch) == 2:
        return batch
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    return batch, batch


def move_to(batch: Any, device: torch.device | str | int) -> Any:
    """Move all tensors in a batch to a device, without waiting for the copies.

    Args:
        batch: Tensors, objects with a ``.to(device, non_blocking=...)`` method,
            and tuples, named tuples, lists, mappings and dataclasses of such, nested at will.
        device: Where to.

    Returns:
        A batch of the same form and types. What needs no move is returned
        itself, not copied: a tensor already there, text, a whole batch of them.
    """
    if callable(getattr(batch, "to", None)) and not isinstance(batch, type):
        return batch.to(device, non_blocking=True)
    return convert_parts(batch, lambda part: move_to(part, device))


def convert_parts(batch: Any, convert: Callable[[Any], Any]) -> Any:
    """Put what ``convert`` makes of each part of a batch in the part's place.

    Args:
        batch: A mapping, whose values are its parts, a tuple, a named tuple, a list, or a
            dataclass, whose fields are. Anything else has no parts.
        convert: Called with each part.

    Returns:
        A batch of the same form and type, and ``batch`` itself where ``convert`` gave
        all of the parts back as they were.

    Raises:
        DataError: The type is somebody's own, and another one of it cannot be made.
    """
    if isinstance(batch, Mapping):
        changed = _changed(dict(batch), convert)
        return _with_values(batch, changed) if changed else batch
    if isinstance(batch, (tuple, list)):
        parts = [convert(part) for part in batch]
        if all(new is old for new, old in zip(parts, batch, strict=True)):
            return batch
        if isinstance(batch, list):
            batch = copy.copy(batch)
            batch[:] = parts
            return batch
        return batch._make(parts) if hasattr(batch, "_make") else _made_of(type(batch), parts)
    if is_dataclass(batch) and not isinstance(batch, type):
        changed = _changed({f.name: getattr(batch, f.name) for f in fields(batch)}, convert)
        if changed:
            batch = copy.copy(batch)
            for name, part in changed.items():
                object.__setattr__(batch, name, part)  # as it may be frozen
    return batch


def _changed(parts: dict[Any, Any], convert: Callable[[Any], Any]) -> dict[Any, Any]:
    converted = {key: convert(part) for key, part in parts.items()}
    return {key: part for key, part in converted.items() if part is not parts[key]}


def _with_values(batch: Any, changed: dict[Any, Any]) -> Any:
    """Return a mapping of the same type with some values exchanged."""
    # A copy keeps what a subclass carries (a default factory, an attribute). One of another
    # mapping may share its values with the original.
    if not isinstance(batch, (dict, UserDict)):
        return _made_of(type(batch), {**batch, **changed})
    batch = copy.copy(batch)
    for key, part in changed.items():
        batch[key] = part
    return batch


def _made_of(kind: type, parts: Any) -> Any:
    try:
        return kind(parts)
    except TypeError as error:
        raise DataError(
            f"a batch of type {kind.__name__} cannot be taken apart and made again: give the class "
            "a method to(device, non_blocking=...), and pin_memory() if ToDevice is to copy it "
            "ahead"
        ) from error


def model_device(model: Any) -> torch.device:
    """Return the device of a model's first parameter; the CPU where it has none."""
    parameters = getattr(model, "parameters", None)
    first = next(iter(parameters()), None) if parameters is not None else None
    return torch.device("cpu") if first is None else first.device


def device_to_move_to(model: Any) -> torch.device | None:
    """Return the device that batches must be moved to; ``None`` when they are to stay."""
    device = model_device(model)
    return None if device.type == "cpu" else device


def loader_length(dl: Any) -> int | None:
    """Return the number of batches of a loader, or ``None`` where it cannot tell."""
    try:
        return len(dl)
    except (TypeError, NotImplementedError, ValueError, OverflowError):
        return None  # no length; or infinity, a fraction, a number below 0 or beyond all bounds
