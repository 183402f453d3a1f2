"""The event bus: the declared events, and subscribing to them."""

from __future__ import annotations

import copy
import threading
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from ..around import around
from ..cancellation import CancellationToken, Scope
from ..errors import UnknownEventError, did_you_mean
from ..events import EVENTS, SCOPE_SPECS, Event, EventName, PhaseName, ScopeSpec, Vocabulary
from ..foreign_names import named_here
from .binding import Binding, Emitter, MakeScope, Scopes
from .copying import Copied, copied_from, deeply, fill, require_picklable
from .filters import Tally
from .handlers import Handler, HandlerOptions, OnError, Options, Ranks, names
from .locking import SubscriptionLock
from .ordering import require_names, require_no_cycle
from .phases import check_phase, keep_phase
from .receivers import Receiver, check_receiver, is_same, name_of
from .restoring import Declarations, Snapshot
from .running import Home, level_of_caller, running_provider
from .signals import ANY, Namespace, Signal
from .subscription import Subscription

if TYPE_CHECKING:
    from .explain import Explanation, Row
    from .profiling import Profile

__all__ = ["EventBus", "Signal"]

F = TypeVar("F", bound=Receiver)
Events = EventName | Signal | Iterable[EventName | Signal]
"""What a handler subscribes to: events of the loop by name, others by the signal of their own."""
_LEFT_OUT: Any = object()


