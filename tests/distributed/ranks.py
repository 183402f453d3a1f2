"""A loop of scopes on several ranks, and the same loop as it should run by what was agreed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

from schedules import DictStore, Schedule

from eventtrain import CancellationToken, Scope, ScopeNotOpenError
from eventtrain.cancellation import Cancellation, Outcome
from eventtrain.distributed import Agreement, agreement
from eventtrain.distributed.paths import END, Path
from eventtrain.errors import RemoteError

Shape = list[tuple[int, int]]
"""For each epoch, how many batches of training and of validation there are."""
Place = tuple[Path, str]
"""Where somebody asks, and for which scope."""
PHASES = ("train", "validate")


@dataclass
class Trace:
    """What a rank has begun, in order, and how it ended."""

    begun: list[Path] = field(default_factory=list)
    ended: list[tuple[Path, Outcome | None]] = field(default_factory=list)
    history: list[Cancellation] = field(default_factory=list)
    failure: str | None = None


class Rank:
    """Runs the loop on one rank, with the real token, scopes and agreement."""

    def __init__(
        self,
        shape: Shape,
        token: CancellationToken,
        agreement: Agreement,
        asks: Iterable[Place] = (),
        fails_at: Path | None = None,
        at_batch: Callable[[], object] = lambda: None,
    ) -> None:
        self.shape, self.token, self.agreement = shape, token, agreement
        self.asks, self.fails_at, self.at_batch = list(asks), fails_at, at_batch
        self.trace, self.known = Trace(), token.accepted
        names = ("fit", "epoch", *PHASES, "batch")
        self.scopes = {name: Scope(token, name) for name in names}

    def __call__(self) -> Trace:
        try:
            self.fit()
            self.agreement.end()
        except RemoteError as error:
            self.trace.failure = str(error)
        except ZeroDivisionError as error:
            self.agreement.fail(error, "in a batch")
        finally:
            self.agreement.close()
        self.trace.history = self.token.accepted_since(self.known)
        return self.trace

    def fit(self) -> None:
        with self.scope("fit", ()):
            for epoch, counts in enumerate(self.shape):
                with self.scope("epoch", (epoch,)):
                    for phase, (name, count) in enumerate(zip(PHASES, counts, strict=True)):
                        with self.scope(name, (epoch, phase)):
                            for batch in range(count):
                                with self.scope("batch", (epoch, phase, batch)):
                                    self.at_batch()

    @contextmanager
    def scope(self, name: str, path: Path) -> Iterator[None]:
        scope = self.scopes[name]
        self.agreement.enter(scope)
        self.trace.begun.append(path)
        try:
            with scope:
                if path == self.fails_at:
                    raise ZeroDivisionError("no luck")
                for place, asked in self.asks:
                    if place == path:
                        self.token.cancel(asked, f"at {place}")
                yield
                if name != "batch":
                    self.agreement.leave(scope)
        finally:
            self.trace.ended.append((path, scope.outcome))


class Leave(Exception):
    def __init__(self, aim: Path) -> None:
        self.aim = aim


def as_agreed(shape: Shape, agreed: Iterable[tuple[Path, Path]]) -> Trace:
    """What a rank of this shape should do, by the aims and last positions that were agreed on."""
    to_do, trace, open_paths = list(agreed), Trace(), set[Path]()

    def boundary(path: Path) -> None:
        while to_do and to_do[0][1] < path:
            aim, _ = to_do.pop(0)
            if aim in open_paths:
                raise Leave(aim)

    def run(path: Path, inside: list[Any]) -> None:
        boundary(path)
        trace.begun.append(path)
        open_paths.add(path)
        outcome: Outcome = "completed"
        try:
            for number, each in enumerate(inside):
                run((*path, number), each)
            if len(path) < 3:
                boundary((*path, END))
        except Leave as leave:
            outcome = "cancelled"
            if leave.aim != path:
                raise
        finally:
            open_paths.remove(path)
            trace.ended.append((path, outcome))

    run((), [[[[] for _ in range(count)] for count in counts] for counts in shape])
    return trace


def agreed_in(store: DictStore) -> list[tuple[Path, Path, dict[str, Any]]]:
    """The aims, last positions and records in the log, without signs of life."""
    entries = [json.loads(text) for text in store.log.values()]
    found = []
    for asked, answer in pairwise(entries):
        if asked["kind"] == "asked" and asked["record"] is not None and answer["kind"] == "agreed":
            found.append((tuple(asked["aim"]), tuple(answer["last"]), asked["record"]))
    return found


@dataclass
class Scenario:
    """What happens on each rank.

    Attributes:
        shapes: Of the loop, by rank.
        asks: By rank, what its handlers ask for and where.
        others: The scopes that other threads ask for, at any moment, with the rank.
        fails_at: The rank that fails, and where.
    """

    shapes: list[Shape]
    asks: list[list[Place]]
    others: list[tuple[int, str]] = field(default_factory=list)
    fails_at: tuple[int, Path] | None = None


def play(
    scenario: Scenario,
    dice: Random,
    patch: Callable[[object, str, object], None],
    files: Iterable[str],
) -> tuple[list[Trace], DictStore]:
    """Run all ranks by a schedule of the dice; return their traces, and the store."""
    schedule = Schedule(dice, frozenset(files))
    schedule.stand_in(patch)
    store, size = DictStore(schedule), len(scenario.shapes)
    traces: dict[int, Trace] = {}
    tokens = [CancellationToken() for _ in range(size)]

    def rank(number: int) -> None:
        make = agreement.Agreement  # a test may have put another there
        part = make(
            lambda: store, "run", tokens[number], rank=number, world_size=size, lost_after=1
        )
        failing = scenario.fails_at
        traces[number] = Rank(
            scenario.shapes[number],
            tokens[number],
            part,
            scenario.asks[number],
            failing[1] if failing is not None and failing[0] == number else None,
            schedule.may_end,
        )()

    def other(number: int, scope: str) -> None:
        for _ in range(dice.randrange(60)):
            schedule.may_end()
        with suppress(ScopeNotOpenError):
            tokens[number].cancel(scope, "from another thread")

    for number in range(size):
        schedule.start(lambda number=number: rank(number))  # type: ignore[misc]
    for number, scope in scenario.others:
        schedule.start(lambda number=number, scope=scope: other(number, scope))  # type: ignore[misc]
    schedule.run()
    return [traces[number] for number in range(size)], store


def check(scenario: Scenario, traces: list[Trace], store: DictStore) -> None:
    """See that all ranks did what was agreed on, all of it and no more, and say the same."""
    agreed = agreed_in(store)
    for shape, trace in zip(scenario.shapes, traces, strict=True):
        expected = as_agreed(shape, [(aim, last) for aim, last, _ in agreed])
        assert trace.begun == expected.begun
        assert trace.ended == expected.ended
        assert trace.history == [Cancellation(**record) for _, _, record in agreed]
        assert trace.failure is None
    assert store.data == {}
