"""What a run is of, as flat names and plain values, to be written down beside its numbers."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...data.batch import loader_length
from ...optimizers import named_optimizers
from ...reports.about_run import is_secret, kept_options
from ...train_eval import TrainEvalCallback
from .readings import plain_value

if TYPE_CHECKING:
    from ...callback import Callback
    from ...state import RunState

Plain = bool | int | float | str | None
_PLAIN = (bool, int, float, str, type(None))
_OF_LOADERS = ("batch_size", "bs", "num_workers", "shuffle", "drop_last", "seed")
_LONGEST = 500  # characters of a value


def describe_run(run: RunState) -> dict[str, Plain]:
    """Return what ``run`` trains, how, and with which callbacks.

    Args:
        run: In ``begin_fit`` or later.

    Returns:
        ``model``, ``model.parameters``, ``opt``, ``opt.lr`` (of several groups ``opt.0.lr``, of
        several optimizers ``opt.g.lr``), ``loss_func``, ``data.train``, ``data.train.batch_size``,
        ``callbacks.NAME``, ``callbacks.NAME.OPTION`` and so on, without what has a name like a
        password's.
    """
    found: dict[str, Plain] = {
        "epochs": run.epochs,
        "steps": run.total_steps,
        "validate_every": run.validate_every,
        "processes": run.world_size,
        **_of_model(run.model),
        "loss_func": None if run.loss_func is None else _name_of(run.loss_func),
    }
    for name, opt in named_optimizers(run.opt):
        found |= _of_optimizer("opt" if name is None else f"opt.{name}", opt)
    found |= _of_loader("data.train", run.data.train_dl)
    for valid, loader in run.valid_loaders.items():
        if loader is not None:
            found |= _of_loader("data.valid" if valid is None else f"data.valid.{valid}", loader)
    for callback in run.cbs:
        if not isinstance(callback, TrainEvalCallback):  # which every run has
            found |= dict(_of_callback(callback))
    return {name: value for name, value in found.items() if value is not None}


def describe_program() -> dict[str, str]:
    """Return the versions of what a run is made with."""
    package = sys.modules[__name__.partition(".")[0]]  # it is above this file, and imported
    return {
        "eventtrain": str(package.__version__),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _of_model(model: Any) -> dict[str, Plain]:
    found: dict[str, Plain] = {"model": _name_of(model)}
    if isinstance(model, nn.Module) and not any(map(_is_lazy, model.parameters())):
        sizes = [(each.numel(), each.requires_grad) for each in model.parameters()]
        found["model.parameters"] = sum(size for size, _ in sizes)
        found["model.trainable"] = sum(size for size, is_trained in sizes if is_trained)
        found["model.device"] = next((str(each.device) for each in model.parameters()), None)
    return found


def _is_lazy(parameter: Any) -> bool:
    return isinstance(parameter, nn.parameter.UninitializedParameter)


def _of_optimizer(prefix: str, opt: Any) -> dict[str, Plain]:
    found: dict[str, Plain] = {prefix: _name_of(opt)}
    groups = list(getattr(opt, "param_groups", ()))
    for index, group in enumerate(groups):
        of_group = prefix if len(groups) == 1 else f"{prefix}.{index}"
        for name, value in group.items():
            if name != "params":
                found[f"{of_group}.{name}"] = _plain(value)
    return found


def _of_loader(prefix: str, loader: Any) -> dict[str, Plain]:
    found: dict[str, Plain] = {prefix: _name_of(loader), f"{prefix}.batches": loader_length(loader)}
    for name in _OF_LOADERS:
        value = getattr(loader, name, None)
        if isinstance(value, (bool, int)):
            found[f"{prefix}.{name}"] = value
    dataset = getattr(loader, "dataset", None)
    if dataset is not None:
        found[f"{prefix}.dataset"] = _name_of(dataset)
        found[f"{prefix}.samples"] = loader_length(dataset)
    return found


def _of_callback(callback: Callback) -> Iterator[tuple[str, Plain]]:
    """Give the options of a callback: what it was made with, and has kept under the same name."""
    prefix = f"callbacks.{callback.name}"
    yield prefix, type(callback).__name__
    for name, value in kept_options(callback).items():
        if not is_secret(name):
            yield f"{prefix}.{name}", _plain(value)


def _plain(value: Any) -> Plain:
    """Return a value as text can have it, ``None`` for what says nothing in text."""
    value = plain_value(value) if isinstance(value, torch.Tensor) and value.numel() == 1 else value
    if isinstance(value, Mapping):
        parts: Any = [f"{key}={_plain(each)}" for key, each in value.items()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = [str(_plain(each)) for each in value]
    elif isinstance(value, _PLAIN):
        return value[:_LONGEST] if isinstance(value, str) else value
    elif hasattr(value, "__fspath__"):
        return str(value)[:_LONGEST]
    else:
        return _name_of(value)
    return ", ".join(parts)[:_LONGEST] or None


def _name_of(value: Any) -> str:
    """Return the name of a function or class, and of anything else that of its class."""
    named: Callable[..., Any] | type = value if hasattr(value, "__qualname__") else type(value)
    return named.__qualname__.replace("<locals>.", "")