class EventBus(Namespace):
    """The declared events, each an ordered ``Signal``, in the order of the table.

    A ``blinker.Namespace`` of its own: ``bus["after_loss"]`` is the signal,
    iteration gives the names in table order.

    Args:
        events: The events; rows of ``EVENTS`` by default.
        scopes: The scopes; rows of ``SCOPE_SPECS`` by default.

    Attributes:
        vocabulary: The scopes, and what lies inside what.
        home: What tells its signals and handlers from those of another bus.
    """

    def __init__(
        self, events: Iterable[Event] = EVENTS, scopes: Iterable[ScopeSpec] = SCOPE_SPECS
    ) -> None:
        super().__init__()
        self.vocabulary = Vocabulary(scopes)
        self._lock = SubscriptionLock()  # one for all signals: a change may concern several
        self.home = Home()
        self._bindings: weakref.WeakSet[Binding] = weakref.WeakSet()
        self._profile: Profile | None = None
        self._profile_thread: int | None = None
        for event in events:
            self._add(event)

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __copy__(self) -> EventBus:
        """Return a bus with the same events, scopes and handlers, which counts for itself."""
        return self._filled({}, lambda copied, memo: copied, lambda own, memo: own)

    def __deepcopy__(self, memo: dict[int, Any]) -> EventBus:
        """Return a copy; objects that are held strongly for their methods are copied too."""
        return self._filled(memo, deeply, copy.deepcopy)

    def _filled(
        self,
        memo: dict[int, Any],
        change: Callable[[list[Copied], dict[int, Any]], list[Copied]],
        change_own: Callable[[dict[str, Any], dict[int, Any]], dict[str, Any]],
    ) -> EventBus:
        with self._lock:
            bus = _without_events(type(self), list(self.vocabulary.scopes.values()))
            memo[id(self)] = bus
            vars(bus).update(change_own(self._own_attributes(), memo))
            for name in self:
                signal = self.signal(name)
                new = bus._add(signal.event)
                fill(new, change(copied_from(signal, memo), memo), signal)
                new.is_muted = signal.muted_by_hand
            return bus

    def __reduce__(self) -> tuple[Any, ...]:
        memo: dict[int, Any] = {}
        rows = []
        with self._lock:
            for name in self:
                signal = self.signal(name)
                copied = copied_from(signal, memo)
                require_picklable(signal, copied)
                rows.append((signal.event, signal.muted_by_hand, copied))
            scopes = list(self.vocabulary.scopes.values())
            return _without_events, (type(self), scopes), (rows, self._own_attributes())

    def __setstate__(
        self, state: tuple[list[tuple[Event, bool, list[Copied]]], dict[str, Any]]
    ) -> None:
        rows, own = state
        vars(self).update(own)
        for event, is_muted, copied in rows:
            signal = self._add(event)
            fill(signal, copied)
            signal.is_muted = is_muted

    def _own_attributes(self) -> dict[str, Any]:
        """What a subclass, or somebody else, has put on it."""
        return {name: value for name, value in vars(self).items() if name not in _ATTRIBUTES}

    def __repr__(self) -> str:
        count = sum(len(signal.receivers) for signal in self._signals())
        return f"<EventBus: {len(self)} events, {count} handlers>"

    def __missing__(self, name: object) -> Signal:
        raise UnknownEventError(
            f"the bus declares no event {name!r}."
            f"{named_here(str(name)) or did_you_mean(str(name), self)} "
            "An event of your own is added with bus.declare(name)."
        )

    def _signals(self) -> list[Signal]:
        """The signals of now: other threads may add some meanwhile, and take them back."""
        return [signal for signal in list(self.values()) if isinstance(signal, Signal)]

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
        with self._lock:
            self._check_new(name)
            return self._add(Event(name, "", "point", (), doc))

    def declare_scope(
        self,
        name: str,
        inside: str | Iterable[str] = (),
        *,
        points: Iterable[str] = (),
        is_phase: bool = False,
        doc: str = "",
    ) -> ScopeSpec:
        """Add a scope of your own with its events: ``begin_X``, ``after_cancel_X``, ``after_X``.

        A loop opens it with ``with scope.X:``, also one that is bound already, and fires
        ``emit.begin_X()`` inside. Pictures, ``explain`` and event logs know it then.

        Args:
            name: An identifier that no scope has yet.
            inside: The scope or scopes that it opens in; none for one that a run begins with.
            points: Names of further events, which fire inside of it.
            is_phase: Whether it is a pass over batches: ``during=`` takes it then, and
                ``run.phase`` has its name while it is open.
            doc: What it means, in a line.

        Raises:
            ValueError: A name is taken or is no identifier, or a scope around it is unknown.
        """
        parents = (inside,) if isinstance(inside, str) else tuple(inside)
        opening, cancelled, closing = f"begin_{name}", f"after_cancel_{name}", f"after_{name}"
        points = tuple(points)
        with self._lock:
            for each in (name, opening, *points, cancelled, closing):
                self._check_new(each)
            spec = ScopeSpec(name, parents, is_phase, note=doc)
            self.vocabulary.add(spec)
            for binding in list(self._bindings):
                self._follow([binding.add_scope(name)])
            self._add(Event(opening, name, "opening", (), doc or f"the {name} begins"))
            for point in points:
                self._add(Event(point, name, "point", (), ""))
            text = f"the {name} was cancelled"
            self._add(Event(cancelled, name, "closing", (), text, only_after="cancelled"))
            self._add(Event(closing, name, "closing", (), f"the {name} has ended"))
        if is_phase:
            keep_phase(self.on, opening, closing, name)
        return spec

    def _check_new(self, name: object) -> None:
        if not (isinstance(name, str) and name.isidentifier() and not name.startswith("_")):
            raise ValueError(f"an event name must be an identifier without leading _, got {name!r}")
        if name in self:
            raise ValueError(f"the bus declares event {name!r} already")

    def _add(self, event: Event) -> Signal:
        signal = Signal(event.meaning, name=event.name)
        signal.event, signal.lock, signal.bindings = event, self._lock, self._bindings
        signal.home = self.home
        self[event.name] = signal
        self._wrap_calls(signal)
        return signal

    def emit(self, name: str, sender: Any, token: CancellationToken | None = None) -> None:
        """Emit the event called ``name``; see ``Signal.emit``.

        Raises:
            UnknownEventError: The bus declares no such event.
        """
        self.signal(name).emit(sender, token)

    def bind(
        self, sender: Any, token: CancellationToken, make_scope: MakeScope = Scope
    ) -> tuple[Emitter, Scopes]:
        """Bind this bus and ``token`` to a sender: what a loop is written with.

        Args:
            sender: Passed to every handler. Where it has attributes ``epoch`` and
                ``batch_index``, messages and cancellations name them.
            token: The token that the scopes obey.
            make_scope: Makes each scope, from token, name and sender.

        Returns:
            ``(emit, scope)``: ``emit.after_loss()`` fires an event and is a
            checkpoint; ``with scope.batch:`` opens a scope.
        """
        with self._lock:
            binding = Binding(sender, token, self.vocabulary.scopes, make_scope)
            for name in self:
                binding.refresh(self.signal(name))
            self._bindings.add(binding)
        self._follow(binding.scopes)
        return binding.emit, binding.scopes

    def _follow(self, scopes: Iterable[Scope]) -> None:
        if self._profile is not None:
            self._profile.follow(scopes)

    @overload
    def on(
        self, event: Events, fn: Receiver, **options: Unpack[HandlerOptions]
    ) -> Subscription: ...

    @overload
    def on(self, event: Events, **options: Unpack[HandlerOptions]) -> Callable[[F], F]: ...

    def on(
        self,
        event: Events,
        fn: Receiver = _LEFT_OUT,
        *,
        priority: float = 0,
        before: str | Iterable[str] = (),
        after: str | Iterable[str] = (),
        name: str | None = None,
        every: int = 1,
        once: bool = False,
        when: Callable[[Any], object] | None = None,
        during: PhaseName | ScopeSpec | None = None,
        sender: Any = ANY,
        weak: bool = False,
        on_error: OnError = "raise",
        ranks: Ranks = "all",
    ) -> Any:
        """Subscribe a handler to an event or to several. A call or a decorator.

        Args:
            event: Name of an event, or several. For type checkers an event of your own is the
                ``Signal`` that ``declare`` has returned, or ``bus.signal(name)``.
            fn: ``fn(run)``. Left out, ``on`` returns a decorator.
            priority: Higher runs earlier; ties run in order of subscription.
            before: Names of handlers of that event to run before, above priority.
            after: Names of handlers of that event to run after, above priority.
            name: What others call this handler; the function's name by default.
            every: Run on every N-th call that the other filters let through.
            once: Run on the first call that the other filters let through, then leave.
                Like ``every``, it counts the calls of all the events together.
            when: Run when ``when(run)`` is true.
            during: Run in this phase: ``"train"``, ``"validate"``, ``"predict"`` or what
                ``declare_scope`` has returned.
            sender: Run for this sender only.
            weak: Hold the function weakly, so that it leaves when nobody else holds it.
            on_error: ``"raise"``; ``"disable"`` logs the traceback, disconnects the
                handler and goes on; ``"warn"`` warns each time and goes on.
            ranks: Of several processes, which run it: ``"all"``; ``"zero"``, the one of rank 0;
                ``"local_zero"``, one on each machine. It is looked up when a run begins.

        Returns:
            A ``Subscription``; as a decorator, the function unchanged.

        Warns:
            RuntimeWarning: The function was subscribed to that event already, under that name
                and for that sender; the new subscription replaces the old one.

        Raises:
            UnknownEventError: The bus does not declare the event.
            TypeError: ``fn`` cannot be called with one argument; calling it would not
                run its body, as with a generator function, a coroutine function or an
                async generator function; or an option has the wrong type.
            ValueError: An option is out of range.
            OrderError: A constraint names nobody, or constraints form a cycle.
        """
        if callable(event):
            raise TypeError(
                f"on needs the name of an event before the function: on('after_loss', "
                f"{name_of(event)}), or the decorator @run.on('after_loss')"
            )
        events = events_of(event)

        def subscribe(function: Receiver) -> Subscription:
            for each in events:
                check_receiver(function, each)
            try:
                options = Options(
                    priority=priority, before=names(before), after=names(after), name=name,
                    every=every, once=once, when=when, during=during, weak=weak, on_error=on_error,
                    ranks=ranks,
                )  # fmt: skip
            except (TypeError, ValueError) as error:
                who = name or name_of(function)
                where = ", ".join(map(repr, events))
                raise type(error)(f"handler {who!r} for event {where}: {error}") from None
            tally = Tally(every)
            subscription = Subscription(
                [Handler(each, function, options, tally=tally) for each in events]
            )
            with self._lock:
                replaced = [
                    old for new in subscription.handlers for old in self._same_as(new, sender)
                ]
                for old in replaced:
                    warnings.warn(
                        f"{old.describe()} is replaced: the same function is subscribed again "
                        "under that name. To have it called twice, give one of them name=...",
                        RuntimeWarning,
                        stacklevel=level_of_caller(),
                    )
                self.attach(subscription.handlers, sender)
                for old in replaced:
                    old.detach()
            return subscription

        if fn is None:
            raise TypeError(
                f"on({', '.join(map(repr, events))}, ...) got None in the place of a handler: pass "
                "the function itself, and not what calling it returns"
            )
        if fn is not _LEFT_OUT:
            return subscribe(fn)
        for each in events:
            self.signal(each)

        def decorate(function: F) -> F:
            subscribe(function)
            return function

        return decorate

    def _same_as(self, new: Handler, sender: Any) -> list[Handler]:
        """Return the handlers of that function and that name for that very sender."""
        if new.event not in self:
            return []  # attach will say so
        signal = self.signal(new.event)
        receivers: dict[Any, Any] = signal.receivers
        same = [
            old
            for old in signal.subscribed
            if old.name == new.name
            and is_same(old.receiver, new.receiver)
            and receivers.get(old.key) is old  # not one of blinker's connect
        ]
        if not same:  # most often: asking for the senders puts all in order
            return same
        heard = signal.heard_by(sender)
        others = [] if sender is ANY else signal.heard_by(ANY)
        return [old for old in same if old in heard and old not in others]

    def attach(self, handlers: Sequence[Handler], sender: Any = ANY) -> None:
        """Subscribe prepared handlers together: all of them, or none when one is in error.

        Raises:
            UnknownEventError, ValueError, OrderError: See ``on``.
        """
        provider = running_provider(self.home, sender)
        if provider is not None:
            for handler in handlers:
                check_receiver(handler.receiver, handler.event)
                provider.take(handler)
            sender = provider.sender if sender is ANY else sender
        with self._lock:
            by_event: dict[str, list[Handler]] = {}
            for handler in handlers:
                by_event.setdefault(handler.event, []).append(handler)
            for name, new in by_event.items():
                try:
                    signal = self.signal(name)
                except UnknownEventError as error:
                    raise UnknownEventError(f"handler {new[0].name!r}: {error}") from None
                for handler in new:
                    check_phase(self.vocabulary, signal.event, handler)
                standing = signal.subscribed
                require_names(new, [*standing, *new], name)
                require_no_cycle(new, standing, name)
            try:
                for handler in handlers:
                    self.signal(handler.event).put_on(handler, sender)
            except BaseException:  # from whoever listens to receiver_connected
                for handler in handlers:
                    handler.detach()
                raise

    @around
    def transaction(self) -> Generator[None, None, None]:
        """Undo whatever is done to the bus in the block if the block raises.

        Subscriptions, events, scopes, muting and profiling are then as they were. Not undone:
        what was emitted, and what other threads have done meanwhile.
        """
        profile, providers = self._profile, list(self.home.providers)
        with self._lock:
            declarations = Declarations(self, self.vocabulary, self._bindings)
            snapshots = [Snapshot(signal) for signal in self._signals()]
        try:
            yield
        except BaseException:
            with self._lock:
                self.home.providers[:] = providers
                self.vocabulary = declarations.restore(self.home, self.vocabulary, self._bindings)
                for snapshot in snapshots:
                    snapshot.restore()
                if self._profile is not profile and self._profile_thread == threading.get_ident():
                    self._end(self._profile)
                for signal in self._signals():
                    self._wrap_calls(signal)
            raise

    def explain(self, event: str | None = None) -> Explanation:
        """Return the handlers of one event, or of all, in the order in which they run.

        Inside a ``profile()`` block it has the calls and the host time of every
        handler since the block began; outside of it, the calls of those with a filter.

        Raises:
            UnknownEventError: The bus does not declare the event.
        """
        from .explain import Explanation, row_of  # here: most runs are never explained

        rows: list[Row] = []
        for signal in self._signals() if event is None else [self.signal(event)]:
            for position, handler in enumerate(signal.handlers, 1):
                row = row_of(handler, position, signal.senders_of(handler))
                if self._profile is not None:
                    calls, total_ms = self._profile.of(handler)
                    row = replace(row, calls=calls, total_ms=total_ms)
                rows.append(row)
        return Explanation(rows)

    @around
    def profile(self, max_spans: int = 1_000_000) -> Generator[Profile, None, None]:
        """Time every handler, and the scopes, while the block runs; outside of it nothing.

        Handlers that are subscribed and runs that begin inside of the block are
        included. Nothing waits for a CUDA device until the block ends.

        Args:
            max_spans: How many calls and scopes the trace may have.

        Yields:
            The ``Profile``: ``table()``, ``to_json()``, ``to_chrome_trace(path)``. It can
            be read in the block and after it.

        Raises:
            RuntimeError: This bus is being profiled already.
        """
        if self._profile is not None:
            raise RuntimeError(
                "this bus is being profiled already: use the profile of the outer block"
            )
        from .profiling import Profile  # here: most runs are never profiled

        self._profile = profile = Profile(max_spans)
        self._profile_thread = threading.get_ident()
        try:
            profile.start()
            for signal in self._signals():
                self._wrap_calls(signal)
            for binding in list(self._bindings):
                profile.follow(binding.scopes)
            yield profile
        finally:
            self._end(profile)

    def _end(self, profile: Profile | None) -> None:
        if profile is None or self._profile is not profile:  # a transaction has ended it
            return
        self._profile = None
        for signal in self._signals():
            self._wrap_calls(signal)
        for binding in list(self._bindings):
            profile.unfollow(binding.scopes)
        profile.stop()

    def _wrap_calls(self, signal: Signal) -> None:
        profile = self._profile
        around = None if profile is None else partial(profile.wrap, signal.event.scope)
        signal.wrap_calls(around)


def _without_events(kind: type[EventBus], scopes: list[ScopeSpec]) -> EventBus:
    bus = kind.__new__(kind)
    EventBus.__init__(bus, (), scopes)  # a subclass may be made with other arguments
    return bus


_ATTRIBUTES = frozenset(vars(EventBus((), ())))


def events_of(event: Events) -> tuple[str, ...]:
    """Return the name of an event or of several as a tuple, each once."""
    if isinstance(event, str | Signal):
        event = (event,)
    if not isinstance(event, Iterable):
        raise TypeError(f"on needs the name of an event, or several, got {event!r}")
    return tuple(dict.fromkeys(each.name if isinstance(each, Signal) else each for each in event))
