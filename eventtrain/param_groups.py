"""Parameter groups: what a run trains by them, and setting fields as torch's schedulers do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .optimizers import (
    named_optimizers,
    names_in_text,
    needs_closure,
    parameter_groups,
    why_no_such_name,
)

if TYPE_CHECKING:
    from .state import RunState


def trained_parameters(run: RunState) -> list[Tensor]:
    """Return the parameters that the optimizers of ``run`` step, each once.

    Those of the model where an optimizer has no groups.
    """
    return _parameters_of(run, run.opt)


def stepped_parameters(run: RunState) -> list[Tensor]:
    """Return the parameters of the optimizer that steps, in ``begin_step`` and ``after_step``."""
    return _parameters_of(run, stepped_optimizer(run))


def stepped_optimizer(run: RunState) -> Any:
    """Return the optimizer that steps, or was the last to do so."""
    return run.opt if run.stepping is None else run.opt[run.stepping]


def _parameters_of(run: RunState, opt: Any) -> list[Tensor]:
    if not all(hasattr(each, "param_groups") for _, each in named_optimizers(opt)):
        return list(run.model.parameters())  # an optimizer of somebody's own
    return [parameter for _, group in parameter_groups(opt) for parameter in group["params"]]


def gradients(run: RunState) -> Iterator[Tensor]:
    """Yield the gradients of ``trained_parameters``, less those that have none."""
    return (p.grad for p in trained_parameters(run) if p.grad is not None)


def optimizer_for(run: RunState, name: str | None, user: str) -> Any:
    """Return the optimizer that somebody is told to work on.

    Args:
        run: Its learner has one or several.
        name: That of one of several; ``None`` for one that is alone.
        user: Who works on it, for the message.

    Raises:
        TypeError: There are several, and none was named.
        ValueError: There is none of that name.
    """
    if name is None and isinstance(run.opt, Mapping):
        names = list(run.opt)
        raise TypeError(
            f"{user} is for one optimizer, and the Learner has {names_in_text(run.opt)}: say "
            f"which, {user}(..., optimizer={names[0]!r}), and give each a {user} of its own"
        )
    if name is None:
        return run.opt
    if not isinstance(run.opt, Mapping) or name not in run.opt:
        raise ValueError(f"{user}(optimizer={name!r}): {why_no_such_name(name, run.opt)}")
    return run.opt[name]


def refuse_several(run: RunState, user: str, why: str) -> None:
    """Refuse several optimizers where ``user`` cannot be right with them.

    Args:
        run: Its learner has one or several.
        user: Who refuses.
        why: The reason, and what to do.

    Raises:
        TypeError: There are several.
    """
    if isinstance(run.opt, Mapping):
        raise TypeError(f"{user} cannot be used with {names_in_text(run.opt)}: {why}")


def refuse_closure(run: RunState, user: str, why: str) -> None:
    """Refuse an optimizer that computes the loss anew in its step, as ``refuse_several`` does.

    Raises:
        TypeError: It is one.
    """
    if not isinstance(run.opt, Mapping) and needs_closure(run.opt):
        kind = type(run.opt).__name__
        raise TypeError(
            f"{user} cannot be used with {kind}, which computes loss and gradients anew, several "
            f"times a step: {why}"
        )


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
