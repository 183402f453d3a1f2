"""Runs a batch that does not fit into memory in pieces, with the same gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ..arguments import whole_number
from ..callback import Callback, handler
from ..distributed.engines import Replicated, is_wrapped
from ..loop import Loop
from ..priorities import AFTER_EVERYONE, BEFORE_EVERYONE
from ..split_call import Limit, SplitCall
from ..split_units import split_units

if TYPE_CHECKING:
    from ..runner import Runner

_log = logging.getLogger(__name__)


class SplitOnOOM(Callback):
    """Splits a batch whose model raises ``torch.OutOfMemoryError``, in forward or backward.

    The model is called with half of the rows at a time, or fewer, as often as it takes; what it
    returns is joined, so the loss is that of the whole batch, whatever it is a mean of, and every
    event fires once. Only the model's call is made in pieces: each is run once more in
    the backward pass, with the same random numbers, and its gradients are added. They are those of
    the whole batch, to rounding. (Batch normalization sees the pieces, and random numbers are
    drawn by piece.)

    What a failed attempt has drawn, added and measured is put back. The size that has fit is kept,
    also in checkpoints, for all batches that follow.

    With ``Distributed`` each process splits its share of a batch for itself. With DDP gradients are
    shared when those of the share are whole, so a process that begins again keeps the others
    waiting, and no more; with FSDP2 each part that gathers its parameters is split by itself. At
    the end of each phase the smallest size becomes that of all.

    Args:
        rows: Call the model with so many rows at most from the start. ``None`` (default) tries
            whole batches first.

    Attributes:
        rows: The size that has fit; ``None`` while nothing was split.

    Raises:
        TypeError, ValueError: ``rows`` is no whole number, or below 1; in ``begin_fit``, the model
            is no module, or ``one_batch`` is not the runner's own.
        RuntimeError: In ``begin_fit``: the run is on several processes, and the model is in a DDP
            that you have made. Later: it is divided for tensor parallelism, too.
    """

    held_in_run = ("_call", "_undo")

    def __init__(self, rows: int | None = None) -> None:
        self._limit = Limit(_Told(self))
        self._limit.rows = None if rows is None else whole_number("rows", rows, 1)
        self._call: SplitCall | None = None
        self._undo: list[Callable[[], None]] = []

    @property
    def rows(self) -> int | None:
        """The rows that the model is called with at most; ``None`` while whole batches fit."""
        return self._limit.rows

    def begin_fit(self, run: Runner) -> None:
        """Have the loop call the model through this."""
        if not isinstance(run.model, nn.Module):
            raise TypeError(f"SplitOnOOM needs an nn.Module, got {type(run.model).__name__}")
        if type(run).one_batch is not Loop.one_batch:
            raise TypeError(
                f"SplitOnOOM goes back through the model's call once, and {type(run).__name__} has "
                "a one_batch of its own, which may do so twice: make smaller batches"
            )
        if run.world.size == 1:
            run.learn.wrap_model(lambda model: self._wrapped(model, run))
        elif isinstance(run.model, FSDPModule):
            self._undo.append(split_units(run.model, run, self._limit))
        else:
            _replicated(run).call_through(lambda model: self._wrapped(model, run))

    def _wrapped(self, model: Any, run: Runner) -> SplitCall:
        self._call = SplitCall(model, run, self._limit)
        return self._call

    @handler(during="train", priority=BEFORE_EVERYONE + 2)  # it is the loss function's still
    def after_loss(self, run: Runner) -> None:
        """Know by what others scale the loss for the backward pass."""
        call, loss = self._call, run.loss
        if call is not None and isinstance(loss, Tensor) and loss.requires_grad:
            call.loss = loss.detach()
            loss.register_hook(call.note_scale)  # type: ignore[no-untyped-call]

    @handler(priority=AFTER_EVERYONE)
    def after_batch(self, run: Runner) -> None:
        """Forget the batch."""
        if self._call is not None:
            self._call.loss = self._call.scale = None

    @handler(["after_train", "after_validate"])
    def agree(self, run: Runner) -> None:
        """Have the smallest size of all processes be that of each."""
        if run.outcome != "failed":
            rows = (row for (row,) in run.world.gather([self._limit.rows or 0]))
            self._limit.rows = _smallest(map(int, rows))

    @handler(priority=AFTER_EVERYONE)
    def after_fit(self, run: Runner) -> None:
        """Have the loop call the model itself."""
        self._call = None
        while self._undo:
            self._undo.pop()()
        if run.world.size == 1:
            run.learn.wrap_model(None)

    def state_dict(self) -> dict[str, Any]:
        """Return the size that has fit."""
        return {"rows": self._limit.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the size that has fit."""
        self._limit.rows = state["rows"]

    def state_for_rank(
        self, states: Sequence[dict[str, Any]], rank: int, size: int, phase: str | None
    ) -> dict[str, Any]:
        """Return the smallest size of those that were there."""
        return {"rows": _smallest(state.get("rows") or 0 for state in states)}


class _Told:
    """Logs that batches are split from now on."""

    def __init__(self, callback: SplitOnOOM) -> None:
        self._callback = callback

    def __call__(self, rows: int) -> None:
        _log.warning(
            "a batch of %d rows does not fit into memory: the model is called with at most %d at "
            "a time from now on",
            rows,
            self._callback.rows,
        )


def _smallest(rows: Iterable[int]) -> int | None:
    """Return the smallest of several sizes, of which 0 is none."""
    return min(filter(None, rows), default=None)


def _replicated(run: Runner) -> Replicated:
    """Return what the loop calls, where that lets a model be called in pieces."""
    wrapped = run.learn.model_wrapped
    if isinstance(wrapped, Replicated) and not any(map(is_wrapped, run.model.modules())):
        return wrapped
    raise RuntimeError(
        "SplitOnOOM calls the model in pieces and DDP once, so it has to stand between them: "
        "give Learner the model itself, and Distributed('ddp') puts it into DDP"
    )
