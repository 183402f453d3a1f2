"""Ctrl-C and SIGTERM during a run: the first asks, the second insists, the third does not wait."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from types import CodeType, FrameType
from typing import Any, Literal

from .around import around
from .cancellation import CancellationToken, is_closing, runs_in
from .wakeup import WakeUp

OnInterrupt = Literal["raise", "return"]

_entered: list[Interrupts] = []
"""Those whose signal handlers stand, outermost first."""


class Interrupts:
    """While it is entered, the first signal cancels the run and the second acts at once.

    A second one that comes while a scope closes acts when that closing is over, so that no
    scope that has begun goes without its closing event; a third does not wait for it. A
    second one that finds the first held back (until a batch has ended) has it take effect.

    When it is left, the handlers that stood before stand again, and unless
    ``on_interrupt`` is ``"return"`` they are given the signal that came:
    Python's own raises ``KeyboardInterrupt`` for SIGINT and ends the process for
    SIGTERM. Outside of the main thread, and for signals that the process
    ignores, it does nothing. A process that is forked meanwhile has the handlers that
    stood before.

    Args:
        token: Cancelled at its outermost scope, with the signal's name as reason.
        on_interrupt: What happens when the run has closed: ``"raise"`` or ``"return"``.
    """

    def __init__(self, token: CancellationToken, on_interrupt: OnInterrupt) -> None:
        self.token = token
        self._on_interrupt = on_interrupt
        self._previous: dict[int, Any] = {}
        self._on_child: Callable[[int, FrameType | None], Any] | None = None
        self._received: int | None = None
        self._has_insisted = False
        self._wake_up: WakeUp | None = None
        self._heard: int | None = None  # by that, and yet to be received

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            _entered.append(self)
            self._install()
        return self

    def _install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.getsignal(number)
            # None: installed by something other than Python, which cannot be put back.
            if previous is not None and previous is not signal.SIG_IGN:
                self._previous[number] = previous
                signal.signal(number, self._receive)

    @around
    def aside(self) -> Iterator[None]:
        """Have the handlers that stood before stand for a while."""
        # Around all: what comes meanwhile is for those handlers alone.
        with nullcontext() if self._wake_up is None else self._wake_up.aside():
            for number, previous in self._previous.items():
                signal.signal(number, previous)
            try:
                yield
            finally:
                self._previous.clear()
                self._install()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        wake_up = self._wake_up
        self.restore()
        if wake_up is not None:
            wake_up.join(1.0)
        received, self._received = self._received, None
        if received is None or self._on_interrupt == "return":
            return
        if not isinstance(error, KeyboardInterrupt):
            _hand_over(received, self._previous[received], None)

    def watch_workers(self, waiting: CodeType) -> None:
        """Have a worker that dies of the signal which ends the run too disturb nothing.

        torch raises for a worker that died wherever the main thread is. Now it does so only
        in ``waiting``, and elsewhere if no signal has come or is about to.

        Args:
            waiting: The code that waits for the workers.
        """
        on_child = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        if self not in _entered or self._on_child is not None or not callable(on_child):
            return
        self._on_child = on_child

        def child_has_died(number: int, frame: FrameType | None) -> None:
            try:
                on_child(number, frame)
            except RuntimeError:
                if runs_in(frame, {waiting}) or not self.token.is_interrupted_soon():
                    raise

        signal.signal(signal.SIGCHLD, child_has_died)

    def hear_at_once(self) -> None:
        """Have a signal ask for the end at once, also while the main thread cannot receive it.

        That is for a run whose other processes have to hear of it: in a collective, which waits
        for them, no handler of a signal runs.
        """
        if self in _entered and self._wake_up is None:
            self._wake_up = WakeUp(self._hear)

    def _hear(self, number: int) -> None:
        """Ask in the name of a signal that is yet to be received; in a thread of its own."""
        is_first = self._received is None and self._heard is None
        if is_first and number in self._previous and _entered[-1:] == [self]:
            self._heard = number
            self.token.interrupt(signal.Signals(number).name)

    def run_has_ended(self) -> None:
        """Have a signal that comes from now on handed over: it cannot cancel anything."""
        if self._received is None:
            self._on_interrupt = "raise"

    def restore(self) -> None:
        """Put the handlers back that stood before."""
        if self in _entered:
            _entered.remove(self)
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        if self._on_child is not None:
            signal.signal(signal.SIGCHLD, self._on_child)
            self._on_child = None
        wake_up, self._wake_up = self._wake_up, None
        if wake_up is not None:
            wake_up.stop()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        heard, self._heard = self._heard, None
        if self._received is None:
            self._received = number
            if heard != number:
                self.token.interrupt(signal.Signals(number).name)
        elif self.token.release():
            pass  # the request waited for the end of the batch, and does so no longer
        elif not self._has_insisted and (is_closing(frame) or not self.token.open_scopes):
            # Where no scope is open, the run is being put away: leaving it hands the signal over.
            self._has_insisted = True
            self.token.insist = lambda: self._give_way(number, None)
        else:
            self._give_way(number, frame)

    def _give_way(self, number: int, frame: FrameType | None) -> None:
        """Do what the handler that stood before would have done."""
        self.restore()
        self._received = None
        self.token.is_interrupted = False
        _hand_over(number, self._previous[number], frame)
        raise KeyboardInterrupt


def watch_workers(token: CancellationToken, waiting: CodeType) -> None:
    """Do so for the run that ``token`` steers, if it takes signals; see ``Interrupts``."""
    for interrupts in _entered:
        if interrupts.token is token:
            interrupts.watch_workers(waiting)


def hear_at_once(token: CancellationToken) -> None:
    """Do so for the run that ``token`` steers, if it takes signals; see ``Interrupts``."""
    for interrupts in _entered:
        if interrupts.token is token:
            interrupts.hear_at_once()


def aside(token: CancellationToken) -> AbstractContextManager[None]:
    """Do so for the run that ``token`` steers, if it takes signals; see ``Interrupts``."""
    is_main = threading.current_thread() is threading.main_thread()
    found = [interrupts for interrupts in _entered if interrupts.token is token and is_main]
    return found[-1].aside() if found else nullcontext()


def _hand_over(
    number: int, previous: Callable[[int, FrameType | None], Any] | int, frame: FrameType | None
) -> None:
    if callable(previous):
        previous(number, frame)
    else:
        signal.raise_signal(number)


def _restore_all() -> None:
    for interrupts in reversed(_entered[:]):
        with suppress(ValueError):  # not the main thread of this process
            interrupts.restore()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_restore_all)
