"""Measuring the statistics of batch normalization anew, as the loop would run the batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from ...cancellation import Scope
from ...optimizers import parameter_groups
from ...param_groups import set_field
from ...submodules import fill
from ...train_eval import modes_of, set_modes

if TYPE_CHECKING:
    from ...distributed.reductions import OneProcess
    from ...runner import Runner

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_FIELDS = ("phase", "in_train", "iters", "n_iter")


def norms_of(model: nn.Module, still: Iterable[str] = ()) -> list[_BatchNorm]:
    """Return the batch normalization in ``model`` that keeps statistics, less that in ``still``."""
    passed_over = set(still)
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and isinstance(module.running_mean, Tensor)
        and not nn.parameter.is_lazy(module.running_mean)
        and name not in passed_over
    ]


def measure_norms(run: Runner, batches: int, still: Iterable[str]) -> None:
    """Measure the statistics of batch normalization by a pass over the training loader.

    Each becomes the mean over the batches, as with ``torch.optim.swa_utils.update_bn``; on several
    processes over the shares of all of them. The pass is one in the scope ``predict``; who cancels
    ``train`` ends it as the training was ended. In
    ``begin_batch`` it passes for one of training, so that batches are moved and transformed as
    they were there; from the model's call on it is a prediction. Parameter groups, modes and
    counters are put back.

    Args:
        run: A run whose fit has ended, in ``after_fit``.
        batches: How many to read at most.
        still: Names of modules that are to be in evaluation mode, without new statistics.

    Raises:
        Exception: Whatever the loader, a handler or the model raises. Then, and after a
            cancellation, all statistics are as they were; so are those that saw no batch.
    """
    norms = norms_of(run.model, still)
    if not norms or batches < 1:
        return
    with ExitStack() as stack:
        stack.callback(_put_back_fields, run, {name: getattr(run, name) for name in _FIELDS})
        stack.callback(_put_back_groups, _fields_of(run.opt))
        stack.callback(set_modes, modes_of(run.model))
        measurement = _Measurement(norms)
        stack.callback(measurement.end)
        stack.enter_context(_uncompiled(run.model))
        with torch.no_grad(), run.scope.predict as scope:
            run.iters = batches
            run.emit.begin_predict()
            run.model.train()
            set_modes([(run.model.get_submodule(name), False) for name in still])
            measurement.begin()
            # Handlers that end training after some batches, or the fit, are to find it open.
            fit, epoch, train = (Scope(run.token, name, run) for name in ("fit", "epoch", "train"))
            with fit, epoch, train:
                run.all_batches(_AsTraining(run, batches), lambda: _predict(run, measurement))
        ends = [each.outcome for each in (scope, fit, epoch)]
        measurement.end_with(run.world, all(outcome == "completed" for outcome in ends))


def _uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Have what is compiled of a model run as it is written, or it would not see new hooks."""
    is_compiled = any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    # torch 2.4 and 2.5 have none: no call is counted there, and the statistics stay.
    set_stance = getattr(torch.compiler, "set_stance", None)
    return set_stance("force_eager") if is_compiled and set_stance else nullcontext()


def _predict(run: Runner, measurement: _Measurement) -> None:
    measurement.counts = run.world.has_share(run)
    run.phase, run.in_train = "predict", False
    run.pred = run.learn.call_model(run.xb)
    run.emit.after_pred()


class _AsTraining:
    """The first batches of the training loader, each of which finds the run in training."""

    def __init__(self, run: Runner, batches: int) -> None:
        self._run = run
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        for batch in islice(self._run.data.train_dl, self._batches):
            self._run.phase, self._run.in_train = "train", True
            yield batch
        self._run.phase, self._run.in_train = "predict", False


class _Measurement:
    """Statistics that are being measured, and those that stand until they have been."""

    def __init__(self, norms: list[_BatchNorm]) -> None:
        self.is_complete = False
        self.counts = True  # whether the batch has a row that is this process's own
        self._norms = norms
        self._momenta = [norm.momentum for norm in norms]
        self._calls = dict.fromkeys(norms, 0)
        self._hooks: list[RemovableHandle] = []
        self._before = [
            [(buffer, buffer.clone()) for buffer in _statistics_of(norm)] for norm in norms
        ]

    def begin(self) -> None:
        """Forget the statistics, and have those to come weigh all batches alike."""
        for norm in self._norms:
            norm.reset_running_stats()
            self._hooks.append(norm.register_forward_pre_hook(self._count))

    def _count(self, norm: _BatchNorm, inputs: Any) -> None:
        # With momentum=None torch reads the count from the device in every batch.
        self._calls[norm] += self.counts
        norm.momentum = 1 / self._calls[norm] if self.counts else 0.0

    def end_with(self, world: OneProcess, is_complete: bool) -> None:
        """Say whether the pass has come to its end; have statistics be means over all processes.

        Collective; a pass that one of them has not come to the end of counts nowhere.
        """
        self.is_complete = not any(world.sums([not is_complete]))
        if self.is_complete:
            for norm in self._norms:
                values = [b for b in _statistics_of(norm) if b.is_floating_point()]
                world.average(values, self._calls[norm])

    @torch.no_grad()
    def end(self) -> None:
        """Put back the momenta, and the statistics that were not measured."""
        while self._hooks:
            self._hooks.pop().remove()
        for norm, momentum, before in zip(self._norms, self._momenta, self._before, strict=True):
            norm.momentum = momentum
            if not (self.is_complete and self._calls[norm]):
                for buffer, value in before:
                    fill(buffer, value)


def _statistics_of(norm: _BatchNorm) -> list[Tensor]:
    return [b for name in _STATISTICS if (b := getattr(norm, name)) is not None]


def _put_back_fields(run: Runner, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(run, name, value)


def _fields_of(opt: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the parameter groups, each with a copy of its fields."""
    return [
        (
            group,
            {
                key: value.clone() if isinstance(value, Tensor) else value
                for key, value in group.items()
                if key != "params"
            },
        )
        for _, group in parameter_groups(opt)
    ]


def _put_back_groups(groups: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    with torch.no_grad():
        for group, fields in groups:
            for key, value in fields.items():
                set_field(group, key, value)
