"""How does the cost grow with handlers, events, plugins and batches? It must be linear at most."""

from __future__ import annotations

import statistics
import sys
import time
from array import array
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from eventtrain import DataBunch, EventBus, Learner, Runner

from .device_clock import timed
from .emit import FOR, SIGNAL
from .loops import Null, Way, idle_handlers, null_learner, subscribed, written_loop
from .measure import (
    Group,
    Options,
    Suite,
    Target,
    Variant,
    compare,
    distinct_functions,
    stopwatch,
    without_gc,
)
from .plugin_packages import installed
from .statement import Statement

HANDLERS = (1, 10, 100, 128, 129, 1000)
EVENTS = (0, 100, 1000)
PLUGINS = (0, 1, 10, 100)
CHUNKS = 500


def run(options: Options) -> Suite:
    """Measure how the cost grows with each of them."""
    handlers = {count: _handlers(count, options) for count in HANDLERS}
    (events, fits), plugins, loading = _events(options), _plugins(options), _loading(options)
    batches, drift, blocks = _batches(options)
    per_handler = {n: group.time(SIGNAL).median / n for n, group in handlers.items()}
    most, some = HANDLERS[-1], 10
    targets = [
        Target(f"a handler of {most}, over a handler of {some}: {SIGNAL}",
               per_handler[most] / per_handler[some], 2),
        Target(f"{SIGNAL}, {most} handlers, over a bare for",
               handlers[most].ratio(SIGNAL).median, 2),
        Target(f"a batch with {EVENTS[-1]} more events declared, over one with none more",
               events.ratio(_events_name(EVENTS[-1])).median, 1.05),
        Target(f"a batch with {PLUGINS[-1]} plugins, over one with as many handlers",
               plugins.ratio(_plugins_name(PLUGINS[-1]), _handlers_name(PLUGINS[-1])).median, 1.25),
        Target(f"last tenth of {_count(options)} batches over the first, beside the same loop "
               "written by hand", drift, 1.05),
        Target("memory blocks left behind by a batch", blocks, 0.001, "blocks"),
    ]  # fmt: skip
    groups = [*handlers.values(), events, fits, plugins, loading, batches]
    return Suite(groups, targets)


def _handlers(count: int, options: Options) -> Group:
    functions, bus = distinct_functions(count), EventBus()
    for function in functions:
        bus.on("after_loss", function)
    names: dict[str, Any] = {
        "functions": functions, "signal": bus.signal("after_loss"), "run": None,
    }  # fmt: skip
    seconds = 0.0001 if options.quick else 0.002
    variants: dict[str, Variant] = {
        text: Statement(text, seconds, **names) for text in (FOR, SIGNAL)
    }
    parameters = {name: {"handlers": count, "loop": name, "device": "cpu"} for name in variants}
    title = f"one emission, {count} idle handler{'s' * (count != 1)}"
    rounds, passes = options.pick(15, 2), options.pick(5, 1)
    return compare(title, "ns", variants, rounds=rounds, passes=passes, parameters=parameters)


def _events(options: Options) -> tuple[Group, Group]:
    """Measure a batch, and a fit of one batch, with more events than the table has."""
    batch: dict[str, Variant] = {}
    fit: dict[str, Variant] = {}
    for count in EVENTS:
        bus = EventBus()
        for number in range(count):
            bus.declare(f"own_event_{number}")
        run = Runner(bus=bus)
        batch[_events_name(count)] = _null_fit(run, options)
        fit[_events_name(count)] = stopwatch(partial(run.fit, 1, null_learner(1)))
    return (
        _compare("null step on a bus with more events, a batch", batch, options),
        _compare("null step on a bus with more events, a whole fit of one batch", fit, options),
    )


def _plugins(options: Options) -> Group:
    variants: dict[str, Variant] = {}
    with installed(PLUGINS[-1]) as names:
        for count in PLUGINS:
            run = Runner()
            for function in distinct_functions(count):
                run.on("after_loss", function)
            variants[_handlers_name(count)] = _null_fit(run, options)
            run = Runner(plugins=names[:count])
            variants[_plugins_name(count)] = _null_fit(run, options)
    title = "null step, handlers and plugins with one handler each, a batch"
    return _compare(title, variants, options)


