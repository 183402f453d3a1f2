"""Ends a fit, or a part of it, when its time is up."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any, cast

from ..arguments import real_number
from ..callback import Callback, handler
from ..events import EVENTS, EventName, ScopeName, Vocabulary
from ..priorities import BEFORE_EVERYONE

if TYPE_CHECKING:
    from ..state import RunState

_SCOPES = Vocabulary().around("batch")
_OPENING = cast(
    "list[EventName]", [e.name for e in EVENTS if e.scope in _SCOPES and e.kind == "opening"]
)
_CLOSING = cast(
    "list[EventName]", [e.name for e in EVENTS if e.scope in _SCOPES and e.closes_scope]
)


class TimeLimit(Callback):
    """Cancels a scope that has been open for a number of seconds.

    A timer thread asks (``token.cancel_after``), so that a batch costs nothing
    and a long handler does not hide the end of the time; the loop leaves at its
    next checkpoint. Wall time counts, the validation of a fit included.

    A run that is resumed from a checkpoint goes on with the time it had left:
    the seconds spent before count, those between the two runs do not.

    Args:
        seconds: The limit, finite and above 0.
        scope: ``"fit"`` (default), or ``"epoch"``, ``"train"``, ``"validate"``,
            ``"predict"``, each of which gets its own ``seconds`` every time it opens.

    Attributes:
        elapsed: Seconds that the scope has been open; for a scope that has
            closed, those it took.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range.
    """

    priority = BEFORE_EVERYONE
    held_in_run = ("_timer",)

    def __init__(self, seconds: float, scope: ScopeName = "fit") -> None:
        if not 0 < real_number("seconds", seconds) < math.inf:
            raise ValueError(f"seconds must be finite and above 0, got {seconds!r}")
        if scope not in _SCOPES:
            raise ValueError(f"scope must be one of {', '.join(_SCOPES)}, got {scope!r}")
        self.seconds = seconds
        self.scope = scope
        self._before = 0.0
        self._start: float | None = None
        self._timer: threading.Timer | None = None

    @property
    def elapsed(self) -> float:
        """Seconds that count so far."""
        running = 0.0 if self._start is None else time.monotonic() - self._start
        return self._before + running

    @handler(event=_OPENING)
    def start(self, run: RunState) -> None:
        """Start the timer where the scope opens."""
        # An opening event has its own scope innermost.
        if run.token.scope == self.scope:
            self._start_timer(run, 0.0)

    @handler(event=_CLOSING)
    def stop(self, run: RunState) -> None:
        """Call the timer off where the scope has closed."""
        if self._timer is not None and self.scope not in run.token.open_scopes:
            self._timer.cancel()
            self._timer, self._before, self._start = None, self.elapsed, None

    def _start_timer(self, run: RunState, before: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._before, self._start = before, time.monotonic()
        self._timer = run.token.cancel_after(
            max(0.0, self.seconds - before),
            self.scope,
            f"the {self.scope} has used up its {self.seconds:g} s",
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds spent."""
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count the seconds spent before, and go on with the rest."""
        run = self.run
        if run is not None and self._timer is not None:
            self._start_timer(run, state["elapsed"])
