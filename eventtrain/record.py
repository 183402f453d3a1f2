"""What a run was when an event fired, for who looks at it later."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from torch import Tensor

from .background_options import TENSORS
from .bus.handlers import place_of
from .data.batch import convert_parts
from .optimizers import parameter_groups

_NUMBERS = (
    *("epoch", "epochs", "total_steps", "n_epochs", "n_iter", "steps", "phase", "valid_name"),
    *("in_train", "batch_index", "iters", "train_iters", "outcome", "rank"),
)


class Record:
    """What a run was when an event fired; nothing of it changes.

    It has ``event``, ``time`` (seconds since 1970), ``loss`` and ``losses`` (copies, on their
    device, without a graph), ``lrs`` (of the parameter groups), ``row`` (of the history, as it
    was), the counters of the run from ``epoch`` to ``steps``, and what ``tensors=`` has named.
    """

    __slots__ = ("_fields",)
    _fields: Mapping[str, Any]

    def __init__(self, fields: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_fields", MappingProxyType(dict(fields)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._fields:
            return self._fields[name]
        remedy = f": ask for a copy, tensors=({name!r},)" if name in TENSORS else ""
        raise AttributeError(
            f"a handler in the background gets a record of the run, which has no {name!r}{remedy}. "
            f"It has {', '.join(self._fields)}"
        )

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(
            f"{name} of a record cannot be set: the run has gone on. What changes the run is a "
            "handler without background=True"
        )

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self._fields]

    def __repr__(self) -> str:
        return f"<Record of {self.event}{place_of(self)}>"


def record_of(run: Any, event: str, tensors: Iterable[str] = ()) -> Record:
    """Copy what there is of a run, without waiting for a device."""
    groups = [] if run.learn is None else [group for _, group in parameter_groups(run.opt)]
    found = {name: getattr(run, name) for name in (*_NUMBERS, "loss", "losses")}
    for name in ("loss", "losses", *tensors):
        found[name] = _copied(getattr(run, name))
    found["lrs"] = tuple(_copied(group.get("lr")) for group in groups)
    found["row"] = MappingProxyType(
        {k: _copied(v) for k, v in run.history[-1].items()} if run.history else {}
    )
    return Record({"event": event, "time": time.time(), **found})


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else convert_parts(value, _copied)
