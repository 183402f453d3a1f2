"""Cancellation: a token that asks a scope of the loop to end, and the scopes that obey.

``token.cancel("epoch", "plateau")`` only notes the request. A checkpoint (every
emission is one) delivers it by unwinding to that scope, which absorbs it; the
scopes on the way close as they would have closed anyway.

Source: scopes that absorb only their own cancellation are trio's
``CancelScope``; tokens that are handed around and linked are .NET's
``CancellationToken``.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NoReturn

from .errors import ScopeNotOpenError, combine_errors

Outcome = Literal["completed", "cancelled", "failed"]
Origin = tuple[str | None, str | None, int | None, int | None]
"""Handler, event, epoch and batch that a cancellation came from."""


class Unwind(BaseException):
    """Carries a delivered cancellation outward to the scope that absorbs it.

    A ``BaseException``, so that ``except Exception`` in a handler or a model
    cannot eat it. Private to the package.
    """

    def __init__(self, token: CancellationToken) -> None:
        super().__init__("a cancellation is being delivered")
        self.token = token


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A request to end a scope: what, why, by whom and where.

    Attributes:
        scope: The scope asked to end.
        reason: The caller's words; may be empty.
        by: The handler that asked, or the function or thread outside of any handler.
        event: The event that handler was serving; ``None`` outside of handlers.
        epoch: Epoch at the time, counted from 0; ``None`` where there was none.
        batch: Index of the batch within its phase, from 0; ``None`` where there was none.
        time: Seconds since the Unix epoch.
    """

    scope: str
    reason: str
    by: str
    event: str | None
    epoch: int | None
    batch: int | None
    time: float


HISTORY = 10_000
"""How many requests a token remembers at least."""


