"""The number in the history by which a callback judges an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ...callback import Callback, handler
from ...priorities import BEFORE_EVERYONE

if TYPE_CHECKING:
    from ...state import RunState

T = TypeVar("T")
Mode = Literal["min", "max"]


class Monitored:
    """One number in each row of ``run.history``, and what is better.

    Args:
        key: The number's key in the rows.
        mode: ``"min"`` when lower is better (default), ``"max"`` when higher is.
        user: Who monitors it, for messages.

    Raises:
        TypeError: ``key`` is no text.
        ValueError: ``mode`` is neither.
    """

    def __init__(self, key: str, mode: Mode = "min", *, user: str) -> None:
        if not isinstance(key, str):
            raise TypeError(f"monitor must be a key of run.history's rows, got {key!r}")
        self.key = key
        self.mode: Mode = checked_mode(mode)
        self.user = user

    def read(self, run: RunState, *, is_cut_short: bool) -> float | None:
        """Return the number in the row of the epoch that is closing.

        Args:
            run: In ``after_epoch``.
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
            keys = ", ".join(map(repr, (key for key in row if key != "epoch"))) or "none"
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


class MonitoringCallback(Callback):
    """Knows whether the epoch's row may lack numbers because something was cancelled.

    Attributes:
        monitored: What is monitored, ``None`` where nothing is.
        is_cut_short: Whether the training or the validation of this epoch was cancelled.
    """

    monitored: Monitored | None = None
    is_cut_short = False

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
        self.is_cut_short = False

    @handler(["after_cancel_train", "after_cancel_validate"])
    def note_cancellation(self, run: RunState) -> None:
        """Remember that numbers of this epoch may be missing."""
        self.is_cut_short = True


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
