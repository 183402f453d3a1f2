"""What to say where a loss cannot be computed, or has no gradient; the cause is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .bus.handlers import place_of
from .bus.receivers import name_of
from .data.weights import form_of
from .errors import add_note
from .state import RunState


def explain_loss(error: Exception, run: RunState) -> None:
    """Say more about an exception that left ``loss_func``.

    Raises:
        TypeError: The model returned ``None``, or ``loss_func`` is no function: that is why.
    """
    func = run.loss_func
    if not callable(func):
        raise TypeError(
            f"loss_func of the Learner is {func!r}, which is no function of (pred, yb){_place(run)}"
        ) from error
    if run.pred is None and isinstance(error, (TypeError, AttributeError)):
        raise TypeError(
            f"the model {type(run.model).__name__} returned None, which {name_of(func)} makes no "
            f"loss of{_place(run)}: let its forward return something"
        ) from error
    given = f"pred of {form_of(run.pred)}, yb of {form_of(run.yb)}"
    add_note(error, f"Raised by loss_func {name_of(func)!r}, given {given}{_place(run)}.")


def explain_backward(error: Exception, run: RunState) -> None:
    """Say more about an exception that left ``loss.backward()``, where the loss is to blame.

    Raises:
        TypeError: The loss is no tensor.
        RuntimeError: It is no single number, or has no gradient.
    """
    loss = run.loss
    what = f"the loss, which loss_func {name_of(run.loss_func)!r} returned{_place(run)},"
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"{what} is {_text(loss)}: it must be a tensor with one number, computed from pred"
        ) from error
    if loss.numel() != 1:
        raise RuntimeError(
            f"{what} has shape {list(loss.shape)}: make one number of it, as in loss.mean(), "
            'or with reduction="mean"'
        ) from error
    if not loss.requires_grad:
        raise RuntimeError(f"{what} has no gradient: {_why_no_gradient(run, loss)}") from error


def _why_no_gradient(run: RunState, loss: Tensor) -> str:
    if not torch.is_grad_enabled():
        return "gradients are switched off, by torch.no_grad() or inference_mode()"
    model = run.model
    if isinstance(model, nn.Module):
        parameters = list(model.parameters())
        if not any(parameter.requires_grad for parameter in parameters):
            lack = "are frozen: set requires_grad_(True) on those to be trained"
            return f"all {len(parameters)} parameters of {type(model).__name__} {lack}"
    if not (loss.is_floating_point() or loss.is_complex()):
        return f"its dtype is {loss.dtype}; count nothing in it, and let it be of floating point"
    if isinstance(run.pred, Tensor) and run.pred.requires_grad:
        return "pred has one, so something in loss_func cuts it: detach(), item(), argmax()"
    return "pred has none either, so something in the model cuts it: detach(), no_grad(), argmax()"


def _text(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _place(run: RunState) -> str:
    place = place_of(run).removeprefix(", ")
    return f" ({place})" if place else ""
