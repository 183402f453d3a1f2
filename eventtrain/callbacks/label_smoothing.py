"""Softer targets for a classifier, in training only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from ..arguments import real_number
from ..callback import Callback
from ..priorities import POLICY

if TYPE_CHECKING:
    from ..runner import Runner

Loss = Callable[..., Any]


class LabelSmoothing(Callback):
    """Trains with a cross entropy that gives every class ``eps / classes`` of the target.

    ``learn.loss_func`` is replaced from ``begin_train`` to ``after_train``, so validation
    measures the plain loss, and the two losses are not comparable. Its weight, ignored index and
    reduction are kept. With ``Mixup`` or ``CutMix`` the smoothed losses are mixed.

    Args:
        eps: How much of the target to spread over all classes, from 0 to 1. Default 0.1.

    Raises:
        TypeError: ``eps`` is no number. In ``begin_fit`` or ``begin_train``: the loss function is
            not ``torch.nn.functional.cross_entropy``, a ``functools.partial`` of it, or an
            ``nn.CrossEntropyLoss``.
        ValueError: ``eps`` is out of range. In ``begin_fit`` or ``begin_train``: the loss
            smooths already.

    Source: Szegedy et al. 2016, Rethinking the Inception Architecture (arXiv:1512.00567).
    """

    priority = POLICY

    def __init__(self, eps: float = 0.1) -> None:
        if not 0 <= real_number("eps", eps) <= 1:
            raise ValueError(f"eps must be from 0 to 1, got {eps!r}")
        self.eps = float(eps)
        self._original: Loss | None = None
        self._smoothed: Loss | None = None
        self._is_between = False

    def begin_fit(self, run: Runner) -> None:
        """See that the loss function is one that can be smoothed."""
        _smoothed(run.loss_func, self.eps)

    def begin_train(self, run: Runner) -> None:
        """Put the smoothed loss in place."""
        self._put_in_place(run)

    def begin_validate(self, run: Runner) -> None:
        """Validate without, also between two training batches."""
        self._is_between = self._smoothed is not None
        self.after_train(run)

    def after_validate(self, run: Runner) -> None:
        """Go on with the smoothed loss where training does."""
        if self._is_between:
            self._is_between = False
            self._put_in_place(run)

    def _put_in_place(self, run: Runner) -> None:
        assert run.learn is not None
        self._original = run.loss_func
        run.learn.loss_func = self._smoothed = _smoothed(run.loss_func, self.eps)

    def after_train(self, run: Runner) -> None:
        """Put the learner's loss function back, unless somebody has set another since."""
        if self._smoothed is None:
            return
        assert run.learn is not None and self._original is not None
        if run.learn.loss_func is self._smoothed:
            run.learn.loss_func = self._original
        self._original = self._smoothed = None


def _smoothed(loss: Loss, eps: float) -> Loss:
    """Return ``loss`` with its targets smoothed."""
    function = nn.functional.cross_entropy
    is_partial = isinstance(loss, partial) and loss.func is function
    if isinstance(loss, nn.CrossEntropyLoss):
        own = loss.label_smoothing
    elif is_partial or loss is function:
        own = loss.keywords.get("label_smoothing", 0.0) if isinstance(loss, partial) else 0.0
    else:
        raise TypeError(
            f"LabelSmoothing needs torch.nn.functional.cross_entropy (or a functools.partial of "
            f"it) or an nn.CrossEntropyLoss as loss_func, got {loss!r}. For another loss, "
            "smooth the targets with a BatchTransform"
        )
    if own:
        raise ValueError(
            f"the loss function smooths with label_smoothing={own} already, in validation too: "
            "set it to 0 there, or leave LabelSmoothing"
        )
    if not isinstance(loss, nn.CrossEntropyLoss):
        return partial(loss, label_smoothing=eps)
    # Shallow: its weight stays the same tensor, wherever it is moved.
    smoothed = copy.copy(loss)
    smoothed.label_smoothing = eps
    return smoothed
