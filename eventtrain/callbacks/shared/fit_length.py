"""How long a fit is: the one place that counts the batches and steps it is going to take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...data.batch import loader_length

if TYPE_CHECKING:
    from ...state import RunState


@dataclass(frozen=True)
class FitLength:
    """How long a fit is if nothing is skipped and nothing cuts it short.

    Attributes:
        steps: Optimizer steps; ``None`` where neither the loader's length nor a limit is known.
        limit: Optimizer steps after which the fit ends, as was asked for or by a callback; ``None``
            for no limit.
        batches: Training batches; ``None`` where the loader cannot tell its length.
        epochs: Epochs that are begun; ``None`` where a limit may come before they are over, and
            the loader cannot tell its length.
    """

    steps: int | None
    limit: int | None
    batches: int | None
    epochs: int | None


def fit_length(run: RunState, *, batches_per_step: int | None = None) -> FitLength:
    """Work out how long the fit of ``run`` is.

    Callbacks that end fits or accumulate gradients say so in ``fit_ends_after_steps`` and
    ``batches_per_step``.

    Args:
        run: From before ``begin_fit`` on.
        batches_per_step: How many batches there are to a step; ``None`` (default) asks the
            callbacks. What is left over at the end of an epoch counts as a step.
    """
    asked = [run.total_steps, *(cb.fit_ends_after_steps for cb in run.cbs)]
    limits = [n for n in asked if n is not None]
    limit = min(limits, default=None)
    per_step = batches_per_step
    if per_step is None:
        per_step = math.prod(cb.batches_per_step for cb in run.cbs)
    length = loader_length(run.data.train_dl)
    if length is None or (limit is None and run.epochs is None):
        epochs = run.epochs if limit is None else None
        return FitLength(limit, limit, None, epochs)
    an_epoch = math.ceil(length / per_step)
    if run.epochs is not None and (limit is None or limit >= run.epochs * an_epoch):
        return FitLength(run.epochs * an_epoch, limit, run.epochs * length, run.epochs)
    assert limit is not None
    whole, rest = divmod(limit, an_epoch or 1)
    batches = whole * length + min(rest * per_step, length)
    return FitLength(limit, limit, batches, whole + (rest > 0))


def other_length(name: str, saved: int | None, own: int | None) -> str | None:
    """Say that a schedule was laid out over another fit than the one that is to go on.

    Args:
        name: The schedule's, for the message.
        saved: Over how many steps it was laid out.
        own: How many this fit has.

    Returns:
        A sentence that says what to do; ``None`` where both are the same.
    """
    if saved == own:
        return None
    return (
        f"{name} was laid out over the {saved} steps of its fit, and this fit has {own}. Resume "
        "with the same number of epochs or steps, or say how many steps it is to span: "
        f"total_steps={own} goes on in a schedule over {own} steps, total_steps={saved} ends as it "
        "was to end, and keeps its last value from there on"
    )


def share_done(run: RunState, length: FitLength, total_steps: int | None = None) -> float:
    """Return how much of the fit is done, from 0 to 1.

    Args:
        run: During a fit.
        length: That of the fit.
        total_steps: Steps to count on instead. Default ``None``.
    """
    if total_steps is not None:
        return min(run.steps / total_steps, 1.0)
    shares = [] if length.limit is None else [run.steps / length.limit]
    if length.batches is not None and run.epochs:
        shares.append(run.n_epochs / run.epochs)
    # A loader may give more batches than it said. Of two ends the fit meets the nearer one.
    return min(max(shares, default=0.0), 1.0)
