"""Cancellation: a token that asks a scope of the loop to end, and the scopes that obey.

``token.cancel("epoch", "plateau")`` takes three steps. The request is **asked** for: it goes
on record, with the scope that it aims at. It is **granted**, at once where there is one process:
it is then ``token.pending``, the one attribute that loop, scopes and generated code look at. A
checkpoint (every emission is one) **delivers** it by unwinding to that scope, which absorbs
it; the scopes on the way close as they would have closed anyway.

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
from dataclasses import dataclass, replace
from types import FrameType, TracebackType
from typing import Literal, NoReturn

from .errors import ScopeNotOpenError, combine_errors, set_context

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


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, before it is granted.

    Attributes:
        cancellation: Its record.
        target: The open scope that it aims at; ``None`` for a fit that has not begun.
    """

    cancellation: Cancellation
    target: Scope | None


HISTORY = 10_000
"""How many requests a token remembers at least."""


class CancellationToken:
    """Steers one fit from handlers, other threads, timers and signals.

    Attributes:
        pending: The request that has been granted and that no scope has absorbed yet, or
            ``None``. Reading it is cheap; it never touches the device.
        absorbed: The request that a scope absorbed last, or ``None``.
        history: The requests accepted so far, oldest first: at least the last 10,000,
            as a run that accumulates gradients makes one in almost every batch.
        accepted: How many requests have been accepted in all.
        grant_by: Called with each request that is asked for, in the asking thread; calls
            ``grant`` with it, then or later. ``None``: it is granted at once.
        outcome: How the scope whose closing event is running ended; ``None``
            outside of closing events.
        exception: The exception that is escaping, or ``None``.
        insist: What raises once the innermost closing is over (a second Ctrl-C that came while a
            scope was closing), or ``None``.
        closing_error: In a closing event, what one of its handlers has raised last: the
            others run all the same. ``None`` outside of it, and without such.
    """

    __slots__ = (
        "__weakref__",
        "_children",
        "_finished",
        "_granted",
        "_lock",
        "_parents",
        "_timers",
        "_top",
        "absorbed",
        "accepted",
        "closing_error",
        "exception",
        "grant_by",
        "history",
        "insist",
        "origin",
        "outcome",
        "pending",
    )

    # What holds between any two calls, whatever the schedule (tests/test_properties.py,
    # tests/test_cancellation.py):
    # - pending is None exactly if _granted is None, and is _granted.cancellation otherwise.
    # - _granted.target is an open scope of this token, or None while the outermost scope is
    #   yet to open. A scope that closes takes a request that aims at it along (absorb).
    # - Of the requests granted and not absorbed, the one whose target is outermost is kept.
    # - absorbed is what the scope that closed last as "cancelled" took; a scope that only
    #   passed a request on leaves both as they are.
    # - _top and the parents of it are the open scopes; only the loop's thread changes them.
    def __init__(self) -> None:
        self.pending: Cancellation | None = None
        self.absorbed: Cancellation | None = None
        self.history: list[Cancellation] = []
        self.accepted = 0
        self.outcome: Outcome | None = None
        self.exception: BaseException | None = None
        self.closing_error: BaseException | None = None
        self.origin: Callable[[], Origin] | None = None
        self.grant_by: Callable[[Request], object] | None = None
        self.insist: Callable[[], object] | None = None
        self._granted: Request | None = None
        self._top: Scope | None = None
        self._finished = False
        # Re-entrant: a signal handler may cancel while cancel() is running.
        self._lock = threading.RLock()
        self._children: weakref.WeakSet[CancellationToken] = weakref.WeakSet()
        # Held, and the children are not: whoever waits for a token's request holds that token.
        self._parents: tuple[CancellationToken, ...] = ()
        self._timers: list[threading.Timer] = []

    @classmethod
    def linked(cls, *parents: CancellationToken) -> CancellationToken:
        """Return a token whose run is cancelled when any parent's fit is; linked to any depth.

        Cancelling the child leaves its parents alone. A parent that already
        holds a pending request cancels the child at once.
        """
        child = cls()
        child._parents = parents
        for parent in parents:
            with parent._lock:
                parent._children.add(child)
                asked = parent.pending
            if asked is not None and asked.scope == "fit":
                child._follow(asked)
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
        self._ask(record)
        if scope == "fit":
            self._lead(record)

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

    def lend(self) -> Callable[[], None]:
        """Give the token to a run; return what takes away again what was that run's alone.

        A run inside of another run's scopes is a guest: requests stay, which are the host's
        too, and what the token knows of the host is put back.
        """
        if self._top is None:
            return self.forget
        origin, outcome = self.origin, self.outcome
        exception, closing_error = self.exception, self.closing_error

        def put_back() -> None:
            self.origin, self.outcome = origin, outcome
            self.exception, self.closing_error = exception, closing_error

        return put_back

    def forget(self) -> None:
        """Drop what belongs to the run that has ended; ``history`` stays."""
        self.pending = self.absorbed = self._granted = None
        self.exception = self.closing_error = self.outcome = self.origin = self.insist = None

    # Asking

    def _ask(self, record: Cancellation) -> None:
        """Put a request on record, and have it granted."""
        with self._lock:
            request = Request(record, self._find(record.scope))
            self.history.append(record)
            self.accepted += 1
            if len(self.history) >= 2 * HISTORY:
                del self.history[:HISTORY]
        (self.grant_by or self.grant)(request)

    def _lead(self, record: Cancellation) -> None:
        """Have the tokens that are linked to this one follow."""
        with self._lock:
            children = list(self._children)
        for child in children:
            child._follow(record)

    def _follow(self, record: Cancellation) -> None:
        """Take a parent's request over, unless this token's run has ended already."""
        with self._lock:
            is_known = any(own is record for own in self.history[-8:])
        if is_known:  # come by way of another parent
            return
        top = self.open_scopes[:1]
        own = record if top in ((), ("fit",)) else replace(record, scope=top[0])
        with suppress(ScopeNotOpenError):
            self._ask(own)
        self._lead(record)

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

    # Granting

    def grant(self, request: Request) -> None:
        """Have the checkpoints deliver a request, unless an outer scope is cancelled already."""
        with self._lock:
            if self._granted is None or self._is_outside(request.target):
                self._granted = request
                self.pending = request.cancellation

    def _is_outside(self, target: Scope | None) -> bool:
        """Whether ``target`` encloses the scope that the pending request aims at."""
        granted = None if self._granted is None else self._granted.target
        scope = None if granted is None else granted.parent
        while scope is not None:
            if scope is target:
                return True
            scope = scope.parent
        return False

    # Delivering

    def _deliver(self) -> None:
        self.obey()
        with self._lock:
            scope, granted = self._top, self._granted
            if scope is None or granted is None:
                return
            while scope.parent is not None and scope is not granted.target:
                scope = scope.parent
            if granted.target is None:  # asked for before the outermost scope was opened
                self._granted = granted = Request(granted.cancellation, scope)
            if scope is not granted.target:
                # Another thread asked just as that scope was closing: nothing is left to end.
                self.pending = self._granted = None
                return
        raise Unwind(self)

    def obey(self) -> None:
        """Raise what waited for a closing to be over."""
        insist, self.insist = self.insist, None
        if insist is not None:
            insist()

    def absorb(self, scope: Scope) -> bool:
        """Take the pending request back if it aims at ``scope``, which is closing."""
        if self._granted is None or self._granted.target is not scope:
            return False
        self.absorbed = self.pending
        self.pending = self._granted = None
        return True


