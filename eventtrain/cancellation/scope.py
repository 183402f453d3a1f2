"""Scopes of the loop: context managers that absorb what aims at them, and close with an event."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from types import CodeType, FrameType, TracebackType
from typing import NoReturn

from ..errors import combine_errors, set_context
from .records import Outcome, Unwind
from .token import CancellationToken


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

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Scope cannot be copied or pickled: it belongs to one run. Take it from that run, "
            "or make another with Scope(token, name)."
        )

    def __enter__(self) -> Scope:
        token = self.token
        if self.is_open:
            raise RuntimeError(f"scope {self.name!r} is open already; leave it before entering it")
        self.outcome = None
        if token.pending is not None:
            token.check()
        self.is_open = True
        self.parent = token.innermost  # type: ignore[assignment]  # scopes alone are put there
        token.innermost = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        token = self.token
        token.innermost = self.parent
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
            raised = combine_errors([error, *errors] if error is not None and failing else errors)
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


def runs_in(frame: FrameType | None, codes: Container[CodeType]) -> bool:
    """Whether one of ``codes`` runs in ``frame``, or has called what does."""
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False


def is_closing(frame: FrameType | None) -> bool:
    """Whether the code that runs in ``frame``, or whoever called it, opens or closes a scope."""
    return runs_in(frame, CLOSING_CODE)


def _called(scope: Scope, name: str) -> Callable[[], object]:
    """Return what calls a scope's function; read then, as one before it may have changed it."""

    def call() -> object:
        function: Callable[[], object] | None = getattr(scope, name)
        return None if function is None else function()

    return call


def hide_unwind(error: BaseException) -> None:
    """Take the private unwinding, during which an exception was raised, out of its context."""
    link = error
    while link.__context__ is not None and not isinstance(link.__context__, Unwind):
        link = link.__context__
    set_context(link, None)


def _raise_without_unwind(error: BaseException) -> NoReturn:
    """Raise ``error`` with the context it came with, less the private unwinding."""
    hide_unwind(error)
    context = error.__context__
    try:
        raise error
    finally:
        # The raise has just put the exception that is being handled here.
        set_context(error, context)
