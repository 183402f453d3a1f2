"""The bus against a list of dictionaries, for any program of what one can do to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from blinker import ANY
from hypothesis import example, given, settings, strategies as st

from eventtrain import CancellationToken, EventBus, OrderError, Subscription
from eventtrain.bus.handlers import Handler

EVENT = "after_loss"
POOL = ("c0", "c1", "c2")
PHASE_OF = {0: "train", 1: "validate", 2: "predict"}
TEXT = 2
Program = list[tuple[Any, ...]]
Log = list[tuple[Any, ...]]


class Thing:
    """A sender that is told apart by identity."""

    def __init__(self, label: int) -> None:
        self.label = label
        self.phase = PHASE_OF[label]


class Text(str):
    """A sender that is told apart by value."""

    label = TEXT
    phase = PHASE_OF[TEXT]


def perform(system: Bus | Model, operation: tuple[Any, ...]) -> None:
    """Do one operation; a refusal is part of the log."""
    name, *arguments = operation
    try:
        getattr(system, name)(*arguments)
    except OrderError:
        system.log.append(("refused", name))


class Bus:
    """The real thing, driven by operations."""

    def __init__(self) -> None:
        self.bus = EventBus()
        self.signal = self.bus[EVENT]
        self.senders: list[Any] = [Thing(0), Thing(1), Text("x")]
        self.bind()
        self.functions: list[Callable[[Any], None]] = []
        self.subscriptions: list[Subscription | None] = []
        self.acts: list[Program] = []
        self.blocks: list[tuple[AbstractContextManager[None], int | None]] = []
        self.cancels: list[Callable[[], None]] = []
        self.log: Log = []
        self.orders: deque[list[tuple[str, int]]] = deque()
        for name in POOL:
            self.make_function(name, [])

    def bind(self) -> None:
        self.bound_token = CancellationToken()
        self.emitter, self.scope = self.bus.bind(self.senders[0], self.bound_token)

    def make_function(self, name: str, acts: Program) -> Callable[[Any], None]:
        index = len(self.functions)

        def function(sender: Any) -> None:
            self.log.append((index, sender.label))
            todo, self.acts[index] = self.acts[index], []
            for act in todo:
                perform(self, act)

        function.__name__ = name
        self.functions.append(function)
        self.acts.append(acts)
        return function

    def sender(self, label: int | None) -> Any:
        return ANY if label is None else Text("x") if label == TEXT else self.senders[label]

    def subscribe(
        self, name: str, options: dict[str, Any], label: int | None, acts: Program
    ) -> None:
        function = self.make_function(name, acts)
        self.subscriptions.append(None)
        place = len(self.subscriptions) - 1
        self.subscriptions[place] = self.bus.on(
            EVENT, function, name=name, sender=self.sender(label), **options
        )

    def unsubscribe(self, i: int) -> None:
        if self.subscriptions and (subscription := self.subscriptions[i % len(self.subscriptions)]):
            subscription.disconnect()

    def connect(self, i: int, label: int | None) -> None:
        self.signal.connect(self.functions[i % len(self.functions)], self.sender(label))

    def disconnect(self, i: int, label: int | None) -> None:
        self.signal.disconnect(self.functions[i % len(self.functions)], self.sender(label))

    def enter_connected_to(self, i: int, label: int | None) -> None:
        function = self.functions[i % len(self.functions)]
        block = self.signal.connected_to(function, self.sender(label))
        block.__enter__()
        self.blocks.append((block, label))

    def enter_muted(self) -> None:
        block = self.signal.muted()
        block.__enter__()
        self.blocks.append((block, None))

    def leave(self) -> None:
        if self.blocks:
            self.blocks.pop()[0].__exit__(None, None, None)

    def set_muted(self, muted: bool) -> None:
        self.signal.is_muted = muted

    def cancel(self) -> None:
        if self.cancels:
            self.cancels[-1]()

    def renew(self, label: int) -> None:
        """Let a sender die, unless an open block refers to it, and put another in its place."""
        if label in [held for _, held in self.blocks]:
            return
        self.senders[label] = None
        self.senders[label] = Thing(label)

    def emit(self, label: int, style: str) -> None:
        self.orders.append([self.identify(handler) for handler in self.signal.handlers])
        sender = self.sender(label)
        if style == "send":
            self.cancels.append(lambda: None)
            self.signal.send(sender)
        elif style in BOUND:
            if style == "bound anew":
                self.bind()
            self.cancels.append(lambda: self.bound_token.cancel("batch"))
            with self.scope.batch:
                self.emitter.after_loss()
        else:
            token = CancellationToken()
            self.cancels.append(token.cancel if style == "token" else lambda: None)
            self.bus.emit(EVENT, sender, token if style == "token" else None)
        self.cancels.pop()

    def identify(self, handler: Handler) -> tuple[str, int]:
        """Say which subscription or which connected function a handler is."""
        for i, subscription in enumerate(self.subscriptions):
            if subscription is not None and handler in subscription.handlers:
                return "on", i
        assert handler.receiver is not None
        return "connect", self.functions.index(handler.receiver)


class Model:
    """The same operations on a list of dictionaries, sorted for every emission."""

    def __init__(self, orders: deque[list[tuple[str, int]]]) -> None:
        self.orders = orders
        self.entries: list[dict[str, Any]] = []
        self.subscribed: list[dict[str, Any] | None] = []
        self.names: list[str] = list(POOL)
        self.acts: list[Program] = [[] for _ in POOL]
        self.blocks: list[tuple[Any, ...]] = []
        self.depth = 0
        self.flag = False
        self.cancelled: list[bool] = []
        self.log: Log = []

    # Who is there

    def standing(self) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if entry["senders"]]

    def remove(self, entry: dict[str, Any]) -> None:
        if entry in self.entries:
            self.entries.remove(entry)
            entry["alive"] = False

    def connected(self, function: int) -> dict[str, Any] | None:
        found = [e for e in self.entries if e["id"] == ("connect", function)]
        return found[0] if found else None

    def subscribe(
        self, name: str, options: dict[str, Any], label: int | None, acts: Program
    ) -> None:
        function = len(self.names)
        self.names.append(name)
        self.acts.append(acts)
        self.subscribed.append(None)
        entry = {
            "id": ("on", len(self.subscribed) - 1),
            "name": name, "function": function, "alive": True, "seen": 0, "calls": 0,
            "senders": {label}, **options,
        }  # fmt: skip
        wanted = {*entry["before"], *entry["after"]}
        if not wanted <= {other["name"] for other in self.standing()}:
            raise OrderError
        self.refuse_cycle([*self.standing(), entry])
        self.subscribed[-1] = entry
        self.entries.append(entry)

    def unsubscribe(self, i: int) -> None:
        if self.subscribed and (entry := self.subscribed[i % len(self.subscribed)]):
            self.remove(entry)

    def connect(self, i: int, label: int | None) -> None:
        function = i % len(self.names)
        entry = self.connected(function)
        if entry is None:
            entry = {
                "id": ("connect", function), "name": self.names[function], "function": function,
                "alive": True, "priority": 0, "before": (), "after": (), "senders": set(),
                "every": 1, "once": False, "during": None,
            }  # fmt: skip
            self.refuse_cycle([*self.standing(), entry])
            self.entries.append(entry)
        elif not entry["senders"]:
            self.refuse_cycle([*self.standing(), entry])
        entry["senders"].add(label)

    def disconnect(self, i: int, label: int | None) -> None:
        function = i % len(self.names)
        for entry in list(self.entries):
            if entry["function"] != function:
                continue
            if label is None:
                self.remove(entry)
            else:
                entry["senders"].discard(label)
                if entry["id"][0] == "on" and not entry["senders"]:
                    self.remove(entry)

    def enter_connected_to(self, i: int, label: int | None) -> None:
        function = i % len(self.names)
        entry = self.connected(function)
        had = entry is not None and label in entry["senders"]
        self.connect(i, label)
        self.blocks.append(("connected", function, label, entry is not None, had))

    def enter_muted(self) -> None:
        self.depth += 1
        self.blocks.append(("muted",))

    def leave(self) -> None:
        if not self.blocks:
            return
        kind, *rest = self.blocks.pop()
        if kind == "muted":
            self.depth -= 1
            return
        function, label, stood, had = rest
        entry = self.connected(function)
        if entry is not None and not stood:
            self.remove(entry)
        elif entry is not None and not had:
            entry["senders"].discard(label)

    def set_muted(self, muted: bool) -> None:
        self.flag = muted

    def cancel(self) -> None:
        if self.cancelled:
            self.cancelled[-1] = True

    def renew(self, label: int) -> None:
        if any(block[0] == "connected" and block[2] == label for block in self.blocks):
            return
        for entry in list(self.entries):
            if label in entry["senders"]:
                entry["senders"].discard(label)
                if entry["id"][0] == "on" and not entry["senders"]:
                    self.remove(entry)

    # The order

    def before(self, one: dict[str, Any], other: dict[str, Any]) -> bool:
        """Whether a constraint says that ``one`` runs before ``other``."""
        if one is other:
            return False
        return other["name"] in one["before"] or one["name"] in other["after"]

    def refuse_cycle(self, entries: list[dict[str, Any]]) -> None:
        """Take away those that need wait for nobody, until none is left or nobody can go."""
        left = list(entries)
        while left:
            free = [e for e in left if not any(self.before(other, e) for other in left)]
            if not free:
                raise OrderError
            left = [e for e in left if not any(e is other for other in free)]

    def order(self) -> list[dict[str, Any]]:
        """Check the order that the bus has and return it."""
        by_priority = sorted(self.standing(), key=lambda entry: -entry["priority"])
        place = {entry["id"]: entry for entry in by_priority}
        real = self.orders.popleft()
        assert sorted(real) == sorted(place)
        order = [place[key] for key in real]
        free = [
            entry["id"]
            for entry in by_priority
            if not any(self.before(entry, o) or self.before(o, entry) for o in by_priority)
        ]
        assert [key for key in real if key in free] == free
        for i, later in enumerate(order):
            assert not any(self.before(later, earlier) for earlier in order[:i])
        return order

    def emit(self, label: int, style: str) -> None:
        order = self.order()
        label = 0 if style in BOUND else label
        self.cancelled.append(False)
        if self.depth == 0 and not self.flag:
            for entry in [e for e in order if e["senders"] & {None, label}]:
                gone = style == "send" and not entry["alive"]  # blinker passes over these
                if not gone and self.lets_through(entry, label):
                    self.call(entry["function"], label)
                if self.cancelled[-1] and style in ("token", *BOUND):
                    break
        self.cancelled.pop()

    def lets_through(self, entry: dict[str, Any], label: int) -> bool:
        if entry["during"] not in (None, PHASE_OF[label]):
            return False
        if entry["every"] > 1:
            entry["seen"] += 1
            if entry["seen"] % entry["every"]:
                return False
        if entry["once"]:
            if entry["calls"]:
                return False
            self.remove(entry)
        entry["calls"] = entry.get("calls", 0) + 1
        return True

    def call(self, function: int, label: int) -> None:
        self.log.append((function, label))
        todo, self.acts[function] = self.acts[function], []
        for act in todo:
            perform(self, act)


NAMES = st.sampled_from("abcd")
INDEX = st.integers(0, 9)
LABEL = st.sampled_from([None, None, 0, 1, 2])
SENDER = st.sampled_from([0, 0, 1, 2])
CONSTRAINT = st.one_of(st.just(()), st.just(()), st.just(()), st.tuples(NAMES))
OPTIONS = st.fixed_dictionaries(
    {
        "priority": st.sampled_from([0, 0, 0, 1, -1, 2.5, float("inf"), float("-inf")]),
        "before": CONSTRAINT,
        "after": CONSTRAINT,
        "every": st.sampled_from([1, 1, 1, 2, 3]),
        "once": st.sampled_from([False, False, False, True]),
        "during": st.sampled_from([None, None, None, "train", "validate"]),
    }
)


def operations(acts: st.SearchStrategy[Program], styles: list[str]) -> Any:
    subscribe = st.tuples(st.just("subscribe"), NAMES, OPTIONS, LABEL, acts)
    emit = st.tuples(st.just("emit"), SENDER, st.sampled_from(styles))
    return st.one_of(
        subscribe,
        emit,
        subscribe,
        emit,
        st.tuples(st.just("unsubscribe"), INDEX),
        st.tuples(st.just("connect"), INDEX, LABEL),
        st.tuples(st.just("disconnect"), INDEX, LABEL),
        st.tuples(st.just("enter_connected_to"), INDEX, LABEL),
        st.just(("enter_muted",)),
        st.just(("leave",)),
        st.tuples(st.just("set_muted"), st.booleans()),
    )


STYLES = ["plain", "token", "send"]
BOUND = ["bound", "bound anew"]
INNER = st.one_of(operations(st.just([]), STYLES), st.just(("cancel",)), st.just(("cancel",)))
OUTER = st.one_of(
    operations(st.lists(INNER, max_size=2), [*STYLES, *BOUND]),
    operations(st.lists(INNER, max_size=2), [*STYLES, *BOUND]),
    st.just(("renew", 1)),
)
PLAIN = {"priority": 0, "before": (), "after": (), "every": 1, "once": False, "during": None}


@settings(max_examples=800)
@given(st.lists(OUTER, min_size=5, max_size=25))
@example(
    [  # a handler that is to run once, in an emission that began before it left
        ("subscribe", "a", PLAIN, None, [("emit", 0, "plain")]),
        ("subscribe", "b", {**PLAIN, "once": True}, None, []),
        ("emit", 0, "plain"),
    ]
)
@example(
    [  # a block that connects a function subscribed already
        ("subscribe", "a", PLAIN, None, []),
        ("enter_connected_to", 3, None),
        ("leave",),
        ("emit", 0, "plain"),
    ]
)
def test_any_program_does_to_the_bus_what_it_does_to_the_model(program: Program) -> None:
    bus = Bus()
    for operation in program:
        perform(bus, operation)
    model = Model(bus.orders)
    for operation in program:
        perform(model, operation)
    assert bus.log == model.log
    assert not bus.orders
    for subscription, entry in zip(bus.subscriptions, model.subscribed, strict=True):
        assert (subscription is None) == (entry is None)
        if subscription is not None and entry is not None:
            assert subscription.connected == entry["alive"]
            assert subscription.handlers[0].calls in (None, entry["calls"])
