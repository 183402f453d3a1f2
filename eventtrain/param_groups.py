"""An optimizer's parameter groups: what they train, and setting fields as torch's schedulers do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .state import RunState


def trained_parameters(run: RunState) -> list[Tensor]:
    """Return the parameters that ``run.opt`` steps; the model's where it has no groups."""
    groups = getattr(run.opt, "param_groups", None)
    if groups is None:  # an optimizer of somebody's own
        return list(run.model.parameters())
    return [parameter for group in groups for parameter in group["params"]]


def gradients(run: RunState) -> Iterator[Tensor]:
    """Yield the gradients of ``trained_parameters``, less those that have none."""
    return (p.grad for p in trained_parameters(run) if p.grad is not None)


def has_field(group: dict[str, Any], name: str) -> bool:
    """Whether ``set_field`` can set ``name``; ``"momentum"`` also where there are ``betas``."""
    return name in group or (name == "momentum" and "betas" in group)


def groups_with(opt: Any, name: str, user: str) -> list[dict[str, Any]]:
    """Return the parameter groups of ``opt``, in all of which ``set_field`` can set ``name``.

    Args:
        opt: An optimizer.
        name: The field.
        user: Who is going to set it, for the message.

    Raises:
        TypeError: ``opt`` has no groups.
        ValueError: A group has no such field.
    """
    groups: list[dict[str, Any]] | None = getattr(opt, "param_groups", None)
    if groups is None:
        raise TypeError(f"{user} needs an optimizer with param_groups, got {opt!r}")
    for index, group in enumerate(groups):
        if not has_field(group, name):
            fields = ", ".join(key for key in group if key != "params") or "none"
            raise ValueError(
                f"{user} sets {name!r}, but group {index} of {type(opt).__name__} has no such "
                f"field (there are: {fields})"
            )
    return groups


def set_field(group: dict[str, Any], name: str, value: Any) -> None:
    """Set a field of a parameter group, without making the host wait.

    Args:
        group: One of ``opt.param_groups``.
        name: The field. ``"momentum"`` is the first of ``betas`` where the group
            has those and no momentum (Adam and its kin).
        value: The value. A field that holds a tensor keeps its tensor, which is filled:
            compiled and captured steps read it there.
    """
    is_beta = name == "momentum" and name not in group
    held = group["betas"][0] if is_beta else group.get(name)
    if isinstance(held, Tensor):
        # fill_ takes no tensor that has a dimension, and a rate may have one.
        held.fill_(value.squeeze() if isinstance(value, Tensor) else value)
    elif is_beta:
        group["betas"] = (value, *group["betas"][1:])
    else:
        group[name] = value