def _loading(options: Options) -> Group:
    with installed(PLUGINS[-1]) as names:
        variants: dict[str, Variant] = {
            f"Runner() with {_plugins_name(count)}": stopwatch(
                lambda count=count: Runner(plugins=names[:count])  # type: ignore[misc]
            )
            for count in PLUGINS
        }
        rounds, passes = options.pick(5, 1), options.pick(3, 1)
        title = "making a Runner, the plugins loaded"
        return compare(title, "ms", variants, rounds=rounds, passes=passes)


def _null_fit(run: Runner, options: Options) -> Variant:
    """Time the batches alone: what a fit costs before the first is another question."""
    count, host = options.pick(10_000, 200), torch.device("cpu")
    fit = timed(lambda learn: run.fit(1, learn), null_learner(0), [(None, None)], count, host)
    return lambda: fit()["wall"]


def _compare(title: str, variants: dict[str, Variant], options: Options) -> Group:
    rounds, passes = options.pick(11, 2), options.pick(5, 1)
    return compare(title, "us", variants, rounds=rounds, passes=passes)


def _events_name(count: int) -> str:
    return f"{count} more events" if count else "the events of the table"


def _plugins_name(count: int) -> str:
    return f"{count} plugin{'s' * (count != 1)}"


def _handlers_name(count: int) -> str:
    return f"{count} handler{'s' * (count != 1)}"


def _count(options: Options) -> int:
    return options.pick(1_000_000, 20_000)


class _InChunks:
    """Very many batches in chunks; after each, the same number of them by hand.

    Attributes:
        fitted, by_hand: The seconds a batch took, by chunk, in the fit and in the loop beside it.
        blocks: How many memory blocks there were after every chunk.
    """

    def __init__(self, batches: int, way: Way) -> None:
        self.size = batches // CHUNKS
        self.way = way
        self.beside = null_learner(self.size)
        # Arrays, which hold no objects that would count as growth.
        self.fitted, self.by_hand = array("d", [0.0] * CHUNKS), array("d", [0.0] * CHUNKS)
        self.blocks = array("q", [0] * CHUNKS)

    def __iter__(self) -> Iterator[tuple[None, None]]:
        chunk, pair = list(range(self.size)), (None, None)
        for number in range(CHUNKS):
            start = time.perf_counter()
            for _ in chunk:
                yield pair
            middle = time.perf_counter()
            self.way(self.beside)
            self.fitted[number] = (middle - start) / self.size
            self.by_hand[number] = (time.perf_counter() - middle) / self.size
            self.blocks[number] = sys.getallocatedblocks()


def _batches(options: Options) -> tuple[Group, float, float]:
    """Fit very many batches at once, three times.

    Returns:
        The times of all three, and the medians of drift and of memory blocks that a batch left.
    """
    batches = _count(options)
    fits = [_long_fit(batches) for _ in range(3)]
    title = f"null step, 1 handler an event, a batch of {batches} in one fit, three fits"
    rounds = {
        name: [t for group, _ in fits for t in group.rounds[name]] for name in fits[0][0].rounds
    }
    drift = statistics.median(_drift(group) for group, _ in fits)
    return Group(title, "us", rounds), drift, statistics.median(blocks for _, blocks in fits)


def _long_fit(batches: int) -> tuple[Group, float]:
    handlers, null = idle_handlers(1), Null()
    loader = _InChunks(batches, written_loop(handlers))
    with without_gc():
        subscribed(handlers).fit(1, Learner(null, null, null, DataBunch(loader)))
    tenth = CHUNKS // 10
    rounds = {}
    for name, seconds in (("hand-written loop", loader.by_hand), ("Runner", loader.fitted)):
        rounds[f"{name}, first tenth"] = list(seconds[:tenth])
        rounds[f"{name}, middle tenth"] = list(seconds[CHUNKS // 2 : CHUNKS // 2 + tenth])
        rounds[f"{name}, last tenth"] = list(seconds[-tenth:])
    left = (loader.blocks[-1] - loader.blocks[0]) / (batches - loader.size)
    return Group("a fit", "us", rounds), left


def _drift(group: Group) -> float:
    """Return the growth of a batch's time from first to last, that of the other loop taken off.

    The fastest chunk of a tenth stands for it: what disturbs one only makes it slower.
    """
    first, last = (
        group.time(f"Runner, {which} tenth").min
        / group.time(f"hand-written loop, {which} tenth").min
        for which in ("first", "last")
    )
    return last / first
