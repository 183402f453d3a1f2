"""What is trained: a model with its optimizer, loss and data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .arguments import real_number, whole_number
from .data.bunch import DataBunch, check_loader, check_valid_loaders
from .data.weights import Weight
from .errors import DataError
from .model_call import Forward, ModelCall, own_loss, whole_loss
from .optimizers import (
    can_step,
    check_optimizers,
    is_factory,
    is_made,
    make_optimizers,
    named_optimizers,
    needs_closure,
)
from .steppers import OneStepper, RememberedLoss, SeveralSteppers, steppers_of

Use = Literal["fit", "validate", "predict"]
_MANY = (list, tuple)
_CONTAINERS = (*_MANY, Mapping, Iterator)
# The last knows which of several optimizers steps, and outlives a change of anything else.
_DERIVED = ("call_model", "compute_loss", "steppers")


@dataclass(eq=False, repr=False)
class Learner:
    """Model, optimizer, loss function and data, together and mutable.

    The loop reads them where it uses them, so a change takes effect at the
    next use, in the middle of a fit too.

    Attributes:
        model: Called with ``xb``; usually an ``nn.Module``.
        opt: A ``torch.optim`` optimizer, or anything with ``step`` and ``zero_grad``. Or a
            factory, ``lambda params: torch.optim.AdamW(params, lr=1e-3)``: the first fit calls it
            with the model's parameters when it begins, and what it returns takes its place. Or
            several by name, ``{"g": ..., "d": ...}``, each an optimizer, or a factory with the
            part of the model that it is for, ``("generator", lambda params: ...)``; a ``one_batch``
            of your own steps them, with ``self.optimizer_step("g")``. An optimizer whose ``step``
            needs a closure (``LBFGS``) gets one that computes the batch's loss anew.
        loss_func: ``loss_func(pred, yb)``, a scalar tensor, or a mapping with one at ``"loss"``
            and the parts that it is made of, which ``run.losses`` has. ``None`` where the model
            computes its loss: it is then taken out of what the model returns, ``pred.loss`` or
            ``pred["loss"]``; or that is the loss, or in training a mapping of losses, which are
            added.
        data: The loaders.
        forward: ``forward(model, batch)`` calls the model and returns what it predicts. ``None``
            (default) calls ``model(xb)``; or ``model(**batch)`` where there is no ``loss_func``,
            the model is a module and the batch a mapping. Call the ``model`` that it gets: on
            several processes it is what shares the gradients.
        weight: ``weight(batch)`` says what the loss of a batch is a mean of (tokens, boxes,
            graphs), as a number or a tensor without dimensions, which stays on its device.
            Averages, ``GradientAccumulation`` and ``Throughput`` read it as ``run.weight``.
            ``None`` (default) counts samples: those of the target where they can be counted,
            else of the input, and an error where these disagree; of ``run.xb`` and ``run.yb``
            where a handler has chosen them from a batch that cannot be counted.

    Raises:
        TypeError: A class stands in the place of an instance, two parts are swapped, or
            ``data`` or one of its loaders is something else.
        ValueError: An optimizer has no parameter of the model, which is a module, or of the
            loss function; two have one in common; or a mapping of them is empty.
    """

    model: Any
    opt: Any
    loss_func: Callable[..., Any] | None
    data: DataBunch
    weight: Weight | None = field(default=None, kw_only=True)
    forward: Forward | None = field(default=None, kw_only=True)
    _wrap: Callable[[Any], Any] | None = field(default=None, init=False)
    _run: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.check()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("model", "_wrap"):
            self._model_has_changed()
        # What is derived is made anew when it is next used.
        for derived in _DERIVED if name in ("opt", "_run") else _DERIVED[:-1]:
            self.__dict__.pop(derived, None)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_run": None}  # which cannot be copied, and is another's
        for derived in _DERIVED:
            state.pop(derived, None)
        return state

    @cached_property
    def model_wrapped(self) -> Any:
        """The model itself, or what has been put around it for a run."""
        wrap = self._wrap
        return self.model if wrap is None else wrap(self.model)

    @cached_property
    def call_model(self) -> Any:
        """What the loop calls with ``xb`` for a prediction."""
        called, run = self.model_wrapped, self._run
        if self.forward is None and self.loss_func is not None:
            return called
        by_keys = isinstance(self.model, nn.Module)  # a function takes the batch as it is
        return ModelCall(called, self.forward, run, by_keys=by_keys)

    @cached_property
    def compute_loss(self) -> Callable[[Any, Any], Any]:
        """What the loop calls with ``pred`` and ``yb`` for the loss, of several their whole.

        The first loss of a run tells whether ``loss_func`` gives mappings; later calls lead to the
        function itself if it does not.
        """
        loss_func, run = self.loss_func, self._run
        of_model = partial(_loss_of_model, type(self.model).__name__, run)
        if needs_closure(self.opt):
            return RememberedLoss(of_model if loss_func is None else loss_func, run)
        if loss_func is None:
            return partial(_with_parts, of_model, run)
        return _FirstLoss(self, loss_func)

    @cached_property
    def steppers(self) -> OneStepper | SeveralSteppers:
        """What the loop steps, by the name of the optimizer; ``None`` is that of one alone."""
        return steppers_of(self.opt, self, self._run)

    def lend(self, run: Any) -> Callable[[], None]:
        """Be used by a run; return what gives it back to the one that had it before."""
        before, opt, steppers = self._run, self.opt, self.__dict__.get("steppers")
        self._run = run

        def give_back() -> None:
            self._run = before
            if steppers is not None and self.opt is opt:
                # A run within a step of another one, which is to know what it steps.
                self.__dict__["steppers"] = steppers

        return give_back

    def wrap_model(self, wrap: Callable[[Any], Any] | None) -> None:
        """Have the loop call ``wrap(model)`` in place of the model, which stays ``model``.

        Args:
            wrap: Called when the model is next called, and again after ``model`` was replaced;
                ``None`` has the loop call the model itself.
        """
        self._wrap = wrap

    def _model_has_changed(self) -> None:
        # Plain attributes, which the loop reads in every batch.
        known = self.__dict__
        if known.get("_wrap") is None:
            known["model_wrapped"] = known.get("model")
        else:
            known.pop("model_wrapped", None)  # made when it is next used

    def make_optimizer(self) -> None:
        """Put the optimizers that factories make in their places; do nothing where they are there.

        Raises:
            TypeError: A factory returns something else.
        """
        if not is_made(self.opt):
            self.opt = make_optimizers(self.opt, self.model)
            self.check("fit")

    def check(self, use: Use | None = None) -> None:
        """See that the parts are what they are to be; a run does so when it begins.

        Args:
            use: ``"fit"``, ``"validate"`` or ``"predict"``: the parts that this needs must be
                there too. ``None`` (default) looks at those alone that are there.

        Raises:
            TypeError, ValueError: See the class; or a part that is needed is missing.
        """
        for name in ("model", "opt", "loss_func"):
            part = getattr(self, name)
            if isinstance(part, type):
                raise TypeError(
                    f"{name} is the class {part.__name__}: pass an instance of it, "
                    f"{part.__name__}(...)"
                )
        if isinstance(self.model, torch.optim.Optimizer) or isinstance(self.opt, nn.Module):
            raise TypeError("model and opt are swapped: Learner(model, opt, loss_func, data)")
        if isinstance(self.loss_func, torch.optim.Optimizer):
            raise TypeError("opt and loss_func are swapped: Learner(model, opt, loss_func, data)")
        if isinstance(self.loss_func, DataBunch):
            raise TypeError("loss_func and data are swapped: Learner(model, opt, loss_func, data)")
        is_to_train = use in (None, "fit")
        check_optimizers(self.opt, self.model, self.loss_func, is_to_train=is_to_train)
        if self.forward is not None and not callable(self.forward):
            raise TypeError(f"forward must be a function of (model, batch), got {self.forward!r}")
        if self.weight is not None and not callable(self.weight):
            raise TypeError(f"weight must be a function of the batch, got {self.weight!r}")
        if self.data is not None:
            _check_data(self.data)
        _check_that_it_can(self, use)

    def __repr__(self) -> str:
        kinds = [
            type(each).__name__ if name is None else f"{name!r}: {type(each).__name__}"
            for name, each in named_optimizers(self.opt)
        ]
        return f"<Learner: {type(self.model).__name__} with {', '.join(kinds)}>"


class _FirstLoss:
    """Computes one loss, and then gives its place to what computes the others."""

    def __init__(self, learn: Learner, loss_func: Callable[..., Any]) -> None:
        self._learn, self._loss_func = learn, loss_func

    def __call__(self, pred: Any, yb: Any) -> Any:
        loss_func, known, run = self._loss_func, self._learn.__dict__, self._learn._run
        loss = loss_func(pred, yb)
        if known.get("compute_loss") is self:
            has_parts = isinstance(loss, Mapping)
            known["compute_loss"] = partial(_with_parts, loss_func, run) if has_parts else loss_func
        return whole_loss(loss, run)


def _loss_of_model(name: str, run: Any, pred: Any, yb: Any) -> Any:
    return own_loss(pred, name, in_train=run is None or run.in_train)


def _with_parts(loss_func: Callable[..., Any], run: Any, pred: Any, yb: Any) -> Any:
    return whole_loss(loss_func(pred, yb), run)


def _check_data(data: Any) -> None:
    if not hasattr(data, "train_dl") or not hasattr(data, "valid_dl"):
        raise TypeError(
            f"data must be a DataBunch, got {type(data).__name__}: DataBunch(train_dl, valid_dl)"
        )
    check_loader(data.train_dl, "train_dl")
    check_valid_loaders(data.valid_dl)


def _check_that_it_can(learn: Learner, use: Use | None) -> None:
    """Refuse a learner that lacks what it is to be used for; unused, one with a part of no use."""
    needed: list[tuple[str, Any, bool]] = [("model", learn.model, callable(learn.model))]
    if use != "predict" and learn.loss_func is not None:
        needed.append(("loss_func", learn.loss_func, callable(learn.loss_func)))
    if use in (None, "fit"):
        opt, train_dl = learn.opt, getattr(learn.data, "train_dl", None)
        can_train = isinstance(opt, Mapping) or can_step(opt) or is_factory(opt)
        needed += [("opt", opt, can_train), ("data.train_dl", train_dl, train_dl is not None)]
    for name, part, is_right in needed:
        if not is_right and not (use is None and part is None):
            kind = {"opt": "an optimizer", "data.train_dl": "a loader"}.get(name, "a function")
            # Several optimizers in a list would take a line each for every setting.
            got = f"a {type(part).__name__}" if isinstance(part, _CONTAINERS) else repr(part)
            raise TypeError(
                f"{use or 'training'} needs {kind} as {name} of the Learner, got {got}"
                f"{_remedy(name, part)}"
            )


def _remedy(name: str, part: Any) -> str:
    if name == "model" and isinstance(part, (*_MANY, Mapping)):
        return (
            ": put several modules into one nn.ModuleDict, and say with "
            "forward=lambda model, batch: ... how they are called"
        )
    if name == "opt":
        if isinstance(part, torch.optim.lr_scheduler.LRScheduler):
            return ": pass the optimizer, and the scheduler to the callback LRScheduler"
        if isinstance(part, _MANY) and part:
            return (
                ": one optimizer. Several have names, {'g': ..., 'd': ...}, and a one_batch of a "
                "Runner of yours steps each"
            )
        return ": torch.optim.SGD(model.parameters(), lr=0.1), say"
    if name == "loss_func":
        if isinstance(part, torch.Tensor):
            return ": pass the function itself, and not what it returns"
        return ": torch.nn.functional.cross_entropy, say"
    return ""


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
        ValueError: There is not one label for each row, or one logit alone for each label.
    """
    for value, name in ((out, "logits"), (yb, "labels")):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"accuracy needs {name} that are one tensor, got {type(value).__name__}: "
                "for other batches pass a metric of yours, fn(pred, yb)"
            )
    if out.ndim < 2 or out.shape[1] == 1:  # the largest of one is always the first
        raise ValueError(
            f"accuracy needs a logit for each class, in dimension 1, and got {list(out.shape)}: of "
            "one alone take its sign, {'accuracy': lambda out, yb: "
            "((out > 0) == (yb > 0.5)).float().mean()}"
        )
    found = out.argmax(dim=1)
    if found.shape != yb.shape:  # they would be compared each with each
        raise ValueError(
            f"accuracy got logits of shape {list(out.shape)}, which take labels of shape "
            f"{list(found.shape)}, and labels of shape {list(yb.shape)}{_how_to_fit(out, yb)}"
        )
    return (found == yb).float().mean()


def _how_to_fit(out: Tensor, yb: Tensor) -> str:
    if out.shape == yb.shape:
        return ": of rows with a share for each class, yb.argmax(1) are the labels"
    if out.shape[:-1] == yb.shape:
        return (
            ": where classes come last, AvgStatsCallback(accuracy, "
            "pred=lambda run: run.pred.flatten(0, -2), target=lambda run: run.yb.flatten())"
        )
    return ""
