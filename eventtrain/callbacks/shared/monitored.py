"""The number in the history by which a callback judges a row: an epoch, or a validation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ...callback import handler
from ...priorities import BEFORE_EVERYONE
from .row_ends import RowCallback

if TYPE_CHECKING:
    from torch import Tensor

    from ...state import RunState

T = TypeVar("T")
Mode = Literal["min", "max"]
# By what a key says of itself. A loss or an error of any name is better the lower it is.
_LOWER = re.compile(r"loss|error")
_HIGHER = re.compile(
    r"accuracy|precision|recall|auroc|jaccard|bleu|rouge|f1"
    r"|(?<![a-z])(acc|auc|map|iou|miou|dice|mrr|ndcg|psnr|ssim|r2)(?![a-z])"
)


class Monitored:
    """One number in each row of ``run.history``, and what is better.

    Args:
        key: The number's key in the rows.
        mode: ``"min"`` when lower is better, ``"max"`` when higher is. ``None`` (default) is
            ``"min"``, but for a key whose name says the reverse.
        user: Who monitors it, for messages.

    Raises:
        TypeError: ``key`` is no text.
        ValueError: ``mode`` is neither; or it is ``None``, and the key is that of an accuracy, say.
    """

    def __init__(self, key: str, mode: Mode | None = None, *, user: str) -> None:
        if not isinstance(key, str):
            raise TypeError(f"monitor must be a key of run.history's rows, got {key!r}")
        name = key.lower()
        if mode is None and _HIGHER.search(name) and not _LOWER.search(name):
            raise ValueError(
                f"{user} monitors {key!r}, and without mode= the smallest value is the best, which "
                "the name of this one speaks against: mode='max' takes the largest, mode='min' "
                "the smallest"
            )
        self.key = key
        self.mode: Mode = checked_mode("min" if mode is None else mode)
        self.user = user

    def read(self, run: RunState, *, is_cut_short: bool) -> float | None:
        """Return the number in the row that is complete.

        Args:
            run: In ``after_epoch`` or ``after_row``.
            is_cut_short: Whether something of the epoch was cancelled and left its row
                without the number, perhaps.

        Returns:
            ``None`` where an epoch that was cut short, or that has not completed, lacks it.

        Raises:
            ValueError: The row has no such key.
            TypeError: What it holds there is no number.
        """
        row = run.history[-1]
        may_lack = is_cut_short or run.outcome != "completed"
        if self.key not in row:
            if may_lack:
                return None
            keys = (
                ", ".join(map(repr, (key for key in row if key not in ("epoch", "step")))) or "none"
            )
            raise ValueError(
                f"{self.user} monitors {self.key!r}, and the history of epoch {run.epoch} has no "
                f"such key (there are: {keys}). Name one of these, or add a callback that writes "
                "it at a higher priority, as AvgStatsCallback does the losses."
            )
        try:
            return float(row[self.key])
        except (TypeError, ValueError, RuntimeError) as error:  # the last from complex tensors
            if may_lack:
                return None
            raise TypeError(
                f"{self.user} monitors {self.key!r}, which must be a number, and the history of "
                f"epoch {run.epoch} holds {row[self.key]!r} there. Write a number, or monitor "
                "another key."
            ) from error

    def is_better(self, value: float, best: float | None, min_delta: float = 0.0) -> bool:
        """Whether ``value`` is better than ``best`` by more than ``min_delta``; NaN never is."""
        if math.isnan(value):
            return False
        if best is None:
            return True
        gain = best - value if self.mode == "min" else value - best
        return gain > min_delta

    def best_of(self, candidates: Iterable[T], count: int, value_of: Callable[[T], Any]) -> list[T]:
        """Return the ``count`` best of the candidates that have a number, the best first.

        Among equals the first one counts as better.
        """
        known = [each for each in candidates if _is_number(value_of(each))]
        sign = 1 if self.mode == "min" else -1
        return sorted(known, key=lambda each: sign * value_of(each))[:count]


class MonitoringCallback(RowCallback):
    """Knows which numbers of the epoch's row can be judged, and which weights gave them.

    A number is one of training if it stood in the row before the validation ended and its key does
    not begin with ``valid_``, or its key begins with ``train_``; all others are of the validation.

    Attributes:
        monitored: What is monitored, ``None`` where nothing is.
        is_cut_short: Whether the training or the validation of this epoch was cancelled.
    """

    monitored: Monitored | None = None
    is_cut_short = False
    _is_validation_partial = False
    _batch: Any = None  # the last one before the validation
    _known: frozenset[str] = frozenset()  # keys that stood in the row when the validation ended

    @property
    def monitor(self) -> str | None:
        """The key in ``run.history``'s rows."""
        return None if self.monitored is None else self.monitored.key

    @property
    def mode(self) -> Mode:
        """Whether the smallest or the largest value is best."""
        return "min" if self.monitored is None else self.monitored.mode

    @handler("begin_epoch", priority=BEFORE_EVERYONE)
    def expect_whole_epoch(self, run: RunState) -> None:
        """Start over with what the epoch is known to lack."""
        self.is_cut_short = self._is_validation_partial = False
        self._known = frozenset()

    @handler(["after_cancel_train", "after_cancel_validate"])
    def note_cancellation(self, run: RunState) -> None:
        """Remember that numbers of this epoch may be missing."""
        self.is_cut_short |= not _is_aside(run)

    @handler("begin_validate", priority=BEFORE_EVERYONE)
    def note_last_batch(self, run: RunState) -> None:
        """Remember the batch before those of the validation."""
        if _is_aside(run):
            return
        self._batch = run.batch

    @handler("after_validate", priority=BEFORE_EVERYONE)  # before what it measured is written
    def note_validation(self, run: RunState) -> None:
        """Remember whether the validation saw a part of its data, and what was measured before."""
        if _is_aside(run):
            return
        has_begun = run.batch is not self._batch
        is_first = next(iter(run.valid_loaders), None) == run.valid_name
        is_partial = has_begun and run.outcome != "completed"
        self._is_validation_partial = is_partial or (self._is_validation_partial and not is_first)
        self._batch = None
        if is_first:  # what stands there later is of the loaders before
            # What was logged in this phase has just been written.
            self._known = frozenset(key for key in run.history[-1] if not key.startswith("valid_"))

    def reading(self, run: RunState) -> float | None:
        """Return what is monitored, as ``Monitored.read`` does; only what can be judged.

        Returns:
            ``None`` also for a number of a validation that was cancelled: it is of a part of the
            data, and not to be held against those of the whole.
        """
        assert self.monitored is not None
        if self._is_validation_partial and not self._is_of_training(self.monitored.key):
            return None
        return self.monitored.read(run, is_cut_short=self.is_cut_short)

    def validated_weights_of(self, run: RunState) -> Mapping[str, Tensor] | None:
        """Return the weights that gave the numbers of this epoch's row, where they were lent.

        Returns:
            What ``validated_weights`` of another callback returns. ``None`` where the weights are
            those of the model, and where the number that is monitored is one of training.
        """
        if self.monitored is not None and self._is_of_training(self.monitored.key):
            return None
        lent = (callback.validated_weights() for callback in run.cbs)
        return next((weights for weights in lent if weights is not None), None)

    def _is_of_training(self, key: str) -> bool:
        return key.startswith("train_") or key in self._known


def _is_aside(run: RunState) -> bool:
    """Whether the validation is one that no row is told of."""
    return run.in_interlude and run.validate_every is None


def checked_mode(mode: Any) -> Mode:
    """Return ``mode``, if it is one.

    Raises:
        ValueError: It is neither ``"min"`` nor ``"max"``.
    """
    if mode not in ("min", "max"):
        raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
    return mode  # type: ignore[no-any-return]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not math.isnan(value)
