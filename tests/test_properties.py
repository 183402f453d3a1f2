"""The loop against a small reference model, for any schedule of what handlers can do to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch import nn

from eventtrain import EVENTS, DataBunch, EventLog, Learner, Runner, ScopeNotOpenError

CLOSING = {event.name for event in EVENTS if event.kind == "closing"}
NAMES = [event.name for event in EVENTS if event.scope != "predict"]
SCOPES = ["fit", "epoch", "train", "validate", "batch", "step"]
Schedule = dict[tuple[str, int], list[tuple[str, str]]]
Trace = list[tuple[Any, ...]]


class Leave(Exception):
    """The model's own way out of a cancelled scope."""


class Planned(Exception):
    """An exception that the schedule asks for."""


class Reference:
    """The loop as the documentation describes it, written as plainly as it can be."""

    def __init__(self, epochs: int, train: int, valid: int, schedule: Schedule) -> None:
        self.schedule = schedule
        self.trace: Trace = []
        self.seen: Counter[str] = Counter()
        self.extra: set[str] = set()
        self.open: list[str] = []
        self.target: int | None = None
        self.outcome: str | None = None
        self.row_outcome: str | None = None
        self.in_train = False
        self.announced = False
        self.steps = self.n_iter = self.whole_epochs = 0
        self.error: str | None = None
        try:
            self.result = self.scope("fit", lambda: self.fit(epochs, train, valid))
        except Planned as error:
            self.result, self.error = "failed", str(error)

    def fit(self, epochs: int, train: int, valid: int) -> None:
        self.in_train = True
        self.point("begin_fit")
        for _ in range(epochs):
            self.epoch_with_row(lambda: self.epoch(train, valid))

    def epoch_with_row(self, epoch: Callable[[], None]) -> None:
        leaving = False
        try:
            self.scope("epoch", epoch)
        except Leave:
            leaving = True
        self.outcome = self.row_outcome
        try:
            self.fire("after_row")
        finally:
            self.outcome = None
        if leaving:
            raise Leave
        self.checkpoint()

    def epoch(self, train: int, valid: int) -> None:
        self.in_train = True
        self.point("begin_epoch")
        self.scope("train", lambda: self.phase("begin_train", True, train))
        if valid:
            self.scope("validate", lambda: self.phase("begin_validate", False, valid))

    def phase(self, begin: str, in_train: bool, batches: int) -> None:
        self.in_train = in_train
        self.point(begin)
        for _ in range(batches):
            self.scope("batch", self.batch)

    def batch(self) -> None:
        try:
            self.point("begin_batch")
            self.point("after_pred")
            self.point("after_loss")
            if self.in_train:
                self.point("after_backward")
                if self.scope("step", lambda: self.point("begin_step")) == "completed":
                    self.steps += 1
                    self.point("after_step")
        finally:
            self.n_iter += self.in_train

    def scope(self, name: str, body: Callable[[], None]) -> str:
        self.open.append(name)
        leaving, failure = False, None
        try:
            body()
        except Leave:
            leaving = True
        except Planned as error:
            failure = error
        self.open.pop()
        reached = self.target == len(self.open)
        if reached:
            self.target = None
        absorbed = reached and failure is None
        outcome = "failed" if failure else "cancelled" if leaving or absorbed else "completed"
        self.whole_epochs += name == "epoch" and outcome == "completed"
        if name == "epoch":
            self.row_outcome = outcome
        hooks = [f"after_{name}"] if name != "step" else []
        if absorbed:
            hooks.insert(0, f"after_cancel_{name}")
        if failure and not self.announced:
            self.announced = True
            hooks.insert(0, "fit_failed")
        errors = []
        for hook in hooks:
            self.outcome = outcome
            try:
                self.fire(hook)
            except Planned as error:
                errors.append(error)
            self.outcome = None
        if failure or errors:
            raise failure or errors[0]
        if leaving and not absorbed:
            raise Leave
        self.checkpoint()
        return outcome

    def point(self, event: str) -> None:
        self.fire(event)
        self.checkpoint()

    def checkpoint(self) -> None:
        if self.target is not None:
            raise Leave

    def fire(self, event: str) -> None:
        occurrence = self.seen[event]
        self.seen[event] += 1
        errors = []
        for handler in ["probe", *(["extra"] if event in self.extra else []), "last"]:
            if event not in CLOSING and self.target is not None:
                break
            self.note(handler, event)
            try:
                if handler == "probe":
                    for action, argument in self.schedule.get((event, occurrence), []):
                        self.act(action, argument, event)
            except Planned as error:
                if event not in CLOSING:
                    raise
                errors.append(error)
        if errors:
            raise errors[0]

    def note(self, handler: str, event: str) -> None:
        scope = self.open[-1] if self.open else None
        self.trace.append((handler, event, scope, self.outcome, self.in_train, self.n_iter))

    def act(self, action: str, argument: str, event: str) -> None:
        if action == "raise":
            raise Planned(f"{argument} in {event}")
        if action == "toggle":
            self.extra ^= {argument}
        elif argument in self.open:
            depth = len(self.open) - 1 - self.open[::-1].index(argument)
            self.target = depth if self.target is None else min(self.target, depth)
        else:
            self.trace.append(("refused", argument))


class CountingSGD(torch.optim.SGD):
    taken = 0

    def step(self, closure: Any = None) -> Any:
        self.taken += 1
        return super().step(closure)


