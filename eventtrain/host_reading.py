"""Reading numbers that lie on devices, all in one go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_host(values: Any) -> Any:
    """Read all tensors in nested lists, tuples and dicts, in one transfer a device and dtype.

    Args:
        values: Tensors of any shape among anything else.

    Returns:
        The same nest with floats (or ints, or bools) in place of scalars, and
        nested lists in place of other tensors.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    _collect(values, groups)
    found: dict[int, Any] = {}
    for tensors in groups.values():
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).cpu()
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            found[id(tensor)] = part.view(tensor.shape).tolist()
    return _replaced(values, found) if found else values


def _collect(values: Any, groups: dict[tuple[torch.device, torch.dtype], list[Tensor]]) -> None:
    if isinstance(values, Tensor):
        groups.setdefault((values.device, values.dtype), []).append(values)
    elif isinstance(values, dict):
        for value in values.values():
            _collect(value, groups)
    elif isinstance(values, (list, tuple)):
        for value in values:
            _collect(value, groups)


def _replaced(values: Any, found: dict[int, Any]) -> Any:
    if isinstance(values, Tensor):
        return found[id(values)]
    if isinstance(values, dict):
        return {key: _replaced(value, found) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)([_replaced(value, found) for value in values])
    return values
