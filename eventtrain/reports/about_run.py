"""What an event log tells of a run in its first line, and of its learning rates later on."""

from __future__ import annotations

import inspect
import os
import platform
import re
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from ..callback import Callback
from ..data.batch import loader_length, model_device
from ..optimizers import named_optimizers
from .about import FORMAT

_LONGEST, _MOST = 2000, 20
_IS_SECRET = re.compile(r"api_?key|token|passw|secret|credential", re.IGNORECASE)


def about_run(run: Any, began_at: float) -> dict[str, Any]:
    """Say what is run, where, and from where on. Nothing is read from a device.

    Args:
        run: A runner whose fit, validation or prediction has begun.
        began_at: When, in seconds since the Unix epoch.
    """
    return {
        "format": FORMAT,
        "began_at": began_at,
        "resumed": run.starting_point.told(),
        "environment": environment(run),
        "configuration": configuration(run),
    }


def environment(run: Any) -> dict[str, Any]:
    """Say on what machine and with which versions a run goes on."""
    device = model_device(run.model) if run.learn is not None else torch.device("cpu")
    name = str(device)
    with suppress(Exception):  # a device that has failed fails here too
        if device.type == "cuda":
            name = f"{device} ({torch.cuda.get_device_name(device)})"
    return {
        "eventtrain": sys.modules[__name__.partition(".")[0]].__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "program": sys.argv[0] if sys.argv else "",
        "device": name,
        "rank": run.rank,
        "world_size": run.world_size,
    }


def configuration(run: Any) -> dict[str, Any]:
    """Say what is trained, by what, for how long, and which callbacks look on."""
    callbacks = {cb.name: _with_class(cb, _told(kept_options(cb))) for cb in run.cbs}
    asked = {
        "epochs": run.epochs,
        "steps": run.total_steps,
        "validate_every": run.validate_every,
        "callbacks": callbacks,
        "plugins": [plugin.name for plugin in getattr(run, "plugins", ())],
    }
    if run.learn is None:
        return asked
    data = run.data
    optimizers = {
        "opt" if name is None else f"opt {name}": _with_class(opt, _first_group(opt))
        for name, opt in named_optimizers(run.opt)
    }
    return {
        "model": type(run.model).__name__,
        "parameters": _count_of_parameters(run.model),
        "loss": _name_of(run.loss_func),
        **optimizers,
        "training batches": None if data is None else _length(data.train_dl),
        **asked,
    }


def rates_of(opt: Any) -> dict[str, float]:
    """Return the learning rates that are numbers, by what tells groups and optimizers apart.

    Returns:
        ``{"lr": 0.1}``, of several groups ``"lr 0"`` and so on, of an optimizer ``g`` of several
        ``"g lr"``. Rates that are tensors are left out.
    """
    found: dict[str, float] = {}
    for name, each in named_optimizers(opt):
        groups = getattr(each, "param_groups", ())
        owner = "" if name is None else f"{name} "
        for index, group in enumerate(groups):
            rate = group.get("lr")
            if isinstance(rate, (int, float)):
                label = f"{owner}lr" if len(groups) == 1 else f"{owner}lr {index}"
                found[label] = float(rate)
    return found


def is_secret(name: str) -> bool:
    """Whether a name is like that of a key, a token or a password."""
    return _IS_SECRET.search(name) is not None


def without_secrets(settings: Any) -> Any:
    """Return settings, with nothing at the names that are called like a secret."""
    if isinstance(settings, Mapping):
        return {
            name: "(not shown)" if is_secret(str(name)) else without_secrets(value)
            for name, value in settings.items()
        }
    return list(map(without_secrets, settings)) if isinstance(settings, list) else settings


def _with_class(thing: object, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"class": type(thing).__name__, **options}


def kept_options(callback: Callback) -> dict[str, Any]:
    """Return the arguments that a callback was made with, as far as it keeps them by name."""
    try:
        names = inspect.signature(type(callback)).parameters
    except (TypeError, ValueError):
        return {}
    values = vars(callback)  # not getattr, which would ask the run too
    return {name: values[name] for name in names if name in values}


def _first_group(opt: Any) -> dict[str, Any]:
    groups: Any = getattr(opt, "param_groups", ()) or ({},)
    options = _told({name: value for name, value in groups[0].items() if name != "params"})
    return {**options, "groups": len(groups)} if len(groups) > 1 else options


def _told(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: "(not shown)" if is_secret(name) and value is not None else _plain(value)
        for name, value in options.items()
    }


def _plain(value: Any) -> Any:
    """Return what can be written down without asking a device, or a stranger's ``__repr__``."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, os.PathLike)):
        return os.fsdecode(value)[:_LONGEST]
    if isinstance(value, (list, tuple)) and len(value) <= _MOST:
        return [_plain(each) for each in value]
    return _name_of(value)


def _name_of(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) else type(value).__name__


def _count_of_parameters(model: Any) -> int | None:
    with suppress(Exception):  # a lazy module cannot tell yet
        return int(sum(each.numel() for each in model.parameters()))
    return None


def _length(loader: Any) -> int | None:
    with suppress(Exception):
        return loader_length(loader)
    return None
