"""What the model, the loss function or the backward pass was given when it raised, and a remedy.

Raw errors of torch's name neither. Nothing of this runs before there is an exception.
"""

from __future__ import annotations

import linecache
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Number
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .errors import add_note
from .state import RunState


def note_what_was_given(error: BaseException, run: RunState) -> None:
    """Add a note to what the lines of ``one_batch`` raised: what they worked on, and what to write.

    Args:
        error: The exception, with its traceback. It stays the one it is.
        run: The run, as it was then.
    """
    # What the exception and the batch do here may fail, and must not take the exception's place.
    with suppress(Exception):
        note = _note(error, run)
        if note:
            add_note(error, f"eventtrain: {note}")


def _note(error: BaseException, run: RunState) -> str:
    if not isinstance(error, Exception) or run.batch is None:
        return ""
    line = _line_of_one_batch(error.__traceback__)
    if ".backward(" in line or ("after_loss()" in line and not isinstance(run.loss, Tensor)):
        return _about_loss(run)
    if any("raised in handler" in str(each) for each in getattr(error, "__notes__", ())):
        return ""
    if "loss_func(" in line:
        return _about_targets(error, run)
    return _about_inputs(run) if "model(" in line else ""


def described(value: Any) -> str:
    """Return type, shape and place of a value in few words."""
    if isinstance(value, Tensor):
        name = str(value.dtype).removeprefix("torch.")
        return f"a {name} tensor of shape {list(value.shape)} on {value.device}"
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {kind} with the keys {', '.join(map(repr, list(value)[:8]))}"
    if isinstance(value, (tuple, list)):
        return f"a {kind} of {len(value)}"
    return "None" if value is None else f"a {kind}"


def _line_of_one_batch(traceback: TracebackType | None) -> str:
    """Return the line that raised in the innermost ``one_batch``; ``""`` where there is none."""
    line = ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code.co_name == "one_batch":
            line = linecache.getline(code.co_filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return line


def _about_inputs(run: RunState) -> str:
    xb = run.xb
    said = f"the model was called as model(xb), where xb is {described(xb)}"
    if not isinstance(xb, Tensor):
        return f"{said}. {_how_to_choose(xb)}"
    parameters: list[Tensor] = list(getattr(run.model, "parameters", list)())
    floats = [p for p in parameters if p.is_floating_point()]
    if floats and xb.dtype != floats[0].dtype:
        how = "xb.float()" if xb.is_floating_point() else "xb.float() / 255"
        return (
            f"{said}, and its parameters are of {floats[0].dtype}. Convert in the data set, or "
            f"with BatchTransform(x=lambda xb: {how}, during=None)"
        )
    return said


def _how_to_choose(batch: Any) -> str:
    if isinstance(batch, (Mapping, tuple, list)) and len(batch) > 0:
        keys: Sequence[Any] = list(batch) if isinstance(batch, Mapping) else range(len(batch))
        one, other = keys[0], keys[min(1, len(keys) - 1)]
        return (
            "A batch that is no pair goes to model and loss function as a whole. Have the loader "
            "yield (inputs, targets), or choose them from what it yields: "
            f"BatchTransform(lambda xb, yb: (xb[{one!r}], yb[{other!r}]), during=None)"
        )
    return (
        "Have the loader yield tensors: a DataLoader makes them of arrays and numbers, and "
        "text has to be tokenized"
    )


def _about_targets(error: BaseException, run: RunState) -> str:
    pred, yb = run.pred, run.yb
    if not callable(run.loss_func):
        return f"loss_func of the Learner is {run.loss_func!r}, which is no function of (pred, yb)"
    if pred is None:
        name = type(run.model).__name__
        return f"the model {name} returned None: its forward() lacks a return"
    said = f"loss_func(pred, yb) was called with pred, {described(pred)}, and yb, {described(yb)}"
    if not isinstance(pred, Tensor):
        return (
            f"{said}. Have loss_func take the tensor out of it, as in "
            "lambda out, yb: cross_entropy(out['logits'], yb)"
        )
    if yb is run.batch and not isinstance(yb, Tensor):
        return f"{said}. {_how_to_choose(yb)}"
    if yb is run.batch:
        return f"{said}: the whole batch, as it is no pair. Have the loader yield (inputs, targets)"
    if isinstance(yb, Tensor) and "Long" in str(error):
        return f"{said}. Labels of classes are int64: yb.long()"
    if isinstance(yb, Tensor) and pred.shape != yb.shape and pred.squeeze().shape == yb.shape:
        return f"{said}. Give both one shape: pred.squeeze(-1), or yb.unsqueeze(-1)"
    return said


def _about_loss(run: RunState) -> str:
    loss = run.loss
    if loss is None:
        return "the loss is None: loss_func lacks a return"
    if isinstance(loss, Number):
        return (
            f"the loss is {loss!r}, a plain number, which has no gradient: have loss_func return "
            "the tensor, without .item() or float()"
        )
    if not isinstance(loss, Tensor):
        return f"the loss is {described(loss)}: have loss_func return one tensor, a scalar"
    if loss.ndim and loss.numel() != 1:
        return (
            f"the loss is {described(loss)}: make one number of it, by reduction='mean' or "
            "loss.mean()"
        )
    return "" if loss.requires_grad else f"the loss has no gradient: {_why_no_gradient(run, loss)}"


def _why_no_gradient(run: RunState, loss: Tensor) -> str:
    if not torch.is_grad_enabled():
        return "gradients are switched off, by torch.no_grad() or inference_mode()"
    parameters: list[Tensor] = list(getattr(run.model, "parameters", list)())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        lack = "are frozen: set requires_grad_(True) on those to be trained"
        return f"all {len(parameters)} parameters of {type(run.model).__name__} {lack}"
    if not (loss.is_floating_point() or loss.is_complex()):
        return f"its dtype is {loss.dtype}; count nothing in it, and let it be of floating point"
    cut = "look for .detach(), .item(), torch.no_grad(), or an argmax() in place of logits"
    if isinstance(run.pred, Tensor) and run.pred.requires_grad:
        return f"pred has one, so something in loss_func cuts it: {cut}"
    return f"pred has none either, so something in the model cuts it: {cut}"
