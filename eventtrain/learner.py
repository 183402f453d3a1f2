"""What is trained: a model with its optimizer, loss and data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import real_number, whole_number
from .data.bunch import DataBunch
from .errors import DataError


@dataclass(eq=False, repr=False)
class Learner:
    """Model, optimizer, loss function and data, together and mutable.

    The loop reads them where it uses them, so a change takes effect at the
    next use, in the middle of a fit too.

    Attributes:
        model: Called with ``xb``; usually an ``nn.Module``.
        opt: A ``torch.optim`` optimizer, or anything with ``step`` and ``zero_grad``.
        loss_func: ``loss_func(pred, yb)``, a scalar tensor.
        data: The loaders.

    Raises:
        TypeError: A class stands in the place of an instance, or two parts are swapped.
        ValueError: The optimizer has no parameter of the model or the loss function.
    """

    model: Any
    opt: Any
    loss_func: Callable[..., Any]
    data: DataBunch

    def __post_init__(self) -> None:
        for name in ("model", "opt", "loss_func"):
            part = getattr(self, name)
            if isinstance(part, type):
                raise TypeError(
                    f"{name} is the class {part.__name__}: pass an instance of it, "
                    f"{part.__name__}(...)"
                )
        if isinstance(self.model, torch.optim.Optimizer) or isinstance(self.opt, nn.Module):
            raise TypeError("model and opt are swapped: Learner(model, opt, loss_func, data)")
        if isinstance(self.loss_func, DataBunch):
            raise TypeError("loss_func and data are swapped: Learner(model, opt, loss_func, data)")
        if isinstance(self.opt, torch.optim.Optimizer):
            _check_that_it_trains(self.opt, self.model, self.loss_func)

    def __repr__(self) -> str:
        return f"<Learner: {type(self.model).__name__} with {type(self.opt).__name__}>"


def _check_that_it_trains(opt: torch.optim.Optimizer, *parts: Any) -> None:
    """Refuse an optimizer of another model: it would train nothing, and no one would know."""
    modules = [part for part in parts if isinstance(part, nn.Module)]
    own = {id(p) for module in modules for p in module.parameters()}
    held = {id(p) for group in opt.param_groups for p in group["params"]}
    if own and held and not own & held:
        raise ValueError(
            f"{type(opt).__name__} has {len(held)} parameters, and none of them is one of "
            f"{type(modules[0]).__name__}: make it of the model's own, after whatever replaces "
            "them, as in torch.optim.SGD(model.parameters(), lr=0.1)"
        )


def get_model(
    data: DataBunch, lr: float = 0.5, nh: int = 50
) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """Return a classifier with one hidden layer, and plain SGD over its parameters.

    Args:
        data: Its ``train_ds.x`` is float [n, features]; ``c`` is the number of
            classes, taken from the largest label in ``train_ds.y`` when it is ``None``.
        lr: Learning rate.
        nh: Number of hidden units.

    Returns:
        ``(model, opt)``; the model maps [batch, features] to logits [batch, c].

    Raises:
        DataError: ``train_ds.x`` is not two-dimensional.
        TypeError, ValueError: ``lr`` is no number, or ``nh`` no whole number above 0.
    """
    lr, nh = real_number("lr", lr), whole_number("nh", nh, 1, "units")
    x = data.train_ds.x
    if x.ndim != 2:
        raise DataError(f"get_model needs inputs of shape [n, features], got {list(x.shape)}")
    classes = int(data.train_ds.y.max()) + 1 if data.c is None else int(data.c)
    model = nn.Sequential(nn.Linear(x.shape[1], nh), nn.ReLU(), nn.Linear(nh, classes))
    return model, torch.optim.SGD(model.parameters(), lr=lr)


def accuracy(out: Tensor, yb: Tensor) -> Tensor:
    """Return the share of rows whose largest logit is at the label.

    Args:
        out: Logits, float [batch, classes].
        yb: Labels, int64 [batch].

    Returns:
        A float32 scalar on the device of ``out``, in [0, 1].

    Raises:
        TypeError: One of the two is no tensor.
        ValueError: There is not one label for each row.
    """
    for value, name in ((out, "logits"), (yb, "labels")):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"accuracy needs {name} that are one tensor, got {type(value).__name__}: "
                "for other batches pass a metric of yours, fn(pred, yb)"
            )
    found = out.argmax(dim=1)
    if found.shape != yb.shape:  # they would be compared each with each
        raise ValueError(
            f"accuracy got logits of shape {list(out.shape)}, which take labels of shape "
            f"{list(found.shape)}, and labels of shape {list(yb.shape)}"
        )
    return (found == yb).float().mean()
