"""Keeps a moving average of the weights, and validates with it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..arguments import flag, optimizer_name, real_number, whole_number
from ..callback import Callback, handler
from ..param_groups import optimizer_for
from ..priorities import BEFORE_EVERYONE, POLICY, TRANSFORM
from ..submodules import copies_of, set_tensors, tensors_of
from .shared.weight_average import WeightAverage

if TYPE_CHECKING:
    from ..runner import Runner

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class EMA(Callback):
    """Averages the weights over optimizer steps, exponentially.

    After the first step the average is the weights, unless ``from_start``; after every later one,
    ``average = decay * average + (1 - decay) * weights``, computed by torch's
    ``get_ema_multi_avg_fn`` as in ``torch.optim.swa_utils.AveragedModel``. It
    stays on the weights' devices and nothing waits for it.

    While the run validates or predicts, the model holds the averages: they are
    copied in at ``TRANSFORM`` in ``begin_validate`` and ``begin_predict``, and
    the weights come back first of all in the closing event. So a ``Checkpoint`` saves the averages
    as the model of an epoch, and ``EarlyStopping`` goes back to them. After the fit,
    ``run.validate`` and ``run.predict`` with the same model go on using them, until
    its weights are no longer those that the fit trained: best weights that were put back, or a
    checkpoint that was loaded, are not replaced.

    Args:
        decay: Between 0 and 1; 0.999 remembers about 1,000 steps.
        use_in_validation: Validate and predict with the averages. Default ``True``.
        buffers: Average floating-point buffers (batch statistics) as well; by
            default they are copied. Other buffers are always copied.
        every: Update after every this many steps.
        optimizer: Of several optimizers, the one whose steps count (all weights are averaged).
            Default ``None``, for the one that there is.
        from_start: Begin with the weights that the fit begins with, as a copy that is made before
            the training does, and not with those of the first step. Default ``False``.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range. When a fit
            begins: the model is no ``nn.Module``, or two are to be used in validation.
        ValueError: After a step: a parameter has changed its shape.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by
    averaging", 1992, in the exponential form.
    """

    priority = POLICY

    def __init__(
        self,
        decay: float = 0.999,
        use_in_validation: bool = True,
        buffers: bool = False,
        every: int = 1,
        *,
        optimizer: str | None = None,
        from_start: bool = False,
    ) -> None:
        if not 0 <= real_number("decay", decay) <= 1:
            raise ValueError(f"decay must be between 0 and 1, got {decay!r}")
        self.decay = decay
        self.use_in_validation = flag("use_in_validation", use_in_validation)
        self.buffers = flag("buffers", buffers)
        self.every = whole_number("every", every, 1, "steps")
        self.optimizer = optimizer_name(optimizer)
        self.from_start = flag("from_start", from_start)
        self._model: weakref.ref[nn.Module] | None = None
        self._start_over()

    def _start_over(self) -> None:
        self._steps = 0
        self._average = WeightAverage(partial(_decay, self.decay), self.buffers)
        self._backup: dict[str, Tensor] | None = None
        self._is_in_use = False
        self._has_validated = False
        self._left: Tensor | None = None

    @property
    def updates(self) -> int:
        """Updates so far; the start is one with ``from_start``."""
        return self._average.updates

    def begin_fit(self, run: Runner) -> None:
        """Start over."""
        if not isinstance(run.model, nn.Module):
            raise TypeError(f"EMA needs an nn.Module, got {type(run.model).__name__}")
        optimizer_for(run, self.optimizer, "EMA")
        users = [cb for cb in run.cbs if isinstance(cb, EMA) and cb.use_in_validation]
        if len(users) > 1:
            raise ValueError(
                f"{len(users)} EMAs would validate with their averages, and the model can hold "
                "those of one: pass use_in_validation=False to the others"
            )
        self._start_over()
        self._model = weakref.ref(run.model)
        if self.from_start:
            self._average.update(run.model)

    def begin_epoch(self, run: Runner) -> None:
        """Start over with what this epoch was validated with."""
        self._has_validated = False

    def after_step(self, run: Runner) -> None:
        """Take the new weights into the average."""
        if self.optimizer not in (None, run.stepping):
            return
        self._steps += 1
        if self._steps % self.every == 0:
            self._average.update(run.model)

    @handler(event=["begin_validate", "begin_predict"], priority=TRANSFORM)
    def use_averages(self, run: Runner) -> None:
        """Have the model hold the averages."""
        if self.use_in_validation and self._is_meant(run):
            self._is_in_use = True
            self._put_averages_in(run.model)

    def _is_meant(self, run: Runner) -> bool:
        """Whether the model is the one whose averages these are, with the weights of the fit."""
        if self._model is None or self._model() is not run.model:
            return False
        if "fit" in run.token.open_scopes:
            return True
        if run.epoch is not None:  # in after_fit, where SWA measures with weights of its own
            return False
        left, now = self._left, _sums_of_bits(run.model)
        is_other = left is not None and not torch.equal(left, now.to(left.device))
        # Each process knows the parts alone that it has.
        return not run.world.sums([is_other])[0]

    def _put_averages_in(self, model: nn.Module) -> None:
        if self._average.updates:
            self._backup = copies_of(tensors_of(model))
            set_tensors(model, self._average.tensors)

    @handler(event=["after_validate", "after_predict"], priority=BEFORE_EVERYONE)
    def put_weights_back(self, run: Runner) -> None:
        """Have the model hold its weights again."""
        self._has_validated |= self._is_in_use and run.phase == "validate"
        self._is_in_use = False
        if self._backup is not None:
            backup, self._backup = self._backup, None
            set_tensors(run.model, backup)

    @handler(priority=BEFORE_EVERYONE)
    def after_fit(self, run: Runner) -> None:
        """Remember the weights that were trained, before others put their own in their place."""
        self._left = _sums_of_bits(run.model)

    def validated_weights(self) -> Mapping[str, Tensor] | None:
        """Return the averages, if this epoch was validated with them."""
        return self._average.tensors if self._has_validated and self.updates else None

    def copy_to(self, model: nn.Module) -> None:
        """Copy the averages into ``model``, which has parameters of the same names.

        Raises:
            RuntimeError: There is no average yet.
            KeyError: ``model`` has other parameters than those that were averaged.
            ValueError: They have other shapes.
        """
        if not self.updates:
            raise RuntimeError("there is no average yet: no optimizer step has been taken")
        self._average.copy_to(model)

    def state_dict(self) -> dict[str, Any]:
        """Return averages and counts, and the weights while the model holds the averages."""
        return {
            **self._average.state_dict(),
            "backup": None if self._backup is None else dict(self._backup),
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned, after the model has taken back its own.

        Saved during a validation, the model's state is that of the averages.
        Loaded outside of one, it gets its weights from here.
        """
        model = None if self._model is None else self._model()
        self._average.load_state_dict(state, model)
        self._steps, saved = state["steps"], state["backup"]
        self._backup = None
        if model is None:
            return
        if saved is not None and self._is_in_use:
            self._backup = copies_of(saved, tensors_of(model))
        elif saved is not None:
            set_tensors(model, saved)
        elif self._is_in_use:
            self._put_averages_in(model)


@torch.no_grad()
def _sums_of_bits(model: Any) -> Tensor:
    """Return what tells weights from others, however they were changed and wherever they lie.

    Returns:
        int64 of shape [parameters], on the device of the first; nothing waits for it.
    """
    tensors = [t for t in tensors_of(model).values() if isinstance(t, nn.Parameter)]
    parts: list[Any] = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    parameters = [part for part in parts if type(part) in (nn.Parameter, Tensor)]
    sums = [
        part.view(_INTEGERS[part.itemsize]).sum(dtype=torch.int64)
        for p in parameters
        for part in [torch.view_as_real(p.detach()) if p.is_complex() else p.detach()]
    ]
    return torch.stack([each.to(sums[0].device) for each in sums]) if sums else torch.zeros(0)


# Here, and not a closure of torch's: those cannot be pickled.
def _decay(decay: float, averages: list[Tensor], weights: list[Tensor], count: int) -> None:
    rule: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    rule(averages, weights, count)