class Real:
    """The same schedule on the real loop, with a real model."""

    def __init__(self, epochs: int, train: int, valid: int, schedule: Schedule) -> None:
        self.schedule = schedule
        self.trace: Trace = []
        self.seen: Counter[str] = Counter()
        self.extra: dict[str, Any] = {}
        model = nn.Linear(1, 1)
        self.opt = CountingSGD(model.parameters(), lr=0.1)
        batch = (torch.ones(2, 1), torch.zeros(2, 1))
        data = DataBunch([batch] * train, [batch] * valid if valid else None)
        self.log = EventLog()
        self.run = Runner(self.log)
        for event in NAMES:
            self.run.on(event, self.probe(event), priority=2)
            self.run.on(event, self.record("last", event), priority=-2)
        self.error: str | None = None
        try:
            self.run.fit(epochs, Learner(model, self.opt, nn.functional.mse_loss, data))
        except Planned as error:
            self.error = str(error)

    def record(self, handler: str, event: str) -> Callable[[Runner], None]:
        def note(run: Runner) -> None:
            assert run.model.training is run.in_train
            entry = (handler, event, run.token.scope, run.outcome, run.in_train, run.n_iter)
            self.trace.append(entry)

        return note

    def probe(self, event: str) -> Callable[[Runner], None]:
        note = self.record("probe", event)

        def act(run: Runner) -> None:
            occurrence = self.seen[event]
            self.seen[event] += 1
            note(run)
            for action, argument in self.schedule.get((event, occurrence), []):
                if action == "raise":
                    raise Planned(f"{argument} in {event}")
                if action == "toggle":
                    self.toggle(argument)
                    continue
                try:
                    run.token.cancel(argument, f"planned in {event}")
                except ScopeNotOpenError:
                    self.trace.append(("refused", argument))

        return act

    def toggle(self, event: str) -> None:
        if event in self.extra:
            self.extra.pop(event).disconnect()
        else:
            self.extra[event] = self.run.on(event, self.record("extra", event), priority=0)


actions = st.one_of(
    st.tuples(st.just("cancel"), st.sampled_from(SCOPES)),
    st.tuples(st.just("cancel"), st.sampled_from(SCOPES)),
    st.tuples(st.just("raise"), st.sampled_from(["first", "second"])),
    st.tuples(st.just("toggle"), st.sampled_from(NAMES)),
)
schedules = st.dictionaries(
    st.tuples(st.sampled_from(NAMES), st.integers(0, 3)),
    st.lists(actions, min_size=1, max_size=3),
    max_size=6,
)


@pytest.mark.slow
@settings(max_examples=2000)
@given(st.integers(0, 2), st.integers(1, 3), st.integers(0, 2), schedules)
@example(1, 2, 1, {("after_backward", 0): [("cancel", "batch")]})
@example(2, 2, 1, {("begin_train", 0): [("cancel", "train")]})
@example(2, 1, 1, {("begin_epoch", 1): [("cancel", "epoch")]})
@example(2, 1, 0, {("after_epoch", 0): [("cancel", "fit")]})
@example(1, 2, 0, {("begin_step", 1): [("cancel", "step")]})
@example(
    1, 1, 1, {("after_batch", 0): [("raise", "first")], ("after_train", 0): [("raise", "second")]}
)
@example(
    1, 2, 0, {("after_pred", 0): [("cancel", "train")], ("after_batch", 0): [("raise", "first")]}
)
@example(
    1,
    1,
    1,
    {
        ("begin_batch", 1): [("raise", "first")],
        ("fit_failed", 0): [("toggle", "after_batch")],
    },
)
def test_the_loop_follows_the_reference_for_any_schedule(
    epochs: int, train: int, valid: int, schedule: Schedule
) -> None:
    expected = Reference(epochs, train, valid, schedule)
    real = Real(epochs, train, valid, schedule)
    assert real.trace == expected.trace
    assert real.error == expected.error
    result = real.run.result
    assert result is not None
    assert result.outcome == expected.result
    assert (result.steps, real.opt.taken) == (expected.steps, expected.steps)
    assert result.epochs == expected.whole_epochs


@settings(max_examples=500)
@given(st.integers(0, 2), st.integers(1, 3), st.integers(0, 2), schedules)
@example(2, 1, 1, {("after_validate", 0): [("cancel", "fit"), ("raise", "first")]})
def test_an_event_log_holds_the_trace_of_the_reference(
    epochs: int, train: int, valid: int, schedule: Schedule
) -> None:
    expected = Reference(epochs, train, valid, schedule)
    logged = [
        (line["event"], line["scope"], line["outcome"])
        for line in Real(epochs, train, valid, schedule).log.records
    ]
    fired = [entry for entry in expected.trace if entry[0] == "probe"]
    assert logged == [(event, scope, outcome) for _, event, scope, outcome, *_ in fired]


@settings(max_examples=150)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(0, 2), schedules)
def test_every_scope_that_was_begun_is_closed_once_in_reverse_order(
    epochs: int, train: int, valid: int, schedule: Schedule
) -> None:
    open_scopes: list[str] = []
    for handler, event, *_ in (e for e in Real(epochs, train, valid, schedule).trace if len(e) > 2):
        kind, _, scope = event.partition("_")
        if handler != "probe" or scope not in SCOPES or scope == "step":
            continue
        if kind == "begin":
            open_scopes.append(scope)
        elif kind == "after":
            assert open_scopes.pop() == scope
    assert open_scopes == []
