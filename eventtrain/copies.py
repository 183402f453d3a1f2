"""What can be pickled, told before pickle trips over it; and what a copy begins without."""

from __future__ import annotations

import pickle
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from .errors import describe

_REMEDY = (
    "Functions and classes are found again by their names: define them at the top of a module, "
    "not as a lambda or inside of a function"
)


_under_way = threading.local()


def attribute_not_pickled(owner: object, attributes: Mapping[str, Any]) -> str | None:
    """Say which attribute pickle would not take, and why; ``None`` when it takes them all.

    Args:
        owner: Whose they are. What they hold may refer to it, and ask this in its turn.
        attributes: By name.
    """
    owners: set[int] = vars(_under_way).setdefault("owners", set())
    if id(owner) in owners:
        return None
    owners.add(id(owner))
    try:
        for name, value in attributes.items():
            cause = why_not_pickled(value)
            if cause is not None:
                return f"{name}: {cause}"
    finally:
        owners.discard(id(owner))
    return None


def why_not_pickled(value: object) -> str | None:
    """Say what of ``value`` pickle would not take, and what to do; ``None`` when it takes all.

    Tensors are not looked at: they can be pickled, and it takes long.
    """
    try:
        _Probe(_Nowhere()).dump(value)
    except (pickle.PicklingError, AttributeError) as error:
        return f"{error}. {_REMEDY}."
    except Exception as error:  # whatever somebody's __reduce__ raises, in its own words
        return describe(error)
    return None


class Emptied:
    """Stands in a pickle for a collection that holds weakly; what is loaded is an empty one."""

    def __init__(self, kind: type[Any]) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[type[Any], tuple[()]]:
        return self.kind, ()


def without_weak_references(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state without what is held weakly, which is another's: ``None``, or emptied."""
    kinds = (weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
    changed: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, weakref.ref):
            changed[name] = None
        else:
            changed[name] = Emptied(type(value)) if isinstance(value, kinds) else value
    return changed


class _Probe(pickle.Pickler):
    def persistent_id(self, value: object) -> str | None:
        kind = type(value)
        is_tensor = kind.__name__ in ("Tensor", "Parameter") and kind.__module__.startswith("torch")
        return "" if is_tensor else None


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)
