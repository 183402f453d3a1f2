"""What does the loop cost per batch, against the same loop written by hand?

With the null step the model, the loss and the optimizer do nothing, so that
only the loop is timed. The tiny step really trains a ``Linear(10, 1)``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from eventtrain import Learner, Runner

from .counting import bytecodes, per_batch
from .loops import (
    EVENTS,
    Way,
    idle_handlers,
    null_learner,
    runner_loop,
    subscribed,
    tiny_learner,
    written_loop,
)
from .measure import Group, Options, Suite, Target, Variant, compare, stopwatch

HAND_WRITTEN = "hand-written loop"
IN_A_FOR = "hand-written loop, for over handlers"
RUNNER = "Runner"
NEVER = "Runner, bus never profiled"
CLOSED = "Runner, after a profile() block"
INSIDE = "Runner, inside of a profile() block"
MakeLearner = Callable[[int, Options], Learner]


def run(options: Options) -> Suite:
    """Measure the null step, the tiny step, the set-up of a fit, and profiling."""
    null, tiny = (null_learner, options.pick(10_000, 200)), (tiny_learner, options.pick(500, 50))
    nulls = [_batches("null step", *null, count, options) for count in (0, 1, 10)]
    tinies = [_batches("tiny step", *tiny, count, options) for count in (0, 1, 10)]
    # Fewer batches: inside of a profile every call of a handler is timed and kept.
    few = options.pick(1000, 50)
    profiled = [_profiled("null step", null_learner, few, count, options) for count in (0, 10)]
    profiled.append(_profiled("tiny step", tiny_learner, few // 5, 10, options))
    bare, ten, on = nulls[0], nulls[2], profiled[1]
    where = f"on {len(EVENTS)} events"
    targets = [
        Target("Runner without user handlers, a batch over the hand-written loop",
               bare.difference(RUNNER).median, 1.2, "us"),
        Target(f"Runner with 10 handlers {where}, over for loops written inline",
               ten.ratio(RUNNER, IN_A_FOR).median, 1.5),
        Target(f"Runner with 10 handlers {where}, over {10 * len(EVENTS)} calls written inline",
               ten.ratio(RUNNER).median, 1.5),
        Target("Runner after a profile() block has closed, over one never profiled",
               on.ratio(CLOSED, NEVER).median, 1.05),
    ]  # fmt: skip
    return Suite([*nulls, *tinies, _set_up(options), *profiled], targets, [_counted()])


def _batches(
    step: str, make: MakeLearner, batches: int, count: int, options: Options, device: str = "cpu"
) -> Group:
    handlers = idle_handlers(count)
    ways: dict[str, Way] = {HAND_WRITTEN: written_loop(handlers)}
    if count:
        ways[IN_A_FOR] = written_loop(handlers, in_a_for=True)
    ways[RUNNER] = runner_loop(handlers)
    variants = {
        name: stopwatch(partial(way, make(batches, options)), batches) for name, way in ways.items()
    }
    parameters = {name: {"handlers": count, "loop": name, "device": device} for name in ways}
    return _compare(_title(step, count), variants, options, parameters)


def _title(step: str, count: int) -> str:
    handlers = f"{count} handler{'s' * (count != 1)}"
    return f"{step}, {handlers} on each of {len(EVENTS)} events, a batch"


def _compare(
    title: str,
    variants: dict[str, Variant],
    options: Options,
    parameters: dict[str, dict[str, Any]] | None = None,
) -> Group:
    rounds, passes = options.pick(15, 2), options.pick(5, 1)
    return compare(title, "us", variants, rounds=rounds, passes=passes, parameters=parameters)


def _set_up(options: Options) -> Group:
    variants: dict[str, Variant] = {}
    times = options.pick(100, 3)
    for count in (0, 10):
        handlers = idle_handlers(count)
        ways = {HAND_WRITTEN: written_loop(handlers), RUNNER: runner_loop(handlers)}
        for name, way in ways.items():
            if count and name == HAND_WRITTEN:
                continue
            learn = null_learner(1, options)
            label = f"{name}, {count} handlers an event" if name == RUNNER else name
            variants[label] = stopwatch(_repeated(way, learn, times), times)
    title = "null step, a whole fit of one batch (what a fit costs before its first batch)"
    return _compare(title, variants, options)


def _repeated(way: Way, learn: Learner, times: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(times):
            way(learn)

    return work


def _profiled(step: str, make: MakeLearner, batches: int, count: int, options: Options) -> Group:
    handlers = idle_handlers(count)
    never, closed, inside = (subscribed(handlers) for _ in range(3))
    with closed.bus.profile():
        closed.fit(1, make(1, options))
    hand = written_loop(handlers)
    variants: dict[str, Variant] = {
        HAND_WRITTEN: stopwatch(partial(hand, make(batches, options)), batches),
        NEVER: stopwatch(partial(never.fit, 1, make(batches, options)), batches),
        CLOSED: stopwatch(partial(closed.fit, 1, make(batches, options)), batches),
        INSIDE: _in_profile(inside, make(batches, options), batches),
    }
    return _compare(f"profile(): {_title(step, count)}", variants, options)


def _in_profile(run: Runner, learn: Learner, batches: int) -> Variant:
    """Time a fit in a block of its own; entering and leaving the block are not timed."""

    def timed() -> float:
        with run.bus.profile():
            start = time.perf_counter()
            run.fit(1, learn)
            return (time.perf_counter() - start) / batches

    return timed


def _counted() -> str:
    """Say how many bytecode instructions a batch takes, which no noise can change."""
    handlers = idle_handlers(10)
    never, closed = subscribed(handlers), subscribed(handlers)
    with closed.bus.profile():
        closed.fit(1, null_learner(1))
    ways: dict[str, Way] = {
        HAND_WRITTEN: written_loop(handlers),
        NEVER: lambda learn: never.fit(1, learn),
        CLOSED: lambda learn: closed.fit(1, learn),
    }
    counts = {name: per_batch(bytecodes, way) for name, way in ways.items()}
    return "bytecode instructions a batch, null step, 10 handlers an event: " + "; ".join(
        f"{name}: {count:g}" for name, count in counts.items()
    )
