"""The token: a request is asked for, granted and delivered here."""

from __future__ import annotations

import math
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

from ..errors import ScopeNotOpenError
from ..events import ScopeName, ScopeSpec
from .records import Cancellation, OpenScope, Origin, Outcome, Request, Unwind

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
        agree: Called with each request that is asked for, in the asking thread, where several
            processes have to agree on it; calls ``accept`` with it, then or later. ``None``: it
            is accepted at once.
        grant_by: Called with each request that is accepted, in that thread; calls
            ``grant`` with it, then or later, or ``hold_back``. ``None``: it is granted at once.
        is_interrupted: Whether a signal has asked for the end of the run.
        outcome: How the scope whose closing event is running ended; ``None``
            outside of closing events.
        exception: The exception that is escaping, or ``None``.
        insist: What raises once the innermost closing is over (a second Ctrl-C that came while a
            scope was closing), or ``None``.
        root: The outermost scope of the run that the token is given to, or ``None``.
        closing_error: In a closing event, what one of its handlers has raised last: the
            others run all the same. ``None`` outside of it, and without such.
    """

    __slots__ = (
        "__weakref__",
        "_children",
        "_finished",
        "_granted",
        "_held",
        "_lock",
        "_parents",
        "_timers",
        "absorbed",
        "accepted",
        "agree",
        "closing_error",
        "exception",
        "grant_by",
        "history",
        "innermost",
        "insist",
        "is_interrupted",
        "origin",
        "outcome",
        "pending",
        "root",
    )

    # What holds between any two calls, whatever the schedule (tests/test_properties.py,
    # tests/test_cancellation.py):
    # - pending is None exactly if _granted is None, and is _granted.cancellation otherwise.
    # - _granted.target is an open scope of this token, or None while the outermost scope is
    #   yet to open. A scope that closes takes a request that aims at it along (absorb).
    # - Of the requests granted and not absorbed, the one whose target is outermost is kept.
    # - absorbed is what the scope that closed last as "cancelled" took; a scope that only
    #   passed a request on leaves both as they are.
    # - innermost and the parents of it are the open scopes; only the loop's thread changes them.
    def __init__(self) -> None:
        self.pending: Cancellation | None = None
        self.absorbed: Cancellation | None = None
        self.history: list[Cancellation] = []
        self.accepted = 0
        self.outcome: Outcome | None = None
        self.exception: BaseException | None = None
        self.closing_error: BaseException | None = None
        self.origin: Callable[[], Origin] | None = None
        self.agree: Callable[[Request], object] | None = None
        self.grant_by: Callable[[Request], object] | None = None
        self.insist: Callable[[], object] | None = None
        self.is_interrupted = False
        self._held: list[Request] = []
        self._granted: Request | None = None
        self.innermost: OpenScope | None = None
        self.root: OpenScope | None = None
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

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a CancellationToken cannot be copied or pickled: it steers one run. Make another "
            "with CancellationToken(), or CancellationToken.linked(token) to follow this one."
        )

    @property
    def cancelled(self) -> bool:
        """Whether a request waits to be absorbed."""
        return self.pending is not None

    @property
    def open_scopes(self) -> tuple[str, ...]:
        """Names of the open scopes, outermost first."""
        names: list[str] = []
        scope = self.innermost
        while scope is not None:
            names.append(scope.name)
            scope = scope.parent
        return tuple(reversed(names))

    @property
    def scope(self) -> str | None:
        """Name of the innermost open scope. In ``after_X`` scope X has closed already."""
        top = self.innermost
        return None if top is None else top.name

    def cancel(
        self,
        scope: ScopeName | ScopeSpec = "fit",
        reason: str = "",
        *,
        by: str | None = None,
        everywhere: bool = False,
    ) -> None:
        """Ask the innermost open scope of that name, and all inside it, to end.

        Returns at once and raises nothing into the caller's flow; the next
        checkpoint leaves the scope. Of several requests the outermost wins.
        May be called from handlers, other threads, timers and signal handlers.
        Before its fit starts a token accepts ``"fit"``, and that fit then does
        nothing.

        Args:
            scope: Name of an open scope; one of your own is, for type checkers, what
                ``declare_scope`` has returned.
            reason: Why, in your own words; kept in ``history`` and the result.
            by: Who asks; worked out from the call stack by default.
            everywhere: Of several processes, all ask for this at the same place (what they
                decide on is equal on all of them), so there is nothing to agree on: it is
                granted at once. Where one alone asks so, it leaves the others waiting.

        Raises:
            ScopeNotOpenError: No scope of that name is open.
        """
        handler, event, epoch, batch = self.origin() if self.origin else (None,) * 4
        name = by or handler or _caller()
        asked = scope.name if isinstance(scope, ScopeSpec) else str(scope)
        record = Cancellation(asked, reason, name, event, epoch, batch, time.time())
        self._ask(record, is_by_handler=event is not None, everywhere=everywhere)
        if asked == "fit":
            self._lead(record)

    def interrupt(self, name: str) -> None:
        """Ask the outermost scope to end, in the name of a signal; nothing if that is closing.

        As ``cancel``, but nobody's: the handler that it interrupts has not asked for it.

        Args:
            name: The signal's, kept as the reason and as who asked.
        """
        self.is_interrupted = True
        _, event, epoch, batch = self.origin() if self.origin else (None,) * 4
        scope = (self.open_scopes or ("fit",))[0]
        record = Cancellation(scope, name, name, event, epoch, batch, time.time())
        with suppress(ScopeNotOpenError):
            self._ask(record)
            if scope == "fit":
                self._lead(record)

    def is_interrupted_soon(self, seconds: float = 1.0) -> bool:
        """Return whether a signal has asked for the end of the run, or does within ``seconds``.

        Where it goes to all processes of a group, another one may die of it before this one
        has received it.
        """
        end = time.monotonic() + seconds
        while not self.is_interrupted and time.monotonic() < end:
            time.sleep(0.01)  # signal handlers run meanwhile
        return self.is_interrupted

    def cancel_after(
        self,
        seconds: float,
        scope: ScopeName | ScopeSpec = "fit",
        reason: str | None = None,
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
        if self.innermost is None:
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
        self.root = None
        self._held.clear()
        self.is_interrupted = False

    # Asking

    def _ask(
        self, record: Cancellation, is_by_handler: bool = False, everywhere: bool = False
    ) -> None:
        """Have a request accepted: by this process, or by all of them at one place."""
        with self._lock:
            request = Request(record, self._find(record.scope), is_by_handler)
            take = self.accept if everywhere or self.agree is None else self.agree
            if take == self.accept and self.grant_by is None:
                # In here: an agreement that begins now finds it granted, or is given it.
                return self.accept(request)
        take(request)

    def accept(self, request: Request) -> None:
        """Put a request on record, and have it granted."""
        self.note(request.cancellation)
        (self.grant_by or self.grant)(request)

    def note(self, record: Cancellation) -> None:
        """Put on record what was asked for, without granting it."""
        with self._lock:
            self.history.append(record)
            self.accepted += 1
            if len(self.history) >= 2 * HISTORY:
                del self.history[:HISTORY]

    def agree_by(self, agree: Callable[[Request], object]) -> Request | None:
        """Have requests agreed on from now on, see ``agree``.

        Returns:
            The request that waited to be delivered, or ``None``: it has been taken back, off
            the record too, and can be agreed on like any other.
        """
        with self._lock:
            self.agree = agree
            request = self._granted
            if request is not None:
                self.pending = self._granted = None
                self.history.remove(request.cancellation)
                self.accepted -= 1
            return request

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

    def _find(self, name: str) -> OpenScope | None:
        """Return the innermost open scope called ``name``; ``None`` is a fit yet to begin."""
        scope = self.innermost
        while scope is not None:
            if scope.name == name:
                return scope
            scope = scope.parent
        # Outcomes are set while closing events run, and from then on: the fit is over, not to come.
        is_over = self.outcome is not None or (self.root is not None and self.root.outcome)
        if name == "fit" and self.innermost is None and not self._finished and not is_over:
            return None
        raise ScopeNotOpenError(name, self.open_scopes)

    # Granting

    def grant(self, request: Request) -> None:
        """Have the checkpoints deliver a request, unless an outer scope is cancelled already."""
        with self._lock:
            if self._granted is None or self._is_outside(request.target):
                self._granted = request
                self.pending = request.cancellation

    def hold_back(self, request: Request) -> None:
        """Keep a request until ``release``."""
        with self._lock:
            self._held.append(request)

    def release(self) -> bool:
        """Grant what has been held back and aims at an open scope; return whether any does."""
        with self._lock:
            held, self._held = self._held, []
            held = [request for request in held if self._is_open(request.target)]
            for request in held:
                self.grant(request)
        return bool(held)

    def _is_open(self, target: OpenScope | None) -> bool:
        scope = self.innermost
        while scope is not None and scope is not target:
            scope = scope.parent
        return scope is not None

    def _is_outside(self, target: OpenScope | None) -> bool:
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
            scope, granted = self.innermost, self._granted
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

    def absorb(self, scope: OpenScope) -> bool:
        """Take the pending request back if it aims at ``scope``, which is closing."""
        if self._granted is None or self._granted.target is not scope:
            return False
        self.absorbed = self.pending
        self.pending = self._granted = None
        return True


def _caller() -> str:
    """Name the function that called ``cancel``, and its thread unless that is the main one."""
    name = sys._getframe(2).f_code.co_qualname
    thread = threading.current_thread()
    return name if thread is threading.main_thread() else f"{name} in thread {thread.name!r}"
