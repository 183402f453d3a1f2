"""Changing the fields of an optimizer's parameter groups, as torch's own schedulers do."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def has_field(group: dict[str, Any], name: str) -> bool:
    """Whether ``set_field`` can set ``name``; ``"momentum"`` also where there are ``betas``."""
    return name in group or (name == "momentum" and "betas" in group)


def set_field(group: dict[str, Any], name: str, value: Any) -> None:
    """Set a field of a parameter group, without making the host wait.

    Args:
        group: One of ``opt.param_groups``.
        name: The field. ``"momentum"`` is the first of ``betas`` where the group
            has those and no momentum (Adam and its kin).
        value: The value. A field that holds a tensor keeps its tensor, which is filled:
            compiled and captured steps read it there.
    """
    if name == "momentum" and name not in group:
        group["betas"] = (value, *group["betas"][1:])
    elif isinstance(group.get(name), Tensor):
        group[name].fill_(value)
    else:
        group[name] = value
