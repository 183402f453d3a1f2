"""What does one emission cost, against a bare ``for`` over the same functions?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import blinker

from eventtrain import CancellationToken, EventBus

from .measure import Group, Options, Statement, Suite, Target, compare, distinct_functions

COUNTS = (0, 1, 3, 10, 100)


def run(options: Options) -> Suite:
    """Measure emissions to several numbers of handlers, the guard, and filters."""
    groups = {count: _handlers(count, options) for count in COUNTS}
    guard, filters = _guard(options), _filters(options)
    one, ten = groups[1], groups[10]
    blinker_to_emit = ten.ratio("blinker.Signal.send", "signal.emit(run)").median
    targets = [
        Target("signal.emit(run), 1 handler, over a bare for",
               one.ratio("signal.emit(run)").median, 1.7),
        Target("emit.after_loss(), 1 handler, over a bare for",
               one.ratio("emit.after_loss()").median, 1.7),
        Target("signal.emit(run), 10 handlers, over a bare for",
               ten.ratio("signal.emit(run)").median, 1.5),
        Target("emit.after_loss(), 10 handlers, over a bare for",
               ten.ratio("emit.after_loss()").median, 1.5),
        Target("blinker.Signal.send over signal.emit(run), 10 handlers",
               blinker_to_emit, 10, at_least=True),
        Target("guarded dispatch without handlers",
               guard.time("if signal.receivers: signal.emit(run)").median, 40, "ns"),
    ]  # fmt: skip
    return Suite([*groups.values(), guard, filters], targets)


def _compare(title: str, variants: dict[str, Statement], options: Options) -> Group:
    return compare(title, "ns", variants, rounds=options.pick(21, 2), passes=options.pick(5, 1))


def _seconds(options: Options) -> float:
    return 0.0001 if options.quick else 0.002


def _new_run() -> Any:
    return SimpleNamespace(phase="train", epoch=0, batch_index=0)


def _handlers(count: int, options: Options) -> Group:
    functions = distinct_functions(count)
    run, token, bus = _new_run(), CancellationToken(), EventBus()
    theirs = blinker.Signal()
    for function in functions:
        bus.on("after_loss", function)
        theirs.connect(function)
    emit, _ = bus.bind(run, token)
    names: dict[str, Any] = {
        "run": run, "token": token, "functions": functions, "signal": bus.signal("after_loss"),
        "theirs": theirs, "emit": emit, **{f"h{i}": f for i, f in enumerate(functions)},
    }  # fmt: skip
    statements = {
        "for f in functions: f(run)": "for f in functions: f(run)",
        "h0(run); h1(run); ... (inline)": "\n".join(f"h{i}(run)" for i in range(count)) or "pass",
        "signal.emit(run)": "signal.emit(run)",
        "signal.emit(run, token)": "signal.emit(run, token)",
        "emit.after_loss()": "emit.after_loss()",
        "signal.send(run)": "signal.send(run)",
        "blinker.Signal.send": "theirs.send(run)",
    }
    variants = {
        name: Statement(text, _seconds(options), **names) for name, text in statements.items()
    }
    title = f"one emission, {count} idle handler{'s' * (count != 1)}"
    return _compare(title, variants, options)


def _guard(options: Options) -> Group:
    (function,) = distinct_functions(1)
    run, signal = _new_run(), EventBus().signal("after_loss")
    texts = ["f(run)", "if signal.receivers: signal.emit(run)", "signal.emit(run)"]
    variants = {
        text: Statement(text, _seconds(options), f=function, run=run, signal=signal)
        for text in texts
    }
    title = "an event that nobody listens to, against one plain call"
    return _compare(title, variants, options)


def _filters(options: Options) -> Group:
    """Ten handlers each, so that what an emission costs anyway weighs little."""
    run = _new_run()
    filters: dict[str, dict[str, Any]] = {
        "no filter": {},
        "every=1_000_000": {"every": 1_000_000},
        'during="validate", in training': {"during": "validate"},
        "when=never": {"when": distinct_functions(1)[0]},
    }
    variants = {}
    for name, filtering in filters.items():
        bus = EventBus()
        for function in distinct_functions(10):
            bus.on("after_loss", function, **filtering)
        signal = bus.signal("after_loss")
        variants[name] = Statement("signal.emit(run)", _seconds(options), signal=signal, run=run)
    title = "one emission to 10 handlers that a filter keeps from running"
    return _compare(title, variants, options)
