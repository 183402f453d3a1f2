"""What the loop has to know about a batch, its parts and its place, and a loader's length."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch


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
            and tuples, named tuples, lists and dicts of such, nested at will.
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
        batch: A dict, whose values are its parts, a tuple, a named tuple or a list.
            Anything else has no parts.
        convert: Called with each part.

    Returns:
        A batch of the same form and type, and ``batch`` itself where ``convert`` gave
        all of the parts back as they were.
    """
    if isinstance(batch, dict):
        converted = {key: convert(part) for key, part in batch.items()}
        changed = {key: part for key, part in converted.items() if part is not batch[key]}
        if changed:
            # A copy keeps what a subclass carries (a default factory, an attribute).
            batch = copy.copy(batch)
            batch.update(changed)
        return batch
    if isinstance(batch, (tuple, list)):
        parts = [convert(part) for part in batch]
        if all(new is old for new, old in zip(parts, batch, strict=True)):
            return batch
        if isinstance(batch, list):
            batch = copy.copy(batch)
            batch[:] = parts
            return batch
        return batch._make(parts) if hasattr(batch, "_make") else type(batch)(parts)
    return batch


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
