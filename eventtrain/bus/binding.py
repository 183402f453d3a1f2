"""The bus and a token, bound to one sender: what a loop is written with.

``emit.after_loss()`` fires an event and is a checkpoint; ``with scope.batch:``
opens a scope whose closing event fires when the block is left. Both are made
once for a fit, so that a batch looks nothing up.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from ..cancellation import CancellationToken, Origin, Scope
from ..events import Event
from .dispatch import Style
from .running import running_handler

MakeScope = Callable[[CancellationToken, str, object], Scope]

_OF_ONE_RUN = (
    "the {} of a run cannot be copied or pickled: made for that run's bus and token. "
    "Make others with bus.bind(sender, token)."
)


class Source(Protocol):
    """The signal that a binding fires."""

    name: str
    event: Event
    lock: Any
    receivers: Any

    def emission(
        self, style: Style, sender: object, token: CancellationToken
    ) -> Callable[[], None] | None:
        """Return the function that calls the handlers for ``sender``; ``None`` without any."""
        ...


class Scopes:
    """The scopes of one run: an attribute each, which is a context manager; iterable."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Scope: ...

    def __iter__(self) -> Iterator[Scope]:
        return iter(vars(self).values())

    def __reduce__(self) -> NoReturn:
        raise TypeError(_OF_ONE_RUN.format("scopes"))


class Emitter:
    """Fires events for one sender: one attribute an event, called without arguments.

    An event of kind opening or point is a checkpoint: after it, and after each
    of its handlers, a cancellation that was granted takes effect. Closing
    events are fired by the scopes. Read the attribute where you emit: it is another
    function after every change of subscriptions.
    """

    def __init__(self, binding: Binding) -> None:
        self._binding = binding  # the bus knows it weakly; it lives as long as this does

    def __reduce__(self) -> NoReturn:
        raise TypeError(_OF_ONE_RUN.format("emitter"))

    if TYPE_CHECKING:
        # For the type checker alone: a class with a __getattr__ is slow to read from.
        def __getattr__(self, name: str) -> Callable[[], None]: ...


class Binding:
    """Keeps emitter and scopes of one sender up to date with the subscriptions.

    Args:
        sender: What the handlers are given.
        token: What the scopes obey.
        scopes: Names of the scopes.
        make_scope: Makes one from token, name and sender.

    Attributes:
        emit, scopes: What the loop is written with.
    """

    def __init__(
        self,
        sender: Any,
        token: CancellationToken,
        scopes: Iterable[str],
        make_scope: MakeScope = Scope,
    ) -> None:
        self._sender = sender
        self._token = token
        self._make_scope = make_scope
        self.emit = Emitter(self)
        self.scopes = Scopes()
        for name in scopes:
            self.add_scope(name)
        token.origin = origin_of(sender)

    def add_scope(self, name: str) -> Scope:
        """Add a scope, which nothing closes with an event yet."""
        scope = self._make_scope(self._token, name, self._sender)
        setattr(self.scopes, name, scope)
        return scope

    @property
    def names(self) -> frozenset[str]:
        """The events and scopes that it has."""
        return frozenset((*vars(self.emit), *vars(self.scopes)))

    def keep(self, names: Container[str]) -> None:
        """Forget the events and scopes that are not among ``names``: they were declared in vain."""
        for bound in (vars(self.emit), vars(self.scopes)):
            for name in list(bound):
                if name not in names and not name.startswith("_"):
                    del bound[name]

    def refresh(self, signal: Source) -> None:
        """Take up a changed list of handlers, from the next emission on.

        Called with the signal's lock held, so that of two changes the later one counts.
        """
        if not signal.receivers:
            self._install(signal.event, None)
        elif signal.event.kind == "closing":
            # Now: an interrupt that came while it was compiled would come between an
            # event that has fired and the one that closes it.
            self._install(signal.event, signal.emission("closing", self._sender, self._token))
        else:
            self._install(signal.event, self._first_emission_of(signal))

    def _first_emission_of(self, signal: Source) -> Callable[[], None]:
        def first_emission() -> None:
            with signal.lock:
                emission = signal.emission("checkpoint", self._sender, self._token)
                self._install(signal.event, emission)
            if emission is None:
                self._token.check()
            else:
                emission()

        return first_emission

    def _install(self, event: Event, emission: Callable[[], None] | None) -> None:
        if event.kind == "closing" and event.scope in vars(self.scopes):
            scope: Scope = getattr(self.scopes, event.scope)
            if event.only_after == "failed":
                scope.on_failed = emission
            elif event.only_after == "cancelled":
                scope.on_cancelled = emission
            elif event.closes_scope:
                scope.on_closed = emission
        # Without handlers an event is still a checkpoint.
        setattr(self.emit, event.name, emission or self._token.check)


def origin_of(sender: Any) -> Callable[[], Origin]:
    """Return the function that tells a token who is cancelling, and where the run stands."""

    def origin() -> Origin:
        handler = running_handler()
        epoch, batch = getattr(sender, "epoch", None), getattr(sender, "batch_index", None)
        if handler is None:
            return None, None, epoch, batch
        return handler.name, handler.event, epoch, batch

    return origin