class Scope:
    """A stretch of the loop that can be cancelled; a context manager, usable again and again.

    It absorbs the cancellations that aim at it and passes outer ones on. When
    it is left, however that happens, its closing event fires exactly once.

    Attributes:
        name: The name that ``token.cancel`` takes.
        outcome: How it ended last: ``"completed"``, ``"cancelled"``, ``"failed"``;
            ``None`` before and while it is open.
        on_closed: Called when the scope has ended (``after_X``), or ``None``.
        on_cancelled: Called before ``on_closed`` when the scope absorbed a
            cancellation (``after_cancel_X``), or ``None``.
        on_failed: Called, once, when an exception leaves this scope or the first one inside of
            it, before that one's ``on_closed`` (``fit_failed``); or ``None``.
        owner: Whose scope it is: a run inside of another run's scopes does not tell that one of
            an exception, which may still be caught between the two.
    """

    __slots__ = (
        "_has_told_failure",
        "is_open",
        "name",
        "on_cancelled",
        "on_closed",
        "on_failed",
        "outcome",
        "owner",
        "parent",
        "token",
    )

    def __init__(self, token: CancellationToken, name: str, owner: object = None) -> None:
        self.token = token
        self.name = name
        self.owner = owner
        self.parent: Scope | None = None
        self.is_open = False
        self.outcome: Outcome | None = None
        self.on_closed: Callable[[], object] | None = None
        self.on_cancelled: Callable[[], object] | None = None
        self.on_failed: Callable[[], object] | None = None
        self._has_told_failure = False

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
        if self.on_closed is not None:
            outer = token.outcome  # of a closing event in which this scope was opened
            token.outcome = "completed"
            try:
                self.on_closed()
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
        calls = [_called(self, "on_cancelled")] if absorbed else []
        if failing:
            if token.exception is None:
                token.exception = error
            teller = self._teller_of_failure()
            if teller is not None:
                calls.append(_called(teller, "on_failed"))
        errors = self._run([*calls, _called(self, "on_closed"), token.obey])
        self._has_told_failure = False
        if errors:
            raised = combine_errors([error, *errors] if error and failing else errors)
            if raised is not error:
                _raise_without_unwind(raised)
        if failing:
            return False
        if absorbed or error is None:
            token.check()
        return absorbed

    def _teller_of_failure(self) -> Scope | None:
        """Return the scope, this one or around it, that tells of a failure; once for them all."""
        teller: Scope | None = None
        scope: Scope | None = self
        while scope is not None and scope.owner is self.owner:
            if scope._has_told_failure:
                return None
            if teller is None and scope.on_failed is not None:
                teller = scope
            scope = scope.parent
        scope = self
        while teller is not None and scope is not None and scope.owner is self.owner:
            scope._has_told_failure = True
            scope = scope.parent
        return teller

    def _run(self, calls: Sequence[Callable[[], object]]) -> list[BaseException]:
        """Call each with the outcome readable, and return what they raised."""
        errors: list[BaseException] = []
        outer = self.token.outcome
        self.token.outcome = self.outcome
        for call in calls:
            try:
                call()
            except BaseException as error:
                errors.append(error)
        self.token.outcome = outer
        return errors


