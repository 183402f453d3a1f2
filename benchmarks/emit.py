"""What does one emission cost, against a bare ``for`` over the same functions?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import blinker

from eventtrain import CancellationToken, EventBus, Signal

from .libraries import BLINKER, PLUGGY, PSYGNAL, calls
from .measure import Group, Options, Suite, Target, Variant, compare, distinct_functions
from .statement import Statement

COUNTS = (0, 1, 3, 10, 100)
SENT_TO = (1, 10, 100)
FOR = "for f in functions: f(run)"
SIGNAL = "signal.emit(run)"
BOUND = "emit.after_loss()"
SEND = "signal.send(run)"
SUBSCRIBED = "bus.on, signal.send(run)"
GUARD = "if signal.receivers: signal.emit(run)"


def run(options: Options) -> Suite:
    """Measure emissions to several numbers of handlers, the guard, order and filters."""
    groups = {count: handlers(count, options) for count in COUNTS}
    guard = _guard(options)
    one, ten = groups[1], groups[10]
    targets = [
        Target(f"{name}, {count} handler{'s' * (count > 1)}, over a bare for",
               group.ratio(name).median, limit)
        for count, group, limit in ((1, one, 1.7), (10, ten, 1.5))
        for name in (SIGNAL, BOUND)
    ]  # fmt: skip
    for name, limit in ((BLINKER, 10), (PLUGGY, 5), (PSYGNAL, 5)):
        if name in ten.rounds:
            value = ten.ratio(name, SIGNAL).median
            text = f"{name} over {SIGNAL}, 10 handlers"
            targets.append(Target(text, value, limit, at_least=True))
    sending = {count: _sending(count, options) for count in SENT_TO}
    targets += [
        Target(f"{name} over {BLINKER}, {count} receiver{'s' * (count > 1)}",
               group.ratio(name).median, 1)
        for count, group in sending.items()
        for name in (SEND, SUBSCRIBED)
    ]  # fmt: skip
    least = guard.time(GUARD).median
    targets.append(Target("guarded dispatch without handlers", least, 40, "ns"))
    _, missing = calls([])
    others = [guard, _order(options), _filters(options)]
    return Suite([*groups.values(), *sending.values(), *others], targets, missing)


def handlers(count: int, options: Options) -> Group:
    """Measure one emission to ``count`` functions, by everything that can call them."""
    functions = distinct_functions(count)
    run, token, bus = _new_run(), CancellationToken(), EventBus()
    for function in functions:
        bus.on("after_loss", function)
    emit, _ = bus.bind(run, token)
    names: dict[str, Any] = {
        "run": run, "token": token, "functions": functions, "signal": bus.signal("after_loss"),
        "emit": emit, **{f"h{i}": f for i, f in enumerate(functions)},
    }  # fmt: skip
    statements = {
        FOR: FOR,
        "h0(run); h1(run); ... (inline)": "\n".join(f"h{i}(run)" for i in range(count)) or "pass",
        SIGNAL: SIGNAL,
        "signal.emit(run, token)": "signal.emit(run, token)",
        BOUND: BOUND,
        SEND: SEND,
    }
    variants: dict[str, Variant] = {
        name: Statement(text, _seconds(options), **names) for name, text in statements.items()
    }
    for name, (text, theirs) in calls(functions)[0].items():
        variants[name] = Statement(text, _seconds(options), run=run, theirs=theirs)
    parameters = {name: {"handlers": count, "loop": name, "device": "cpu"} for name in variants}
    title = f"one emission, {count} idle handler{'s' * (count != 1)}"
    return _compare(title, variants, options, parameters)


def _compare(
    title: str,
    variants: dict[str, Variant],
    options: Options,
    parameters: dict[str, dict[str, Any]] | None = None,
) -> Group:
    rounds, passes = options.pick(21, 2), options.pick(5, 1)
    return compare(title, "ns", variants, rounds=rounds, passes=passes, parameters=parameters)


def _seconds(options: Options) -> float:
    return 0.0001 if options.quick else 0.002


def _new_run() -> Any:
    return SimpleNamespace(phase="train", epoch=0, batch_index=0)


def _sending(count: int, options: Options) -> Group:
    """Measure ``send`` on both signals, to receivers that were connected in the same way."""
    functions, run = distinct_functions(count), _new_run()
    theirs, ours, bus = blinker.Signal(), Signal(), EventBus()
    for function in functions:
        theirs.connect(function)
        ours.connect(function)
        bus.on("after_loss", function)
    senders = {BLINKER: theirs, SEND: ours, SUBSCRIBED: bus["after_loss"]}
    variants: dict[str, Variant] = {
        name: Statement(SEND, _seconds(options), signal=signal, run=run)
        for name, signal in senders.items()
    }
    title = f"one send, {count} idle receiver{'s' * (count != 1)}, beside blinker's own"
    return _compare(title, variants, options)


def _guard(options: Options) -> Group:
    (function,) = distinct_functions(1)
    run, signal = _new_run(), EventBus().signal("after_loss")
    variants: dict[str, Variant] = {
        text: Statement(text, _seconds(options), f=function, run=run, signal=signal)
        for text in ("f(run)", GUARD, SIGNAL)
    }
    title = "an event that nobody listens to, against one plain call"
    return _compare(title, variants, options)


def _order(options: Options) -> Group:
    """Order is resolved on subscription: it is not to show when an event is emitted."""
    ways: dict[str, list[dict[str, Any]]] = {
        "in order of subscription": [{} for _ in range(10)],
        "ten priorities": [{"priority": i * 7 % 10} for i in range(10)],
        "a chain of after=": [{"after": f"handler_{i - 1}"} if i else {} for i in range(10)],
    }
    return _subscribed("one emission to 10 handlers, by how their order is given", ways, options)


def _filters(options: Options) -> Group:
    """Ten handlers each, so that what an emission costs anyway weighs little."""
    filters: dict[str, dict[str, Any]] = {
        "no filter": {},
        "every=1_000_000": {"every": 1_000_000},
        'during="validate", in training': {"during": "validate"},
        "when=never": {"when": distinct_functions(1)[0]},
    }
    ways = {name: [filtering] * 10 for name, filtering in filters.items()}
    title = "one emission to 10 handlers that a filter keeps from running"
    return _subscribed(title, ways, options)


def _subscribed(title: str, ways: dict[str, list[dict[str, Any]]], options: Options) -> Group:
    run = _new_run()
    variants: dict[str, Variant] = {}
    for name, subscriptions in ways.items():
        bus = EventBus()
        functions = distinct_functions(len(subscriptions))
        for function, subscription in zip(functions, subscriptions, strict=True):
            bus.on("after_loss", function, **subscription)
        signal = bus.signal("after_loss")
        variants[name] = Statement(SIGNAL, _seconds(options), signal=signal, run=run)
    return _compare(title, variants, options)