class CancellationToken:
    """Steers one fit from handlers, other threads, timers and signals.

    Attributes:
        pending: The request that no scope has absorbed yet, or ``None``. Reading
            it is cheap; it never touches the device.
        absorbed: The request that a scope absorbed last, or ``None``.
        history: The requests accepted so far, oldest first: at least the last 10,000,
            as a run that accumulates gradients makes one in almost every batch.
        accepted: How many requests have been accepted in all.
        outcome: How the scope whose closing event is running ended; ``None``
            outside of closing events.
        exception: The exception that is escaping, or ``None``.
        closing_error: In a closing event, what one of its handlers has raised last: the
            others run all the same. ``None`` outside of it, and without such.
    """

    __slots__ = (
        "__weakref__",
        "_children",
        "_finished",
        "_lock",
        "_target",
        "_timers",
        "_top",
        "absorbed",
        "accepted",
        "closing_error",
        "exception",
        "history",
        "origin",
        "outcome",
        "pending",
    )

    def __init__(self) -> None:
        self.pending: Cancellation | None = None
        self.absorbed: Cancellation | None = None
        self.history: list[Cancellation] = []
        self.accepted = 0
        self.outcome: Outcome | None = None
        self.exception: BaseException | None = None
        self.closing_error: BaseException | None = None
        self.origin: Callable[[], Origin] | None = None
        self._top: Scope | None = None
        self._target: Scope | None = None
        self._finished = False
        # Re-entrant: a signal handler may cancel while cancel() is running.
        self._lock = threading.RLock()
        self._children: weakref.WeakSet[CancellationToken] = weakref.WeakSet()
        self._timers: list[threading.Timer] = []

    @classmethod
    def linked(cls, *parents: CancellationToken) -> CancellationToken:
        """Return a token whose fit is cancelled when any parent's fit is.

        Cancelling the child leaves its parents alone. A parent that already
        holds a pending request cancels the child at once.
        """
        child = cls()
        for parent in parents:
            parent._children.add(child)
            if parent.pending is not None and parent.pending.scope == "fit":
                child._follow(parent.pending)
        return child

    @property
    def cancelled(self) -> bool:
        """Whether a request waits to be absorbed."""
        return self.pending is not None

    @property
    def open_scopes(self) -> tuple[str, ...]:
        """Names of the open scopes, outermost first."""
        names: list[str] = []
        scope = self._top
        while scope is not None:
            names.append(scope.name)
            scope = scope.parent
        return tuple(reversed(names))

    @property
    def scope(self) -> str | None:
        """Name of the innermost open scope. In ``after_X`` scope X has closed already."""
        top = self._top
        return None if top is None else top.name

    def cancel(self, scope: str = "fit", reason: str = "", *, by: str | None = None) -> None:
        """Ask the innermost open scope of that name, and all inside it, to end.

        Returns at once and raises nothing into the caller's flow; the next
        checkpoint leaves the scope. Of several requests the outermost wins.
        May be called from handlers, other threads, timers and signal handlers.
        Before its fit starts a token accepts ``"fit"``, and that fit then does
        nothing.

        Args:
            scope: Name of an open scope.
            reason: Why, in your own words; kept in ``history`` and the result.
            by: Who asks; worked out from the call stack by default.

        Raises:
            ScopeNotOpenError: No scope of that name is open.
        """
        handler, event, epoch, batch = self.origin() if self.origin else (None,) * 4
        name = by or handler or _caller()
        record = Cancellation(str(scope), reason, name, event, epoch, batch, time.time())
        self._accept(record)
        if scope == "fit":
            for child in list(self._children):
                child._follow(record)

    def cancel_after(
        self, seconds: float, scope: str = "fit", reason: str | None = None
    ) -> threading.Timer:
        """Cancel ``scope`` when ``seconds`` have passed, from a timer thread.

        A timer that finds its scope closed does nothing.

        Args:
            seconds: Delay in seconds, not negative.
            scope: Name of the scope that should be open by then.
            reason: Defaults to a sentence with the number of seconds.

        Returns:
            The running timer; its ``cancel()`` calls it off. Timers of a token
            that ``fit`` made itself end with that fit.

        Raises:
            ValueError: ``seconds`` is negative or not finite.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"cancel_after needs seconds >= 0, got {seconds!r}")
        # The thread must not keep a token alive that everyone else has dropped.
        reference = weakref.ref(self)

        def fire() -> None:
            token = reference()
            if token is None:
                return
            with suppress(ScopeNotOpenError):
                token.cancel(scope, reason or f"{seconds:g} s have passed", by="timer")

        # A thread cannot wait for longer, which is centuries.
        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), fire)
        timer.daemon = True
        with self._lock:
            # Those that are over go: a scope that opens often may have one each time.
            self._timers = [t for t in self._timers if not t.finished.is_set()] + [timer]
        timer.start()
        return timer

    def check(self) -> None:
        """Be a checkpoint: leave here, if a scope that is open has been cancelled.

        For long handlers, in the thread of the loop. Without a request it
        returns at once.
        """
        if self.pending is not None:
            self._deliver()

    def finish(self) -> None:
        """End this token's life: its timers stop and it accepts no more requests."""
        self._finished = True
        self.forget()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def accepted_since(self, count: int) -> list[Cancellation]:
        """Return what ``history`` holds of the requests that came after the first ``count``."""
        with self._lock:
            dropped = self.accepted - len(self.history)
            return self.history[max(0, count - dropped) :]

    def forget(self) -> None:
        """Drop what belongs to the run that has ended; ``history`` stays."""
        self.pending = self.absorbed = self._target = None
        self.exception = self.closing_error = self.outcome = self.origin = None

    def _accept(self, record: Cancellation) -> None:
        with self._lock:
            target = self._find(record.scope)
            self.history.append(record)
            self.accepted += 1
            if len(self.history) >= 2 * HISTORY:
                del self.history[:HISTORY]
            if self.pending is None or self._is_outside(target):
                self._target = target
                self.pending = record

    def _follow(self, record: Cancellation) -> None:
        """Accept a parent's request, unless this token's fit has ended already."""
        with suppress(ScopeNotOpenError):
            self._accept(record)

    def _find(self, name: str) -> Scope | None:
        """Return the innermost open scope called ``name``; ``None`` is a fit yet to begin."""
        scope = self._top
        while scope is not None:
            if scope.name == name:
                return scope
            scope = scope.parent
        # An outcome is set while closing events run: then the fit is over, not yet to begin.
        if name == "fit" and self._top is None and not self._finished and self.outcome is None:
            return None
        raise ScopeNotOpenError(name, self.open_scopes)

    def _is_outside(self, target: Scope | None) -> bool:
        """Whether ``target`` encloses the scope that the pending request aims at."""
        scope = None if self._target is None else self._target.parent
        while scope is not None:
            if scope is target:
                return True
            scope = scope.parent
        return False

    def _deliver(self) -> None:
        with self._lock:
            scope = self._top
            if scope is None or self.pending is None:
                return
            while scope.parent is not None and scope is not self._target:
                scope = scope.parent
            if self._target is None:  # asked for before the outermost scope was opened
                self._target = scope
            if scope is not self._target:
                # Another thread asked just as that scope was closing: nothing is left to end.
                self.pending = self._target = None
                return
        raise Unwind(self)

    def absorb(self, scope: Scope) -> bool:
        """Take the pending request back if it aims at ``scope``, which is closing."""
        if self.pending is None or self._target is not scope:
            return False
        self.absorbed = self.pending
        self.pending = self._target = None
        return True


