"""Keeps gradients from exploding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from ..arguments import optimizer_name, real_number
from ..callback import Callback
from ..param_groups import optimizer_for, refuse_closure, stepped_parameters
from ..priorities import POLICY

if TYPE_CHECKING:
    from ..runner import Runner

_CLOSURE = (
    "the first of these gradients alone would be clipped. Leave GradientClip out, and lower the "
    "optimizer's lr"
)


class GradientClip(Callback):
    """Clips the gradients just before the optimizer steps, all together or one by one.

    It works in ``begin_step`` at ``POLICY``: on gradients that have been
    accumulated and unscaled, and not at all where no step is taken. The
    gradients are those of the parameters of the optimizer that steps, so of several optimizers each
    is clipped by itself. Nothing is read from the
    device, but by torch where it adds up the entries of a sparse gradient
    (``nn.Embedding(sparse=True)``), of which the stored values are clipped. Where
    an element is not finite, neither is the norm, and clipping by it makes all
    gradients NaN, as torch does; ``TerminateOnNaN`` ends such a fit.

    Args:
        norm: Scale all gradients down together so that their common norm is at
            most this (``torch.nn.utils.clip_grad_norm_``).
        value: Clamp every element to ``[-value, value]`` (``clip_grad_value_``).
        norm_type: The order of the norm, ``math.inf`` for the largest element.
        optimizer: Clip before the steps of this one of several optimizers only; the callback is
            called ``gradient_clip_g`` then, if that is ``"g"``. Default ``None``, for all.

    Attributes:
        total_norm: With ``norm``, the common norm before the last clipping, a
            scalar tensor on the gradients' device; else ``None``.

    Raises:
        TypeError, ValueError: Not exactly one of ``norm`` and ``value`` is given, or
            an argument is no number above 0. In ``begin_fit``: the optimizer computes its gradients
            anew in its step (``LBFGS``), or there is none of the name.

    Source: Pascanu et al., "On the difficulty of training recurrent neural
    networks", 2013 (clipping by norm).
    """

    priority = POLICY

    def __init__(
        self,
        norm: float | None = None,
        value: float | None = None,
        norm_type: float = 2.0,
        *,
        optimizer: str | None = None,
    ) -> None:
        for title, number in (("norm", norm), ("value", value), ("norm_type", norm_type)):
            if number is not None and real_number(title, number) <= 0:
                raise ValueError(f"{title} must be above 0, got {number!r}")
        if (norm is None) == (value is None):
            raise ValueError(f"give either norm or value, got norm={norm!r} and value={value!r}")
        self.norm = norm
        self.value = value
        self.norm_type = norm_type
        self.optimizer = optimizer_name(optimizer)
        if optimizer is not None:
            self.name = f"gradient_clip_{optimizer}"
        self.total_norm: Tensor | None = None

    def begin_fit(self, run: Runner) -> None:
        """Forget the norm of an earlier fit, and see what is to be clipped."""
        self.total_norm = None
        if self.optimizer is not None:
            optimizer_for(run, self.optimizer, "GradientClip")
        refuse_closure(run, "GradientClip", _CLOSURE)

    def begin_step(self, run: Runner) -> None:
        """Clip."""
        if self.optimizer not in (None, run.stepping):
            return
        # foreach is left to torch, which takes it wherever it is faster.
        parameters = [_dense(parameter) for parameter in stepped_parameters(run)]
        if self.norm is not None:
            self.total_norm = clip_grad_norm_(parameters, self.norm, self.norm_type).detach()
        elif self.value is not None:
            for parameter in parameters:
                if parameter.grad is not None and parameter.grad.is_complex():
                    raise TypeError(
                        "GradientClip(value=...) cannot clamp complex gradients, which have no "
                        f"order; one has shape {list(parameter.shape)}. Use GradientClip(norm=...)"
                    )
            clip_grad_value_(parameters, self.value)


def _dense(parameter: Tensor) -> Tensor:
    """Return a parameter whose gradient can be clipped in place: where it is sparse, its values."""
    gradient = parameter.grad
    if gradient is None or gradient.layout is torch.strided:
        return parameter
    if gradient.layout is torch.sparse_coo:
        # An entry that is there several times counts as the sum.
        parameter.grad = gradient = gradient.coalesce()
    held = gradient.values().detach()
    if not held.numel():  # torch finds no largest element in it
        held = held.new_zeros(1)
    held.grad = held.detach()
    return held
