"""Parts of a model: chosen by name, by the modules themselves or by a rule; its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .errors import did_you_mean

Choice = str | nn.Module | Iterable[str | nn.Module] | Callable[[str, nn.Module], object]
"""Names as in ``model.named_modules()``, modules, or ``rule(name, module)``."""

_WRAPPER = "_orig_mod"
"""What ``torch.compile(module)`` calls ``module`` in the module that it returns."""


@dataclass
class _Place:
    """A tensor of a model, ``None`` where there is none yet, and all attributes that hold it."""

    tensor: Any
    slots: list[tuple[dict[str, Any], str]] = field(default_factory=list)


def _places(model: Any) -> dict[str, _Place]:
    """Return parameters and then buffers by their first names, without those of wrappers."""
    places: dict[str, _Place] = {}
    known: dict[int, _Place] = {}
    modules = list(model.named_modules()) if isinstance(model, nn.Module) else []
    modules = [(_plain_name(path) if _WRAPPER in path else path, m) for path, m in modules]
    for is_buffer in (False, True):
        for path, module in modules:
            slots = module._buffers if is_buffer else module._parameters
            for key, tensor in slots.items():
                name = f"{path}.{key}" if path else key
                place = _Place(tensor) if tensor is None else known.get(id(tensor))
                if place is None:
                    place = known[id(tensor)] = _Place(tensor)
                if not place.slots:
                    places[name] = place
                place.slots.append((slots, key))
    return places


def tensors_of(model: Any, *, lazy: bool = False) -> dict[str, Tensor]:
    """Return parameters and buffers by name, shared ones once; none of what is no ``nn.Module``.

    Not what ``model.state_dict()`` holds: that leaves out buffers that are not persistent. A
    compiled model, or part of one, has the names that it had before it was compiled.

    Args:
        model: The model.
        lazy: Those that are yet to be initialized too. Default ``False``.
    """
    return {
        name: place.tensor
        for name, place in _places(model).items()
        if place.tensor is not None and (lazy or not nn.parameter.is_lazy(place.tensor))
    }


def copies_of(
    tensors: Mapping[str, Tensor], like: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Copy tensors, onto the devices of those of the same names in ``like``."""
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    if like is None:
        return copies
    return {name: t.to(like[name].device) if name in like else t for name, t in copies.items()}


def fill(target: Tensor, value: Tensor) -> None:
    """Copy ``value`` into ``target``, also where its elements share memory, as ``expand`` has it.

    Args:
        target: A tensor that may be changed in place.
        value: One of the same shape, equal where the elements of ``target`` are one.
    """
    if target.layout is torch.strided:
        for dimension, stride in enumerate(target.stride()):
            if stride == 0 and target.size(dimension) > 1:  # torch refuses to copy into these
                target, value = target.narrow(dimension, 0, 1), value.narrow(dimension, 0, 1)
    target.copy_(value)


def is_expanded(tensor: Tensor) -> bool:
    """Whether elements of a tensor share memory, as ``expand`` has it; not of one yet to come."""
    if nn.parameter.is_lazy(tensor) or tensor.layout is not torch.strided:
        return False
    return any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def fits_into(target: Tensor, value: Tensor) -> bool:
    """Whether ``value`` is equal where the elements of ``target``, of its shape, are one."""
    if target.layout is not torch.strided or not is_expanded(target):
        return True
    first = value
    for dimension, stride in enumerate(target.stride()):
        if stride == 0 and target.size(dimension) > 1:
            first = first.narrow(dimension, 0, 1)
    return torch.equal(first.expand_as(value).nan_to_num(), value.nan_to_num())


@torch.no_grad()
def set_tensors(model: Any, values: Mapping[str, Tensor], *, replace_buffers: bool = False) -> None:
    """Fill parameters and buffers of ``model`` in place with the values of their names.

    Tensors that share memory go on sharing it. Values for which the model has no place are passed
    over, as buffers may come and go.

    Args:
        model: The model. Lazy parameters among those that have a value are initialized.
        values: By name, as ``tensors_of`` gives them.
        replace_buffers: Put a new tensor where a buffer is not there yet, or has another shape.
            By default such a buffer is left as it is.

    Raises:
        ValueError: A parameter has another shape; nothing has been changed then.
    """
    found = {name: place for name, place in _places(model).items() if name in values}
    for name, place in found.items():
        own, shape = place.tensor, values[name].shape
        is_set = isinstance(own, nn.Parameter) and not nn.parameter.is_lazy(own)
        if is_set and own.shape != shape:
            raise ValueError(
                f"{name} has shape {list(own.shape)}, and the values for it {list(shape)}: they "
                "are of another model"
            )
    # Parameters last: a buffer may be a view of one, and holds an older value of it then.
    for name, place in reversed(found.items()):
        own, value = place.tensor, values[name]
        if own is not None and nn.parameter.is_lazy(own):
            own.materialize(value.shape)
        if own is not None and own.shape == value.shape:
            fill(own, value)
        elif replace_buffers:
            new = value.clone() if own is None else value.to(own.device, copy=True)
            for slots, key in place.slots:
                slots[key] = new


def choose_submodules(model: Any, choice: Choice) -> dict[str, nn.Module]:
    """Find the chosen parts of a model.

    Args:
        model: An ``nn.Module``.
        choice: One name or module, several, or a function of name and module
            that returns something true for those meant. ``""`` is the model itself. Names are
            those before ``torch.compile``.

    Returns:
        The modules by name, in the model's own order, none twice.

    Raises:
        TypeError: ``model`` is no ``nn.Module``, or ``choice`` is none of these.
        ValueError: A name or module is not in the model, or nothing was chosen.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"parts can be chosen of an nn.Module, not of {type(model).__name__}")
    modules = [(_plain_name(name), module) for name, module in model.named_modules()]
    named = dict(modules)  # of a module that was compiled, the one inside
    if callable(choice) and not isinstance(choice, nn.Module):
        chosen = {name for name, module in named.items() if choice(name, module)}
    else:
        is_one = isinstance(choice, (str, nn.Module)) or not isinstance(choice, Iterable)
        parts: list[Any] = [choice] if is_one else list(choice)  # type: ignore[arg-type]
        chosen = {_name_of(part, named, modules) for part in parts}
    if not chosen:
        raise ValueError(f"no part of {type(model).__name__} was chosen by {choice!r}")
    return {name: module for name, module in named.items() if name in chosen}


def _plain_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _WRAPPER)


def _name_of(
    part: object, named: dict[str, nn.Module], modules: list[tuple[str, nn.Module]]
) -> str:
    if isinstance(part, str):
        name = _plain_name(part)
        if name not in named:
            raise ValueError(f"the model has no module {part!r}.{did_you_mean(name, named)}")
        return name
    if not isinstance(part, nn.Module):
        raise TypeError(f"choose modules, their names or a function, not {part!r}")
    for name, module in modules:
        if module is part:
            return name
    raise ValueError(f"this {type(part).__name__} is no part of the model")
