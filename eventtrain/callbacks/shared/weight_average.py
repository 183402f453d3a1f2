"""An average of a model's weights, by name, beside the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...submodules import copies_of, set_tensors, tensors_of

Rule = Callable[[list[Tensor], list[Tensor], int], None]
"""As torch's ``get_ema_multi_avg_fn`` returns it: averages, weights, weights averaged so far."""


class WeightAverage:
    """Averages parameters, and keeps copies of what has no average.

    Those are buffers, unless asked for, and whatever is no floating-point or complex number. A
    tensor that appears later begins its average then, and so does a buffer that changes its shape;
    one that is gone has none.

    It copies tensors, never modules, so models of all kinds will do: weights that are tied or
    share memory, lazy modules, parametrized and compiled ones.

    Args:
        rule: Updates a list of averages in place.
        buffers: Average floating-point buffers too. Default ``False``.

    Attributes:
        tensors: The averages and copies, on the devices of the weights; names as in
            ``submodules.tensors_of``.
        updates: Updates so far.
    """

    def __init__(self, rule: Rule, buffers: bool = False) -> None:
        self.rule = rule
        self.buffers = buffers
        self.tensors: dict[str, Tensor] = {}
        self.updates = 0
        self._counts: dict[str, int] = {}
        self._parameters: list[str] = []

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights that ``model`` holds now into the average.

        Raises:
            ValueError: A parameter has changed its shape.
        """
        tensors = tensors_of(model)
        averages: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
        for name, tensor in tensors.items():
            own, count = self.tensors.get(name), self._counts.get(name, 0)
            if own is not None and own.shape != tensor.shape:
                if isinstance(tensor, nn.Parameter):
                    raise ValueError(
                        f"{name} has shape {list(tensor.shape)}, and its average "
                        f"{list(own.shape)}: weights cannot be averaged over a change of shape"
                    )
                own = None
            if own is None:
                averages[name], counts[name] = tensor.detach().clone(), 1
                continue
            if own.dtype is not tensor.dtype or own.device != tensor.device:
                own = own.to(tensor)  # the model has been moved
            averages[name], counts[name] = own, count + 1
            if not self._is_averaged(tensor):
                own.copy_(tensor)
                continue
            key = (own.device, own.dtype, count)
            mine, theirs = groups.setdefault(key, ([], []))
            mine.append(own)
            theirs.append(tensor)
        for (_, _, count), (mine, theirs) in groups.items():
            self.rule(mine, theirs, count)
        self.tensors, self._counts = averages, counts
        self._parameters = [n for n, t in tensors.items() if isinstance(t, nn.Parameter)]
        self.updates += 1

    def _is_averaged(self, tensor: Tensor) -> bool:
        is_number = tensor.is_floating_point() or tensor.is_complex()
        is_wanted = self.buffers or isinstance(tensor, nn.Parameter)
        return is_wanted and is_number and tensor.itemsize > 1  # torch counts on no 8-bit floats

    def copy_to(self, model: nn.Module) -> None:
        """Copy everything into ``model``.

        Raises:
            KeyError: ``model`` has other parameters than those that were averaged.
            ValueError: They have other shapes.
        """
        own = tensors_of(model, lazy=True)
        parameters = {name for name, tensor in own.items() if isinstance(tensor, nn.Parameter)}
        missing = [name for name in own if name in parameters and name not in self.tensors]
        if missing:
            raise KeyError(f"there is no average of {', '.join(missing)}")
        strange = [name for name in self._parameters if name not in parameters]
        if strange:
            raise KeyError(f"the model has no parameter {', '.join(strange)}, which was averaged")
        set_tensors(model, self.tensors, replace_buffers=True)

    def state_dict(self) -> dict[str, Any]:
        """Return averages and counts; the tensors are not copied."""
        return {
            "averages": dict(self.tensors),
            "counts": dict(self._counts),
            "parameters": list(self._parameters),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any], model: Any) -> None:
        """Take back what ``state_dict`` returned, onto the devices of the weights of ``model``."""
        self.tensors = copies_of(state["averages"], tensors_of(model))
        self._counts, self._parameters = dict(state["counts"]), list(state["parameters"])
        self.updates = state["updates"]


def copy_of_model(model: nn.Module) -> nn.Module:
    """Return a copy of a model that may hold tensors with a graph behind them.

    The old ``weight_norm`` and ``spectral_norm`` leave such a one, which they make anew whenever
    the model is called. ``copy.deepcopy`` refuses it.
    """
    held = (value for module in model.modules() for value in vars(module).values())
    memo = {
        id(tensor): tensor.detach().clone()
        for tensor in held
        if isinstance(tensor, Tensor) and not tensor.is_leaf
    }
    return copy.deepcopy(model, memo)
