"""Ctrl-C and SIGTERM during a run: the first asks, the second insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Literal

from .cancellation import CancellationToken
from .errors import ScopeNotOpenError

OnInterrupt = Literal["raise", "return"]


class Interrupts:
    """While it is entered, the first signal cancels the run and the second acts at once.

    When it is left, the handlers that stood before stand again, and unless
    ``on_interrupt`` is ``"return"`` they are given the signal that came:
    Python's own raises ``KeyboardInterrupt`` for SIGINT and ends the process for
    SIGTERM. Outside of the main thread, and for signals that the process
    ignores, it does nothing.

    Args:
        token: Cancelled at its outermost scope, with the signal's name as reason.
        on_interrupt: What happens when the run has closed: ``"raise"`` or ``"return"``.
    """

    def __init__(self, token: CancellationToken, on_interrupt: OnInterrupt) -> None:
        self._token = token
        self._on_interrupt = on_interrupt
        self._previous: dict[int, Any] = {}
        self._received: int | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.getsignal(number)
                # None: installed by something other than Python, which cannot be put back.
                if previous is not None and previous is not signal.SIG_IGN:
                    self._previous[number] = previous
                    signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._restore()
        received, self._received = self._received, None
        if received is None or self._on_interrupt == "return":
            return
        if not isinstance(error, KeyboardInterrupt):
            _hand_over(received, self._previous[received], None)

    def run_has_ended(self) -> None:
        """Have a signal that comes from now on handed over: it cannot cancel anything."""
        if self._received is None:
            self._on_interrupt = "raise"

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            self._restore()
            self._received = None
            _hand_over(number, self._previous[number], frame)
            raise KeyboardInterrupt
        self._received = number
        scopes = self._token.open_scopes
        name = signal.Signals(number).name
        with suppress(ScopeNotOpenError):  # raised when the run is closing already
            self._token.cancel(scopes[0] if scopes else "fit", name, by=name)

    def _restore(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)


def _hand_over(
    number: int, previous: Callable[[int, FrameType | None], Any] | int, frame: FrameType | None
) -> None:
    if callable(previous):
        previous(number, frame)
    else:
        signal.raise_signal(number)
