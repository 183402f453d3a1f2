"""What the model, the loss function or the backward pass was given when it raised, and a remedy.

Raw errors of torch's name neither. Nothing of this runs before there is an exception.
"""

from __future__ import annotations

import inspect
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
        return _about_loss(error, run)
    if any("raised in handler" in str(each) for each in getattr(error, "__notes__", ())):
        return ""
    if "compute_loss(" in line or "loss_func(" in line:
        return _about_targets(error, run)
    if "optimizer_step(" in line:
        return _about_step(error, run)
    is_call = any(call in line for call in ("model(", "model_wrapped(", "call_model("))
    return _about_inputs(error, run) if is_call else ""


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


def _about_inputs(error: Exception, run: RunState) -> str:
    xb = run.xb
    if run.learn is not None and run.learn.forward is not None:
        return f"forward(model, batch) was called, where batch is {described(run.batch)}"
    is_by_keys = isinstance(xb, Mapping) and isinstance(run.model, torch.nn.Module)
    if run.loss_func is None and is_by_keys:
        keys = ", ".join(map(repr, xb))
        return (
            f"the model was called as model(**batch), where batch has the keys {keys}: its "
            "forward() must take each of them. Leave others out in the loader, or give the Learner "
            "forward=lambda model, batch: ..."
        )
    said = f"the model was called as model(xb), where xb is {described(xb)}"
    if isinstance(xb, (tuple, list)) and xb is not run.batch:
        return f"{said}: one argument, which forward() has to take apart, as in first, second = xb"
    if isinstance(xb, Mapping) and _takes_keys(run.model, xb):
        return (
            f"{said}. Its forward() takes these by name: Learner(..., forward=lambda model, batch: "
            "model(**batch)), and loss_func(pred, batch) gets the batch; or loss_func=None, where "
            "the model computes its loss"
        )
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
    return said + _of_shape(str(error), xb)


def _takes_keys(model: Any, batch: Mapping[Any, Any]) -> bool:
    """Whether a module says that it takes what stands in a batch, each by its key."""
    if not isinstance(model, torch.nn.Module):
        return False
    parameters = inspect.signature(model.forward).parameters
    return any(key in parameters for key in batch)


def _of_shape(text: str, xb: Tensor) -> str:
    """Return what to do about a shape that a layer does not take; ``""`` where nobody knows."""
    if "mat1 and mat2 shapes" in text and xb.ndim > 2:
        return ". Linear layers take [batch, features]: put nn.Flatten() before the first"
    if "more than 1 value per channel" in text:
        return ". Batch normalization trains on two rows or more: drop_last=True in the loader"
    if "Given groups=" in text and xb.ndim and f"expected input[1, {len(xb)}, " in text:
        return ", which was taken for one sample without a batch: xb.unsqueeze(1) adds channels"
    return ""


def _how_to_choose(batch: Any) -> str:
    if isinstance(batch, (Mapping, tuple, list)) and len(batch) > 0:
        keys: Sequence[Any] = list(batch) if isinstance(batch, Mapping) else range(len(batch))
        one, other = keys[0], keys[min(1, len(keys) - 1)]
        return (
            "A batch that is no pair goes to model and loss function as a whole. Have the loader "
            "yield (inputs, targets), or choose them from what it yields: "
            f"BatchTransform(lambda xb, yb: (xb[{one!r}], yb[{other!r}]), during=None); or call "
            "the model as it is to be called, Learner(..., forward=lambda model, batch: ...)"
        )
    return (
        "Have the loader yield tensors: a DataLoader makes them of arrays and numbers, and "
        "text has to be tokenized"
    )


def _about_targets(error: BaseException, run: RunState) -> str:
    pred, yb = run.pred, run.yb
    if run.loss_func is None:
        return ""  # the model's own, and what is wrong with it is said
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
    return f"{said}{_of_labels(str(error), pred, yb)}" if isinstance(yb, Tensor) else said


def _of_labels(text: str, pred: Tensor, yb: Tensor) -> str:
    """Return what to do about targets that a loss does not take; ``""`` where nobody knows."""
    if "Long" in text and yb.dtype is not torch.int64:
        return ". Labels of classes are int64: yb.long()"
    if "Long" in text:
        rows = ", or yb.argmax(1), if they are rows of one class each" if yb.ndim > 1 else ""
        return f". Targets that are no labels of classes are floats: yb.float(){rows}"
    if "multi-target" in text and yb.shape[1:] == (1,):
        return ". Labels of classes have one dimension: yb.squeeze(1)"
    if text.startswith("Target ") and "out of bounds" in text and pred.ndim > 1:
        last = pred.shape[1] - 1
        return f". pred has {last + 1} classes, so labels go from 0 to {last}"
    if "between 0 and 1" in text:
        return (
            ". It takes probabilities: use binary_cross_entropy_with_logits, or a model that "
            "ends with a sigmoid"
        )
    if pred.shape != yb.shape and pred.squeeze().shape == yb.shape:
        return ". Give both one shape: pred.squeeze(-1), or yb.unsqueeze(-1)"
    return ""


def _about_step(error: Exception, run: RunState) -> str:
    if not (isinstance(error, TypeError) and "closure" in str(error)):
        return ""
    return (
        f"{type(run.opt).__name__} takes its steps with a closure, which computes the loss anew, "
        "and the loop gives one to optimizers alone whose step requires it, step(self, closure): "
        "override optimizer_step of a Runner of yours"
    )


def _about_loss(error: Exception, run: RunState) -> str:
    loss = run.loss
    one_batch: Any = getattr(type(run), "one_batch", None)
    is_own = getattr(one_batch, "__module__", "").partition(".")[0] != __package__
    if is_own and not run.in_train:
        return (
            f"one_batch of {type(run).__name__} made a backward pass in validation: return behind "
            "after_loss, unless self.in_train"
        )
    if is_own and loss is None:
        return (
            f"run.loss is None: one_batch of {type(run).__name__} sets self.loss before it fires "
            "after_loss"
        )
    if loss is None:
        return "the loss is None: loss_func lacks a return"
    if isinstance(loss, Number):
        return (
            f"the loss is {loss!r}, a plain number, which has no gradient: have loss_func return "
            "the tensor, without .item() or float()"
        )
    if isinstance(loss, Mapping) and "loss" in loss:
        return (
            f"the loss is {described(loss)}, and the first one of the run was no mapping: have "
            "loss_func return a mapping for every batch, in training and validation, or for none"
        )
    if not isinstance(loss, Tensor):
        return f"the loss is {described(loss)}: have loss_func return one tensor, a scalar"
    if loss.ndim and loss.numel() != 1:
        return (
            f"the loss is {described(loss)}: make one number of it, by reduction='mean' or "
            "loss.mean()"
        )
    if not loss.requires_grad:
        return f"the loss has no gradient: {_why_no_gradient(run, loss)}"
    if "a second time" in str(error):
        return (
            "a graph is gone through once, by the loop itself: call backward() nowhere else, and "
            "detach() what is carried over from the batch before, a hidden state say"
        )
    return ""


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
