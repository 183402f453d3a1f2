"""Parts of a model: chosen by name, by the modules themselves or by a rule; its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .errors import did_you_mean

Choice = str | nn.Module | Iterable[str | nn.Module] | Callable[[str, nn.Module], object]
"""Names as in ``model.named_modules()``, modules, or ``rule(name, module)``."""


def tensors_of(model: Any) -> dict[str, Tensor]:
    """Return parameters and buffers by name, shared ones once; none of what is no ``nn.Module``.

    Not what ``model.state_dict()`` holds: that leaves out buffers that are not persistent.
    """
    if not isinstance(model, nn.Module):
        return {}
    return dict(chain(model.named_parameters(), model.named_buffers()))


def copies_of(
    tensors: Mapping[str, Tensor], like: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Copy tensors, onto the devices of those of the same names in ``like``."""
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    if like is None:
        return copies
    return {name: t.to(like[name].device) if name in like else t for name, t in copies.items()}


@torch.no_grad()
def copy_into(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Fill the tensors of ``target`` with those of the same names: buffers may come and go."""
    for name, tensor in source.items():
        if name in target:
            target[name].copy_(tensor)


def choose_submodules(model: Any, choice: Choice) -> dict[str, nn.Module]:
    """Find the chosen parts of a model.

    Args:
        model: An ``nn.Module``.
        choice: One name or module, several, or a function of name and module
            that returns something true for those meant. ``""`` is the model itself.

    Returns:
        The modules by name, in the model's own order, none twice.

    Raises:
        TypeError: ``model`` is no ``nn.Module``, or ``choice`` is none of these.
        ValueError: A name or module is not in the model, or nothing was chosen.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"parts can be chosen of an nn.Module, not of {type(model).__name__}")
    named = dict(model.named_modules())
    if callable(choice) and not isinstance(choice, nn.Module):
        chosen = {name for name, module in named.items() if choice(name, module)}
    else:
        parts = [choice] if isinstance(choice, (str, nn.Module)) else list(choice)
        chosen = {_name_of(part, named) for part in parts}
    if not chosen:
        raise ValueError(f"no part of {type(model).__name__} was chosen by {choice!r}")
    return {name: module for name, module in named.items() if name in chosen}


def _name_of(part: object, named: dict[str, nn.Module]) -> str:
    if isinstance(part, str):
        if part not in named:
            raise ValueError(f"the model has no module {part!r}.{did_you_mean(part, named)}")
        return part
    if not isinstance(part, nn.Module):
        raise TypeError(f"choose modules, their names or a function, not {part!r}")
    for name, module in named.items():
        if module is part:
            return name
    raise ValueError(f"this {type(part).__name__} is no part of the model")
