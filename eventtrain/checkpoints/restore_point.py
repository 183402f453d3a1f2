"""A learner as it was at one moment, to go back to as if nothing had happened since."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..optimizers import named_optimizers
from ..state import RunState
from ..submodules import fill
from .snapshot import random_states, set_random_states


class RestorePoint:
    """Copies what a fit changes, and puts it back bit for bit, into the same tensors.

    Kept are the parameters and buffers of model and loss function (those that a state
    dictionary leaves out too), other parameters of the optimizers, gradients, the
    optimizers' states and the fields of their groups, and the random number generators: Python's,
    NumPy's, torch's on all devices, and those that the loaders own, with what else their order
    hangs on.

    Args:
        run: A run that is under way.
        on_host: Copy parameters and buffers into host memory. By default the copies lie on the
            devices of their originals.

    Raises:
        TypeError: The model has parameters that are yet to be initialized.
    """

    def __init__(self, run: RunState, *, on_host: bool = False) -> None:
        optimizers = [opt for _, opt in named_optimizers(run.opt)]
        # First: a copy could in theory draw random numbers, a restoration must be last.
        self._random = random_states(run)
        self._slots = [(slots, dict(slots)) for slots in _slots(run.model, run.loss_func)]
        held = {id(t): t for _, kept in self._slots for t in kept.values() if t is not None}
        groups = [group for opt in optimizers for group in opt.param_groups]
        parameters = {id(p): p for group in groups for p in group["params"]}
        parameters.update((key, t) for key, t in held.items() if isinstance(t, nn.Parameter))
        tensors = (held | parameters).values()
        device = "cpu" if on_host else None
        self._values = [(t, t.detach().to(device, copy=True)) for t in tensors]
        self._gradients = [
            (p, p.grad, None if p.grad is None else p.grad.detach().clone())
            for p in parameters.values()
        ]
        self._states = [
            (opt, {p: copy.deepcopy(state) for p, state in opt.state.items()}, opt.param_groups[:])
            for opt in optimizers
        ]
        self._groups = [
            (group, {key: (value, copy.deepcopy(value)) for key, value in _fields(group)})
            for group in groups
        ]

    def restore(self, run: RunState) -> None:
        """Put everything back; to be called once."""
        with torch.no_grad():
            for tensor, value in self._values:
                fill(tensor, value)
            for slots, kept in self._slots:
                slots.clear()
                slots.update(kept)
            for parameter, gradient, saved in self._gradients:
                if gradient is not None and saved is not None:
                    gradient.copy_(saved)
                parameter.grad = gradient
            self._restore_groups()
        for opt, state, groups in self._states:
            opt.state.clear()
            opt.state.update(state)
            opt.param_groups[:] = groups
        set_random_states(run, self._random)

    def _restore_groups(self) -> None:
        for group, fields in self._groups:
            for key in [key for key, _ in _fields(group) if key not in fields]:
                del group[key]
            for key, (original, value) in fields.items():
                if isinstance(original, Tensor):
                    # The same tensor: compiled and captured steps read it there.
                    original.copy_(value)
                    group[key] = original
                else:
                    group[key] = value


def _slots(*parts: Any) -> Iterator[dict[str, Any]]:
    """Yield where the modules among ``parts`` hold their tensors; ``None`` stands for none yet."""
    for part in parts:
        for module in part.modules() if isinstance(part, nn.Module) else ():
            for slots in (module._parameters, module._buffers):
                for key, tensor in slots.items():
                    if tensor is not None and nn.parameter.is_lazy(tensor):
                        raise TypeError(
                            f"{type(module).__name__}.{key} is yet to be initialized: "
                            "run a batch through the model first"
                        )
                yield slots


def _fields(group: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in group.items() if key != "params"]
