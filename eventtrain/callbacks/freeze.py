"""Keeps parts of a model as they are, for some epochs or for good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..arguments import flag, whole_number
from ..callback import Callback
from ..priorities import TRANSFORM
from ..submodules import Choice, choose_submodules

if TYPE_CHECKING:
    from ..runner import Runner


class Freeze(Callback):
    """Takes parts of the model out of training, and lets them in again later.

    Their parameters need no gradient while they are frozen, so the optimizer
    leaves them alone, weight decay and momentum included. After the fit every
    parameter's ``requires_grad`` is what it was before.

    Args:
        modules: Modules, their names as in ``named_modules()``, or
            ``rule(name, module)``; each with all it contains. Or a schedule
            ``{epoch: modules}``: all of them are frozen, and let in when that epoch
            begins (gradual unfreezing).
        until_epoch: The epoch, counted from 0, that lets them in; ``None`` for
            never. Not used with a schedule.
        batch_norm_eval: Keep frozen batch normalization in evaluation mode
            during training, so that its running statistics stay as they are.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of
            range, or, when a fit begins, the model has no such part.

    Source: Howard and Ruder, "Universal Language Model Fine-tuning for Text
    Classification", 2018 (gradual unfreezing).
    """

    priority = TRANSFORM

    def __init__(
        self,
        modules: Choice | Mapping[int, Choice],
        until_epoch: int | None = 1,
        batch_norm_eval: bool = True,
    ) -> None:
        schedule: dict[int | None, Choice] = {until_epoch: modules}  # type: ignore[dict-item]
        name = "until_epoch"
        if isinstance(modules, Mapping):
            name, schedule = "an epoch", dict(modules.items())
        for epoch in schedule:
            if epoch is not None:
                whole_number(name, epoch, 0)
        self.schedule = schedule
        self.batch_norm_eval = flag("batch_norm_eval", batch_norm_eval)
        self._frozen: list[_Frozen] = []

    def begin_fit(self, run: Runner) -> None:
        """Freeze all parts."""
        chosen = [
            (epoch, list(choose_submodules(run.model, choice).values()))
            for epoch, choice in self.schedule.items()
        ]
        # Those that come in last are frozen first, so that what two epochs claim
        # is let in by the later one.
        chosen.sort(key=lambda item: float("inf") if item[0] is None else item[0], reverse=True)
        self._frozen = [_Frozen(epoch, modules) for epoch, modules in chosen]

    def begin_epoch(self, run: Runner) -> None:
        """Let those parts in whose epoch has come."""
        now = run.epoch or 0
        for frozen in [f for f in self._frozen if f.until is not None and f.until <= now]:
            frozen.release()
            self._frozen.remove(frozen)

    def begin_train(self, run: Runner) -> None:
        """Keep frozen batch normalization in evaluation mode."""
        if self.batch_norm_eval:
            for norm in self._norms():
                norm.eval()

    def after_train(self, run: Runner) -> None:
        """Put the mode of batch normalization back."""
        if self.batch_norm_eval:
            for norm in self._norms():
                norm.train(run.model.training)

    def after_fit(self, run: Runner) -> None:
        """Let everything in that is still frozen."""
        while self._frozen:
            self._frozen.pop().release()

    def _norms(self) -> list[_BatchNorm]:
        modules = [module for frozen in self._frozen for module in frozen.modules]
        return [each for m in modules for each in m.modules() if isinstance(each, _BatchNorm)]


class _Frozen:
    """Parts that are let in together, and which of their parameters trained before."""

    def __init__(self, until: int | None, modules: list[nn.Module]) -> None:
        self.until = until
        self.modules = modules
        self._trained = [p for module in modules for p in _freeze(module)]

    def release(self) -> None:
        for parameter in self._trained:
            parameter.requires_grad_(True)


def _freeze(module: nn.Module) -> list[nn.Parameter]:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
        parameter.grad = None  # the optimizer would step with what is left
    return trained


def freeze(model: Any, modules: Choice) -> None:
    """Take parts of a model out of training until ``unfreeze``.

    Args:
        model: An ``nn.Module``.
        modules: As for ``Freeze``. Their gradients are dropped.

    Raises:
        TypeError, ValueError: The model has no such part.
    """
    for module in choose_submodules(model, modules).values():
        _freeze(module)


def unfreeze(model: Any, modules: Choice) -> None:
    """Let parts of a model take part in training.

    Args:
        model: An ``nn.Module``.
        modules: As for ``Freeze``.

    Raises:
        TypeError, ValueError: The model has no such part.
    """
    for module in choose_submodules(model, modules).values():
        for parameter in module.parameters():
            parameter.requires_grad_(True)
