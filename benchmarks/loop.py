"""What does the loop cost per batch, against the same loop written by hand?

With the null step the model, the loss and the optimizer do nothing, so that
only the loop is timed. The tiny step really trains a ``Linear(10, 1)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from eventtrain import DataBunch, Learner, Runner

from .measure import (
    Group,
    Options,
    Suite,
    Target,
    Variant,
    compare,
    distinct_functions,
    stopwatch,
)

EVENTS = (
    "begin_batch", "after_pred", "after_loss", "after_backward", "after_step", "after_batch",
)  # fmt: skip
Handlers = dict[str, list[Callable[[Any], None]]]
HAND_WRITTEN = "hand-written loop"
IN_A_FOR = "hand-written loop, for over handlers"
RUNNER = "Runner"


class Null:
    """Model, loss function, loss and optimizer in one: every call does nothing."""

    def __call__(self, *_: Any) -> Null:
        return self

    def train(self, mode: bool = True) -> None:
        """Do nothing."""

    def backward(self) -> None:
        """Do nothing."""

    def step(self) -> None:
        """Do nothing."""

    def zero_grad(self) -> None:
        """Do nothing."""


def run(options: Options) -> Suite:
    """Measure the null step, the tiny step and the set-up of a fit."""
    null, null_batches = null_learner, options.pick(10_000, 200)
    tiny, tiny_batches = _tiny_learner, options.pick(500, 50)
    groups, targets = [], []
    for count in (0, 1, 10):
        group = _batches("null step", null, null_batches, count, options)
        groups.append(group)
        if count == 0:
            text = "Runner without user handlers, a batch over the hand-written loop"
            targets.append(Target(text, group.difference(RUNNER).median, 1.2, "us"))
        if count == 10:
            text = "Runner with 10 handlers on 6 events, over six for loops written inline"
            targets.append(Target(text, group.ratio(RUNNER, IN_A_FOR).median, 1.5))
            text = "Runner with 10 handlers on 6 events, over sixty calls written inline"
            targets.append(Target(text, group.ratio(RUNNER).median, 1.5))
    groups += [_batches("tiny step", tiny, tiny_batches, count, options) for count in (0, 1, 10)]
    groups.append(_set_up(options))
    return Suite(groups, targets)


def null_learner(batches: int, options: Options) -> Learner:
    """Return a learner whose parts do nothing, over ``batches`` ready pairs."""
    null = Null()
    return Learner(null, null, null, DataBunch([(None, None)] * batches))


def _tiny_learner(batches: int, options: Options) -> Learner:
    generator = torch.Generator().manual_seed(options.seed)
    x = torch.randn(batches, 4, 10, generator=generator)
    y = torch.randn(batches, 4, 1, generator=generator)
    torch.manual_seed(options.seed)
    model = nn.Linear(10, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    return Learner(model, opt, F.mse_loss, DataBunch(list(zip(x, y, strict=True))))


def _batches(
    step: str,
    make: Callable[[int, Options], Learner],
    batches: int,
    count: int,
    options: Options,
) -> Group:
    handlers = {event: distinct_functions(count) for event in EVENTS}
    ways: dict[str, Callable[[Learner], object]] = {HAND_WRITTEN: written_loop(handlers)}
    if count:
        ways[IN_A_FOR] = written_loop(handlers, in_a_for=True)
    ways[RUNNER] = runner_loop(handlers)
    variants: dict[str, Variant] = {}
    for name, way in ways.items():
        learn = make(batches, options)
        variants[name] = stopwatch(partial(way, learn), batches)
    title = f"{step}, {count} handler{'s' * (count != 1)} on each of {len(EVENTS)} events, a batch"
    return _compare(title, variants, options)


def _set_up(options: Options) -> Group:
    variants: dict[str, Variant] = {}
    times = options.pick(100, 3)
    for count in (0, 10):
        handlers = {event: distinct_functions(count) for event in EVENTS}
        ways = {HAND_WRITTEN: written_loop(handlers), RUNNER: runner_loop(handlers)}
        for name, way in ways.items():
            if count and name == HAND_WRITTEN:
                continue
            learn = null_learner(1, options)
            label = f"{name}, {count} handlers an event" if name == RUNNER else name
            variants[label] = stopwatch(_repeated(way, learn, times), times)
    title = "null step, a whole fit of one batch (what a fit costs before its first batch)"
    return _compare(title, variants, options)


def _compare(title: str, variants: dict[str, Variant], options: Options) -> Group:
    return compare(title, "us", variants, rounds=options.pick(15, 2), passes=options.pick(5, 1))


def _repeated(way: Callable[[Learner], object], learn: Learner, times: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(times):
            way(learn)

    return work


def runner_loop(handlers: Handlers) -> Callable[[Learner], object]:
    """Return the fit of one epoch by a ``Runner`` with these handlers."""
    run = Runner()
    for event, functions in handlers.items():
        for function in functions:
            run.on(event, function)
    return lambda learn: run.fit(1, learn)


def written_loop(handlers: Handlers, *, in_a_for: bool = False) -> Callable[[Learner], object]:
    """Write the loop of one epoch by hand, the handlers' calls inline or in ``for`` loops.

    Without handlers it is what a tutorial shows. With them it must be generated,
    as nobody writes sixty calls; everything it uses is a local variable.
    """

    def calls(event: str) -> list[str]:
        if in_a_for:
            return [f"for handler in {event}: handler(run)"]
        return [f"{event}_{i}(run)" for i, _ in enumerate(handlers[event])]

    names = list(handlers) if in_a_for else [
        f"{event}_{i}" for event in handlers for i, _ in enumerate(handlers[event])
    ]  # fmt: skip
    body = [
        *calls("begin_batch"), "pred = model(xb)",
        *calls("after_pred"), "loss = loss_func(pred, yb)",
        *calls("after_loss"), "loss.backward()",
        *calls("after_backward"), "opt.step()",
        *calls("after_step"), "opt.zero_grad()",
        *calls("after_batch"),
    ]  # fmt: skip
    lines = [
        f"def fit(model, loss_func, opt, train_dl, run, {', '.join(names)}):",
        "    for xb, yb in train_dl:",
        *(f"        {line}" for line in body),
    ]
    namespace: dict[str, Any] = {}
    exec("\n".join(lines), namespace)
    fit = namespace["fit"]
    values: Sequence[Any] = list(handlers.values())
    if not in_a_for:
        values = [function for functions in handlers.values() for function in functions]

    def way(learn: Learner) -> object:
        return fit(learn.model, learn.loss_func, learn.opt, learn.data.train_dl, None, *values)

    return way