CLOSING_CODE = {Scope.__enter__.__code__, Scope.__exit__.__code__}
"""Where an exception from outside would come between a scope that has begun and the event that
closes it; a subclass of ``Scope`` adds its own."""


def is_closing(frame: FrameType | None) -> bool:
    """Whether the code that runs in ``frame``, or whoever called it, opens or closes a scope."""
    while frame is not None:
        if frame.f_code in CLOSING_CODE:
            return True
        frame = frame.f_back
    return False


def _called(scope: Scope, name: str) -> Callable[[], object]:
    """Return what calls a scope's function; read then, as one before it may have changed it."""

    def call() -> object:
        function: Callable[[], object] | None = getattr(scope, name)
        return None if function is None else function()

    return call


def _raise_without_unwind(error: BaseException) -> NoReturn:
    """Raise ``error`` with the context it came with, less the private unwinding."""
    link = error
    while link.__context__ is not None and not isinstance(link.__context__, Unwind):
        link = link.__context__
    set_context(link, None)
    context = error.__context__
    try:
        raise error
    finally:
        # The raise has just put the exception that is being handled here.
        set_context(error, context)


def _caller() -> str:
    """Name the function that called ``cancel``, and its thread unless that is the main one."""
    name = sys._getframe(2).f_code.co_qualname
    thread = threading.current_thread()
    return name if thread is threading.main_thread() else f"{name} in thread {thread.name!r}"
