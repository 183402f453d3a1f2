"""Keeps a moving average of the weights, and validates with it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..arguments import flag, real_number, whole_number
from ..callback import Callback, handler
from ..priorities import BEFORE_EVERYONE, POLICY, TRANSFORM
from ..submodules import copies_of, copy_into, tensors_of

if TYPE_CHECKING:
    from ..runner import Runner


class EMA(Callback):
    """Averages the weights over optimizer steps, exponentially.

    After the first step the average is the weights; after every later one,
    ``average = decay * average + (1 - decay) * weights``, computed by torch's
    ``get_ema_multi_avg_fn`` as in ``torch.optim.swa_utils.AveragedModel``. It
    stays on the weights' devices and nothing waits for it.

    While the run validates or predicts, the model holds the averages: they are
    copied in at ``TRANSFORM`` in ``begin_validate`` and ``begin_predict``, and
    the weights come back first of all in the closing event. After the fit,
    ``run.validate`` and ``run.predict`` with the same model go on using them.

    Args:
        decay: Between 0 and 1; 0.999 remembers about 1,000 steps.
        use_in_validation: Validate and predict with the averages. Default ``True``.
        buffers: Average floating-point buffers (batch statistics) as well; by
            default they are copied. Other buffers are always copied.
        every: Update after every this many steps.

    Attributes:
        updates: Updates so far.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.

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
    ) -> None:
        if not 0 <= real_number("decay", decay) <= 1:
            raise ValueError(f"decay must be between 0 and 1, got {decay!r}")
        self.decay = decay
        self.use_in_validation = flag("use_in_validation", use_in_validation)
        self.buffers = flag("buffers", buffers)
        self.every = whole_number("every", every, 1, "steps")
        self._average: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._model: weakref.ref[nn.Module] | None = None
        self._start_over()

    def __getstate__(self) -> dict[str, Any]:
        # A function made inside another cannot be pickled; it follows from the decay.
        return {key: value for key, value in super().__getstate__().items() if key != "_average"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._average = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]

    def _start_over(self) -> None:
        self.updates = 0
        self._steps = 0
        self._averages: dict[str, Tensor] = {}
        self._backup: dict[str, Tensor] | None = None
        self._is_in_use = False

    def begin_fit(self, run: Runner) -> None:
        """Start over."""
        if not isinstance(run.model, nn.Module):
            raise TypeError(f"EMA needs an nn.Module, got {type(run.model).__name__}")
        self._start_over()
        self._model = weakref.ref(run.model)

    def after_step(self, run: Runner) -> None:
        """Take the new weights into the average."""
        self._steps += 1
        if self._steps % self.every == 0:
            self._update(run.model)

    def _update(self, model: nn.Module) -> None:
        tensors = tensors_of(model)
        # All of them in the first update; later, buffers that have appeared since.
        new = {name: tensor for name, tensor in tensors.items() if name not in self._averages}
        averaged, copied = _by_treatment(model, self.buffers)
        for group in averaged:
            names = [name for name in group if name not in new]
            if names:
                self._average([self._averages[n] for n in names], [tensors[n] for n in names], 0)
        copy_into({name: tensors[name] for name in copied}, self._averages)
        self._averages.update(copies_of(new))
        self.updates += 1

    @handler(event=["begin_validate", "begin_predict"], priority=TRANSFORM)
    def use_averages(self, run: Runner) -> None:
        """Have the model hold the averages."""
        is_mine = self._model is not None and self._model() is run.model
        if not (self.use_in_validation and is_mine):
            return
        self._is_in_use = True
        self._put_averages_in(run.model)

    def _put_averages_in(self, model: nn.Module) -> None:
        if self._averages:
            tensors = tensors_of(model)
            self._backup = copies_of(tensors)
            copy_into(self._averages, tensors)

    @handler(event=["after_validate", "after_predict"], priority=BEFORE_EVERYONE)
    def put_weights_back(self, run: Runner) -> None:
        """Have the model hold its weights again."""
        self._is_in_use = False
        if self._backup is not None:
            backup, self._backup = self._backup, None
            copy_into(backup, tensors_of(run.model))

    def copy_to(self, model: nn.Module) -> None:
        """Copy the averages into ``model``, which has parameters of the same names.

        Raises:
            RuntimeError: There is no average yet.
        """
        if not self._averages:
            raise RuntimeError("there is no average yet: no optimizer step has been taken")
        tensors = tensors_of(model)
        copy_into(self._averages, {name: tensors[name] for name in self._averages})

    def state_dict(self) -> dict[str, Any]:
        """Return averages and counts, and the weights while the model holds the averages."""
        return {
            "averages": dict(self._averages),
            "backup": None if self._backup is None else dict(self._backup),
            "steps": self._steps,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned, after the model has taken back its own.

        Saved during a validation, the model's state is that of the averages.
        Loaded outside of one, it gets its weights from here.
        """
        model = None if self._model is None else self._model()
        tensors = {} if model is None else tensors_of(model)
        self._averages = copies_of(state["averages"], tensors)
        self._steps, self.updates = state["steps"], state["updates"]
        saved = state["backup"]
        self._backup = None
        if model is None:
            return
        if saved is not None and self._is_in_use:
            self._backup = copies_of(saved, tensors)
        elif saved is not None:
            copy_into(saved, tensors)
        elif self._is_in_use:
            self._put_averages_in(model)


def _by_treatment(model: nn.Module, with_buffers: bool) -> tuple[list[list[str]], list[str]]:
    """Return the names to average, in lists of one device and dtype, and those to copy."""
    groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    copied: list[str] = []
    for name, parameter in model.named_parameters():
        groups.setdefault((parameter.device, parameter.dtype), []).append(name)
    for name, buffer in model.named_buffers():
        if with_buffers and (buffer.is_floating_point() or buffer.is_complex()):
            groups.setdefault((buffer.device, buffer.dtype), []).append(name)
        else:
            copied.append(name)
    return list(groups.values()), copied
