"""Names of parameters, which stay the same when a model is compiled."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..optimizers import parameter_groups
from ..state import RunState

_WRAPPER = "_orig_mod"


def plain_name(name: str) -> str:
    """Return a name without what ``torch.compile(module)`` puts in it."""
    return ".".join(part for part in name.split(".") if part != _WRAPPER)


def under_names_of(own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved state dictionary under the names of another one of the same model.

    Args:
        own: As the model's is now: compiled, in parts or as a whole, or not.
        saved: As it was. What ``own`` lacks keeps its name.
    """
    renamed: OrderedDict[str, Any] = OrderedDict(saved)
    names = {plain_name(name): name for name in own}
    plain = [plain_name(name) for name in saved]
    # A model that has such a part of its own must not lose it.
    if len(names) == len(own) and len(set(plain)) == len(saved):
        values = zip(plain, saved.items(), strict=True)
        renamed = OrderedDict((names.get(each, name), value) for each, (name, value) in values)
    versions = getattr(saved, "_metadata", None)
    if versions is not None:
        # The innermost has the module's own version, those around it the wrapper's.
        by_plain = {plain_name(path): versions[path] for path in sorted(versions, key=len)}
        paths = [*versions, *getattr(own, "_metadata", ())]
        renamed._metadata = OrderedDict(  # type: ignore[attr-defined]
            (path, by_plain.get(plain_name(path), {})) for path in paths
        )
    return renamed


def parameter_names(run: RunState) -> dict[int, str]:
    """Return the name of every parameter of model and loss function by the object's ``id``."""
    names: dict[int, str] = {}
    for prefix, part in (("", run.model), ("loss_func: ", run.loss_func)):
        named = list(part.named_parameters()) if hasattr(part, "named_parameters") else []
        plain = Counter(plain_name(name) for name, _ in named)
        for name, parameter in named:
            is_told = plain[plain_name(name)] == 1
            names.setdefault(id(parameter), prefix + (plain_name(name) if is_told else name))
    return names


def named_groups(run: RunState) -> Any:
    """Describe the parameters in the groups of the optimizer, as plain data.

    Returns:
        For each group its parameters in their order, each with ``"name"``, ``None`` where it is
        none of the model's and of the loss function's, and ``"shape"``. Of several optimizers a
        dictionary with such a list for each.
    """
    names = parameter_names(run)

    def about(parameter: Tensor) -> dict[str, Any]:
        shape = None if nn.parameter.is_lazy(parameter) else list(parameter.shape)
        return {"name": names.get(id(parameter)), "shape": shape}

    def of(opt: Any) -> list[list[dict[str, Any]]]:
        return [[about(p) for p in group["params"]] for _, group in parameter_groups(opt)]

    return by_optimizer(run.opt, of)


def by_optimizer(opt: Any, of: Callable[[Any], Any]) -> Any:
    """Return what ``of`` returns for an optimizer, and for several a dictionary of that by name."""
    if isinstance(opt, Mapping):
        return {name: of(each) for name, each in opt.items()}
    return of(opt)
