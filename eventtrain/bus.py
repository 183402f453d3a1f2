"""The event bus: named, ordered ``blinker`` signals."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, overload

import blinker
from blinker._utilities import make_id
from blinker.base import ANY, ANY_ID

from .binding import Emitter, Scopes, origin_of
from .cancellation import CancellationToken
from .dispatch import compile_emission
from .errors import UnknownEventError, did_you_mean
from .events import EVENTS, PHASES, Event
from .explain import Explanation, Row, row_of
from .handlers import (
    Handler,
    OnError,
    Options,
    Receiver,
    Subscription,
    check_receiver,
    is_same,
    name_of,
    names,
)
from .ordering import in_order, require_names

F = TypeVar("F", bound=Receiver)


class Signal(blinker.NamedSignal):
    """A ``blinker.Signal`` whose receivers have an order, with a fast way to call them.

    All of blinker's interface keeps its meaning; ``send`` calls receivers in
    order of priority. Handlers subscribed through ``EventBus.on`` are receivers
    too. Two of blinker's traps are mended: leaving an inner ``muted()`` block
    keeps the outer one muted, and ``connected_to`` leaves a connection that
    stood before it as it was.

    Args:
        doc: Docstring of the signal.
        name: Name of the event; empty for a signal outside of a bus.
    """

    def __init__(self, doc: str | None = None, *, name: str = "") -> None:
        self.event = Event(name, "", "point", (), doc or "")
        self._handlers: dict[Any, Handler] = {}
        self._is_muted = False
        self._mute_depth = 0
        self._emitters: weakref.WeakSet[Emitter] = weakref.WeakSet()
        self._by_id: dict[int, tuple[weakref.ref[Any], Callable[..., None]]] = {}
        super().__init__(name, doc)

    # Order

    @property
    def handlers(self) -> list[Handler]:
        """Every handler on this signal, for whatever sender, in order of dispatch."""
        # blinker keeps a receiver of its own that has no sender left.
        standing = [
            self._handlers[key] for key in list(self.receivers) if self._by_receiver.get(key)
        ]
        return in_order(standing, self.name)

    def handlers_for(self, sender: object) -> list[Handler]:
        """Return the handlers that an emission by ``sender`` runs, in order."""
        if self.is_muted:
            return []
        keys = self._keys_for(sender)
        return [handler for handler in self.handlers if handler.key in keys]

    def _keys_for(self, sender: object) -> set[Any]:
        own = () if sender is ANY else self._by_sender.get(make_id(sender), ())
        return {*self._by_sender.get(ANY_ID, ()), *own}

    def changed(self) -> None:
        """Drop what was compiled: the next emission sees the new state."""
        self.__dict__.pop("emit", None)
        self._by_id.clear()
        for emitter in list(self._emitters):
            emitter._refresh(self, self.event)

    # Emission

    def emit(self, sender: Any, token: CancellationToken | None = None) -> None:
        """Call every handler for ``sender``, in order, with the sender as only argument.

        Args:
            sender: The run, or whatever the handlers should be given.
            token: When given, handlers that come after its cancellation are skipped.

        Raises:
            TypeError: A handler returned ``True`` or ``False``.
        """
        # The first emission after a change compiles; the result then stands in
        # the instance, in front of this method.
        if any(key != ANY_ID and bucket for key, bucket in list(self._by_sender.items())):
            self.__dict__["emit"] = self._emit_by_sender
        else:
            self.__dict__["emit"] = compile_emission("send", self.handlers_for(ANY))
        self.emit(sender, token)

    def _emit_by_sender(self, sender: Any, token: CancellationToken | None = None) -> None:
        key = id(sender)
        known = self._by_id.get(key)
        if known is None:
            emission = compile_emission("send", self.handlers_for(sender))
            try:
                reference = weakref.ref(sender, lambda _: self._by_id.pop(key, None))
            except TypeError:
                pass  # a string or a number: told apart by value, so its id means nothing
            else:
                self._by_id[key] = (reference, emission)
        else:
            emission = known[1]
        emission(sender, token)

    # Subscription

    def attach(self, handler: Handler, sender: Any = ANY) -> None:
        """Put a handler on this signal for ``sender``, or for any; see ``EventBus.attach``."""
        handler.key = make_id(handler)
        handler.detach = lambda: self._disconnect(make_id(handler), ANY_ID)
        self._handlers[handler.key] = handler
        super().connect(handler, sender, weak=False)
        self.changed()

    def connect(self, receiver: F, sender: Any = ANY, weak: bool = True) -> F:
        """Connect as ``blinker`` does: weakly by default, at priority 0."""
        key = make_id(receiver)
        handler = Handler(self.name, receiver, Options(weak=weak))
        others = [known for known in self.handlers if known.key != key]
        in_order([*others, handler], self.name)  # its name may close a cycle of constraints
        handler.key = key
        self._handlers[key] = handler
        try:
            return super().connect(receiver, sender, weak)
        finally:
            self.changed()

    @contextmanager
    def connected_to(self, receiver: Receiver, sender: Any = ANY) -> Generator[None, None, None]:
        """Connect ``receiver`` while the block runs; what was connected before stays so."""
        key = make_id(receiver)
        sender_id = ANY_ID if sender is ANY else make_id(sender)
        stood = self.receivers.get(key)
        handler = self._handlers.get(key)
        had_sender = sender_id in self._by_receiver.get(key, ())
        self.connect(receiver, sender=sender, weak=False)
        try:
            yield
        finally:
            if stood is None or handler is None:
                super().disconnect(receiver)
            elif key in self.receivers:
                self.receivers[key], self._handlers[key] = stood, handler
                if not had_sender:
                    self._by_sender[sender_id].discard(key)
                    self._by_receiver[key].discard(sender_id)
                self.changed()

    def disconnect(self, receiver: Receiver, sender: Any = ANY) -> None:
        """Disconnect a receiver, however it was connected, from one sender or from all."""
        sender_id = ANY_ID if sender is ANY else make_id(sender)
        for handler in list(self._handlers.values()):
            if is_same(handler.receiver, receiver):
                self._disconnect(handler.key, sender_id)
                self._drop_if_orphaned(handler.key)
        super().disconnect(receiver, sender)

    def _disconnect(self, receiver_id: Any, sender_id: Any) -> None:
        super()._disconnect(receiver_id, sender_id)
        if receiver_id not in self.receivers:
            handler = self._handlers.pop(receiver_id, None)
            if handler is not None:
                handler.leave()
        self.changed()

    def _drop_if_orphaned(self, key: Any) -> None:
        """Forget a handler from ``attach`` once no sender is left that it could serve."""
        if isinstance(self.receivers.get(key), Handler) and not self._by_receiver[key]:
            self._disconnect(key, ANY_ID)

    def _make_cleanup_sender(self, sender_id: Any) -> Callable[[weakref.ref[Any]], None]:
        cleanup = super()._make_cleanup_sender(sender_id)

        def forget(reference: weakref.ref[Any]) -> None:
            keys = list(self._by_sender.get(sender_id, ()))
            cleanup(reference)
            for key in keys:
                self._drop_if_orphaned(key)
            self.changed()

        return forget

    # The rest of blinker's interface

    @property
    def is_muted(self) -> bool:
        """Whether emissions call nobody."""
        return self._is_muted or self._mute_depth > 0

    @is_muted.setter
    def is_muted(self, value: bool) -> None:
        self._is_muted = value
        self.changed()

    @contextmanager
    def muted(self) -> Generator[None, None, None]:
        """Call nobody while the block runs; blocks may nest."""
        self._mute_depth += 1
        self.changed()
        try:
            yield
        finally:
            self._mute_depth -= 1
            self.changed()

    def receivers_for(self, sender: Any) -> Generator[Receiver, None, None]:
        """Yield the receivers to be called for ``sender``, in order."""
        keys = self._keys_for(sender)
        for handler in self.handlers:
            if handler.key in keys and handler.key in self.receivers:
                connected = self.receivers[handler.key]
                receiver = handler if connected is handler else handler.receiver
                if receiver is not None:
                    yield receiver

    def send(self, sender: Any = None, /, **arguments: Any) -> list[tuple[Receiver, Any]]:
        """Call the receivers in order and return ``(receiver, value)`` pairs, as blinker does."""
        return _with_functions(super().send(sender, **arguments))

    async def send_async(
        self, sender: Any = None, /, **arguments: Any
    ) -> list[tuple[Receiver, Any]]:
        """Await the receivers in order and return ``(receiver, value)`` pairs, as blinker does."""
        return _with_functions(await super().send_async(sender, **arguments))

    def senders_of(self, handler: Handler) -> str:
        """Say whom a handler serves, for people; empty when it serves any sender."""
        ids = self._by_receiver.get(handler.key, set())
        if ANY_ID in ids:
            return ""
        alive = [reference() for key, reference in self._weak_senders.items() if key in ids]
        return ", ".join(type(s).__name__ for s in alive if s is not None) or "by value"

    def _clear_state(self) -> None:
        super()._clear_state()
        for handler in self._handlers.values():
            handler.leave()
        self._handlers.clear()
        self.changed()


class EventBus(blinker.Namespace):
    """The declared events, each an ordered ``Signal``, in the order of the table.

    A ``blinker.Namespace`` of its own: ``bus["after_loss"]`` is the signal,
    iteration gives the names in table order.

    Args:
        events: The vocabulary; rows of ``EVENTS`` by default.
    """

    def __init__(self, events: Iterable[Event] = EVENTS) -> None:
        super().__init__()
        self._emitters: weakref.WeakSet[Emitter] = weakref.WeakSet()
        for event in events:
            self._add(event)

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __repr__(self) -> str:
        count = sum(len(signal.receivers) for signal in self.values())
        return f"<EventBus: {len(self)} events, {count} handlers>"

    def __missing__(self, name: object) -> Signal:
        raise UnknownEventError(
            f"the bus declares no event {name!r}.{did_you_mean(str(name), self)} "
            "An event of your own is added with bus.declare(name)."
        )

    def signal(self, name: str, doc: str | None = None) -> Signal:
        """Return the signal of a declared event.

        Raises:
            UnknownEventError: The bus declares no such event.
        """
        signal = self[name]
        assert isinstance(signal, Signal)
        return signal

    def declare(self, name: str, doc: str = "") -> Signal:
        """Add an event of your own, which anyone may then emit and subscribe to.

        Args:
            name: An identifier that no event has yet and that does not start with ``_``.
            doc: What it means, in a line.

        Returns:
            Its signal.

        Raises:
            ValueError: The name is taken or is no identifier.
        """
        if not (isinstance(name, str) and name.isidentifier() and not name.startswith("_")):
            raise ValueError(f"an event name must be an identifier without leading _, got {name!r}")
        if name in self:
            raise ValueError(f"the bus declares event {name!r} already")
        return self._add(Event(name, "", "point", (), doc))

    def _add(self, event: Event) -> Signal:
        signal = Signal(event.meaning, name=event.name)
        signal.event = event
        signal._emitters = self._emitters
        self[event.name] = signal
        signal.changed()
        return signal

    def emit(self, name: str, sender: Any, token: CancellationToken | None = None) -> None:
        """Emit the event called ``name``; see ``Signal.emit``.

        Raises:
            UnknownEventError: The bus declares no such event.
        """
        self.signal(name).emit(sender, token)

    def bind(self, sender: Any, token: CancellationToken) -> tuple[Emitter, Scopes]:
        """Bind this bus and ``token`` to a sender: what a loop is written with.

        Args:
            sender: Passed to every handler. Where it has attributes ``epoch`` and
                ``batch_index``, messages and cancellations name them.
            token: The token that the scopes obey.

        Returns:
            ``(emit, scope)``: ``emit.after_loss()`` fires an event and is a
            checkpoint; ``with scope.batch:`` opens a scope.
        """
        scopes = Scopes(token)
        emitter = Emitter(sender, token, scopes)
        token.origin = origin_of(sender)
        for name in self:
            signal = self.signal(name)
            emitter._refresh(signal, signal.event)
        self._emitters.add(emitter)
        return emitter, scopes

    @overload
    def on(self, event: str | Iterable[str], fn: Receiver, **options: Any) -> Subscription: ...

    @overload
    def on(
        self, event: str | Iterable[str], fn: None = None, **options: Any
    ) -> Callable[[F], F]: ...

    def on(  # type: ignore[misc]  # the overloads leave the options to this signature
        self,
        event: str | Iterable[str],
        fn: Receiver | None = None,
        *,
        priority: float = 0,
        before: str | Iterable[str] = (),
        after: str | Iterable[str] = (),
        name: str | None = None,
        every: int = 1,
        once: bool = False,
        when: Callable[[Any], object] | None = None,
        during: str | None = None,
        sender: Any = ANY,
        weak: bool = False,
        on_error: OnError = "raise",
    ) -> Any:
        """Subscribe a handler to an event or to several. A call or a decorator.

        Args:
            event: Name of a declared event, or several names.
            fn: ``fn(run)``. Left out, ``on`` returns a decorator.
            priority: Higher runs earlier; ties run in order of subscription.
            before: Names of handlers of that event to run before, above priority.
            after: Names of handlers of that event to run after, above priority.
            name: What others call this handler; the function's name by default.
            every: Run on every N-th call that the other filters let through.
            once: Run on the first call that the other filters let through, then leave.
            when: Run when ``when(run)`` is true.
            during: Run in this phase: ``"train"``, ``"validate"`` or ``"predict"``.
            sender: Run for this sender only.
            weak: Hold the function weakly, so that it leaves when nobody else holds it.
            on_error: ``"raise"``; ``"disable"`` logs the traceback, disconnects the
                handler and goes on; ``"warn"`` warns each time and goes on.

        Returns:
            A ``Subscription``; as a decorator, the function unchanged.

        Raises:
            UnknownEventError: The bus does not declare the event.
            TypeError: ``fn`` cannot be called with one argument, or an option has
                the wrong type.
            ValueError: An option is out of range.
            OrderError: A constraint names nobody, or constraints form a cycle.
        """
        events = (event,) if isinstance(event, str) else tuple(event)

        def subscribe(function: Receiver) -> Subscription:
            for each in events:
                check_receiver(function, each)
            try:
                options = Options(
                    priority=priority, before=names(before), after=names(after), name=name,
                    every=every, once=once, when=when, during=during, weak=weak, on_error=on_error,
                )  # fmt: skip
            except (TypeError, ValueError) as error:
                who = name or name_of(function)
                where = ", ".join(map(repr, events))
                raise type(error)(f"handler {who!r} for event {where}: {error}") from None
            subscription = Subscription([Handler(each, function, options) for each in events])
            self.attach(subscription.handlers, sender)
            return subscription

        if fn is not None:
            return subscribe(fn)
        for each in events:
            self.signal(each)

        def decorate(function: F) -> F:
            subscribe(function)
            return function

        return decorate

    def attach(self, handlers: Sequence[Handler], sender: Any = ANY) -> None:
        """Subscribe prepared handlers together: all of them, or none when one is in error.

        Raises:
            UnknownEventError, ValueError, OrderError: See ``on``.
        """
        by_event: dict[str, list[Handler]] = {}
        for handler in handlers:
            by_event.setdefault(handler.event, []).append(handler)
        for name, new in by_event.items():
            try:
                signal = self.signal(name)
            except UnknownEventError as error:
                raise UnknownEventError(f"handler {new[0].name!r}: {error}") from None
            for handler in new:
                _check_phase(signal.event, handler)
            together = [*signal.handlers, *new]
            require_names(new, together, name)
            in_order(together, name)
        try:
            for handler in handlers:
                self.signal(handler.event).attach(handler, sender)
        except BaseException:  # from whoever listens to receiver_connected
            for handler in handlers:
                handler.detach()
            raise

    def explain(self, event: str | None = None) -> Explanation:
        """Return the handlers of one event, or of all, in the order in which they run.

        Raises:
            UnknownEventError: The bus does not declare the event.
        """
        rows: list[Row] = []
        for name in self if event is None else (event,):
            signal = self.signal(name)
            for position, handler in enumerate(signal.handlers, 1):
                rows.append(row_of(handler, position, signal.senders_of(handler)))
        return Explanation(rows)


def _with_functions(results: list[tuple[Receiver, Any]]) -> list[tuple[Receiver, Any]]:
    """Put the user's functions in the place of their handlers."""
    pairs = []
    for receiver, value in results:
        function = receiver.receiver if isinstance(receiver, Handler) else receiver
        pairs.append((receiver if function is None else function, value))
    return pairs


def _check_phase(event: Event, handler: Handler) -> None:
    if handler.options.during is not None and event.scope in ("fit", "epoch"):
        raise ValueError(
            f"{handler.describe()} has during={handler.options.during!r}, but that event fires "
            f"outside of the phases {', '.join(PHASES)}"
        )