class Scope:
    """A stretch of the loop that can be cancelled; a context manager, usable again and again.

    It absorbs the cancellations that aim at it and passes outer ones on. When
    it is left, however that happens, its closing event fires exactly once.

    Attributes:
        name: The name that ``token.cancel`` takes.
        outcome: How it ended last: ``"completed"``, ``"cancelled"``, ``"failed"``;
            ``None`` before and while it is open.
        closing: Called when the scope has ended (``after_X``), or ``None``.
        cancelled: Called before ``closing`` when the scope absorbed a
            cancellation (``after_cancel_X``), or ``None``.
        failed: Called before ``closing`` when an exception starts to escape
            (``fit_failed``), or ``None``.
    """

    __slots__ = ("cancelled", "closing", "failed", "is_open", "name", "outcome", "parent", "token")

    def __init__(self, token: CancellationToken, name: str) -> None:
        self.token = token
        self.name = name
        self.parent: Scope | None = None
        self.is_open = False
        self.outcome: Outcome | None = None
        self.closing: Callable[[], object] | None = None
        self.cancelled: Callable[[], object] | None = None
        self.failed: Callable[[], object] | None = None

    def __enter__(self) -> Scope:
        token = self.token
        if self.is_open:
            raise RuntimeError(f"scope {self.name!r} is open already; leave it before entering it")
        self.outcome = None
        if token.pending is not None:
            token.check()
        self.is_open = True
        self.parent = token._top
        token._top = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        token = self.token
        token._top = self.parent
        self.is_open = False
        if error is not None or token.pending is not None:
            return self._leave(error)
        self.outcome = "completed"
        if self.closing is not None:
            outer = token.outcome  # of a closing event in which this scope was opened
            token.outcome = "completed"
            try:
                self.closing()
            finally:
                token.outcome = outer
            if token.pending is not None:
                token.check()
        return False

    def _leave(self, error: BaseException | None) -> bool:
        """Close after a cancellation or a failure; return whether ``error`` ends here."""
        token = self.token
        unwinding = isinstance(error, Unwind)
        failing = error is not None and not unwinding
        passing = isinstance(error, Unwind) and error.token is not token
        # A failure outranks the request, but this scope is gone for it all the same.
        absorbed = token.absorb(self) and not failing and not passing
        if absorbed or unwinding:
            self.outcome = "cancelled"
        else:
            self.outcome = "failed" if failing else "completed"
        hooks = ["closing"]
        if absorbed:
            hooks.insert(0, "cancelled")
        if failing and token.exception is None:
            token.exception = error
            if self.name == "fit" or "fit" in token.open_scopes:
                hooks.insert(0, "failed")
        errors = self._run(hooks)
        if errors:
            raised = combine_errors([error, *errors] if error and failing else errors)
            if raised is not error:
                _raise_without_unwind(raised)
        if failing:
            return False
        if absorbed or error is None:
            token.check()
        return absorbed

    def _run(self, hooks: Sequence[str]) -> list[BaseException]:
        """Call every hook with the outcome readable, and return what they raised."""
        errors: list[BaseException] = []
        outer = self.token.outcome
        self.token.outcome = self.outcome
        for name in hooks:
            # Read only now: what the hook before did may have put another here.
            hook = getattr(self, name)
            if hook is not None:
                try:
                    hook()
                except BaseException as error:
                    errors.append(error)
        self.token.outcome = outer
        return errors


def _raise_without_unwind(error: BaseException) -> NoReturn:
    """Raise ``error`` with the context it came with, less the private unwinding."""
    link = error
    while link.__context__ is not None and not isinstance(link.__context__, Unwind):
        link = link.__context__
    link.__context__ = None
    context = error.__context__
    try:
        raise error
    finally:
        # The raise has just put the exception that is being handled here.
        error.__context__ = context


def _caller() -> str:
    """Name the function that called ``cancel``, and its thread unless that is the main one."""
    name = sys._getframe(2).f_code.co_qualname
    thread = threading.current_thread()
    return name if thread is threading.main_thread() else f"{name} in thread {thread.name!r}"
