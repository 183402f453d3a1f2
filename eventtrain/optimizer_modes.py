"""Optimizers that hold other weights while they train than those to evaluate with.

Such an optimizer (schedule-free ones do so) has ``train()`` and ``eval()``, which exchange the
weights in the model. Here they are called where the model's own mode changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .around import around
from .optimizers import named_optimizers, parameter_groups


def modal_optimizers(opt: Any) -> list[Any]:
    """Return those optimizers that have modes.

    Args:
        opt: ``learn.opt``.
    """
    return [
        each
        for _, each in named_optimizers(opt)
        if callable(getattr(each, "train", None)) and callable(getattr(each, "eval", None))
    ]


def set_optimizer_modes(opt: Any, *, training: bool) -> None:
    """Have optimizers hold the weights that train, or those to evaluate with."""
    for each in modal_optimizers(opt):
        each.train() if training else each.eval()


def optimizer_modes_of(opt: Any, *, exact: bool) -> Callable[[], None]:
    """Return what puts optimizers back into the modes in which they are now.

    An optimizer tells its mode as ``train_mode``, in its groups or of itself. One that does not
    tell is left in evaluation mode, so that the model has the weights to use.

    Args:
        opt: ``learn.opt``.
        exact: Nothing trains meanwhile: those that train get their weights back bit for bit,
            of which a copy is kept, as the way there and back rounds.
    """
    modes = [(each, _is_training(each)) for each in modal_optimizers(opt)]
    weights = [pair for each, training in modes if exact and training for pair in _copies(each)]

    def put_back() -> None:
        for each, training in modes:
            each.train() if training else each.eval()
        _copy_back(weights)

    return put_back


@around
def evaluation_weights(opt: Any) -> Iterator[None]:
    """Have optimizers that train hold the weights to evaluate with, and put theirs back."""
    modal = modal_optimizers(opt)
    weights = [pair for each in modal for pair in _copies(each)]
    try:
        for each in modal:
            each.eval()
        yield
    finally:
        for each in modal:
            each.train()
        _copy_back(weights)


def _is_training(opt: Any) -> bool:
    groups = [group for _, group in parameter_groups(opt)]
    told = groups[0].get("train_mode") if groups else None
    return bool(getattr(opt, "train_mode", False) if told is None else told)


def _copies(opt: Any) -> list[tuple[Tensor, Tensor]]:
    parameters = [p for _, group in parameter_groups(opt) for p in group["params"]]
    return [(parameter, parameter.detach().clone()) for parameter in parameters]


@torch.no_grad()
def _copy_back(weights: list[tuple[Tensor, Tensor]]) -> None:
    for parameter, value in weights:
        parameter.copy_(value)
