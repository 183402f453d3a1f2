"""What can be pickled, told before pickle trips over it; and what a copy begins without."""

from __future__ import annotations

import pickle
import weakref
from typing import Any

from .errors import describe

_REMEDY = (
    "Functions and classes are found again by their names: define them at the top of a module, "
    "not as a lambda or inside of a function"
)


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
