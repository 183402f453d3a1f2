"""Callbacks that a runner takes in, each under its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from .callback import Callback
from .errors import CallbackError
from .learner import Learner
from .state import RunState

C = TypeVar("C", bound=Callback)


def made_by(make: Callable[[], Callback]) -> Callback:
    """Call one of the functions in ``cb_funcs``."""
    if isinstance(make, Callback) or not callable(make):
        raise CallbackError(
            f"cb_funcs, the second argument of Runner, holds functions that make a callback, got "
            f"{make!r}. Several callbacks go into one list: Runner([first, second])"
        )
    made = make()
    if made is None:
        raise CallbackError(f"{make!r} of cb_funcs returned None: it must return a callback")
    return made


def by_name(callbacks: Sequence[Callback], run: RunState) -> dict[str, Callback]:
    """Name callbacks that are to join those of ``run``."""
    taken = {callback.name: callback for callback in run.cbs}
    named: dict[str, Callback] = {}
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise CallbackError(
                f"a callback must be an instance of Callback, got {_not_one(callback)}"
            )
        name = callback.name
        other = named.get(name) or taken.get(name)
        if other is not None:
            raise CallbackError(
                f"two callbacks are called {name!r}: {other!r} and {callback!r}. "
                "Give one of them another name: callback.name = ..."
            )
        if name in run.__dict__ or hasattr(type(run), name):
            raise CallbackError(f"callback name {name!r} is an attribute of the runner's own")
        named[name] = callback
    return named


def callback_of(kind: type[C], run: RunState) -> C:
    """Return the one callback of that class that a run has, or of a class made from it."""
    if not isinstance(kind, type):
        raise TypeError(f"run[...] takes the class of a callback, run[Checkpoint], got {kind!r}")
    found = [callback for callback in run.cbs if isinstance(callback, kind)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(callback.name for callback in found or run.cbs)
    which = f"{len(found)} are: {names}; take one by its name" if found else f"there are {names}"
    raise LookupError(f"no single callback of this runner is of the class {kind.__name__}: {which}")


def _not_one(value: Any) -> str:
    """Say what stands in the place of a callback, and where it belongs."""
    if isinstance(value, type):
        remedy = f": pass {value.__name__}(...)" if issubclass(value, Callback) else ""
        return f"the class {value.__name__}{remedy}"
    if value is None:
        return "None: leave it out, as in Runner([cb for cb in cbs if cb is not None])"
    if isinstance(value, Learner):
        return f"{value!r}: what is trained is passed to fit, run.fit(epochs, learn)"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__}: put them all into one list, Runner([*first, second])"
    if isinstance(value, str):
        return f"{value!r}: make the callback. A plugin has a name: Runner(plugins=[{value!r}])"
    if callable(value) and not isinstance(value, torch.nn.Module):
        return f"{value!r}. A function is subscribed with run.on(event, function)"
    return (
        f"{value!r}. Model, optimizer, loss function and data go into a Learner, and that goes "
        "into fit: run.fit(epochs, Learner(model, opt, loss_func, data))"
    )
