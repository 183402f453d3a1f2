"""Turns: one thread at a time, in a circle, each timed, and none left waiting."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks import turns
from benchmarks.turns import BATCHES, compare_in_turns, in_turns
from eventtrain import Learner, Runner

Make = Callable[..., Learner]


def noting(name: str, seen: list[str]) -> Callable[[Learner], None]:
    def way(learn: Learner) -> None:
        for loader in (learn.data.train_dl, learn.data.valid_dl):
            for _ in loader:
                seen.append(name)

    return way


def test_batches_are_taken_in_turns(make_learner: Make) -> None:
    seen: list[str] = []
    ways = {name: (noting(name, seen), make_learner(train=4, valid=2)) for name in "ab"}
    seconds = in_turns(ways)
    assert seen == ["a"] * BATCHES + ["b"] * BATCHES + seen[2 * BATCHES :]
    assert seen == (["a"] * BATCHES + ["b"] * BATCHES) * 3
    # The last turn is what is done after the last batches: here, nothing.
    assert {name: len(turns) for name, turns in seconds.items()} == {"a": 4, "b": 4}
    assert all(value > 0 for turns in seconds.values() for value in turns)


def test_who_has_fewer_batches_leaves_the_circle(make_learner: Make) -> None:
    seen: list[str] = []
    in_turns(
        {
            "short": (noting("short", seen), make_learner(train=1, valid=1)),
            "long": (noting("long", seen), make_learner(train=4, valid=2)),
        }
    )
    assert seen == ["short"] * 2 + ["long"] * 6


def test_training_in_turns_is_training(make_learner: Make) -> None:
    alone, in_turn = make_learner(), [make_learner(), make_learner()]
    loaders = in_turn[0].data.train_dl
    Runner().fit(1, alone)
    runs = [Runner(), Runner()]
    in_turns({str(i): (lambda learn, i=i: runs[i].fit(1, learn), in_turn[i]) for i in range(2)})
    for learner in in_turn:
        assert torch.equal(learner.model.weight, alone.model.weight)
    assert in_turn[0].data.train_dl is loaders


def test_the_first_failure_is_raised_and_ends_all(make_learner: Make) -> None:
    def fail(learn: Any) -> None:
        raise ZeroDivisionError("of the second")

    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="of the second"):
        in_turns({"a": (noting("a", []), make_learner()), "b": (fail, make_learner())})
    assert threading.active_count() == threads


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Does what Ctrl-C does, also where this process was started to ignore it."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    yield lambda: signal.pthread_kill(main, signal.SIGINT)
    signal.signal(signal.SIGINT, old)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_is_raised_after_all_have_ended(
    make_learner: Make, ctrl_c: Callable[[], None]
) -> None:
    ended: list[str] = []

    def interrupting(learn: Learner) -> None:
        try:
            for index, _ in enumerate(learn.data.train_dl):
                if index == BATCHES:
                    ctrl_c()
        finally:
            ended.append("interrupting")

    def waiting(learn: Learner) -> None:
        try:
            for _ in learn.data.train_dl:
                pass
        finally:
            ended.append("waiting")

    ways = {"a": (interrupting, make_learner(train=8)), "b": (waiting, make_learner(train=8))}
    with pytest.raises(KeyboardInterrupt):
        in_turns(ways)
    assert sorted(ended) == ["interrupting", "waiting"]


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_while_threads_are_still_being_started_leaves_none(
    make_learner: Make, ctrl_c: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class First(threading.Thread):
        def start(self) -> None:
            super().start()
            if self.name == "0":
                ctrl_c()

    names = iter("01")
    monkeypatch.setattr(turns, "Thread", lambda **options: First(name=next(names), **options))
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        in_turns({name: (noting(name, []), make_learner(train=8)) for name in "ab"})
    assert threading.active_count() == threads


def test_the_epoch_for_warming_up_does_not_count(make_learner: Make) -> None:
    seen: list[str] = []
    ways = {name: (noting(name, seen), make_learner(train=1, valid=1)) for name in "ab"}
    group = compare_in_turns("title", "ms", ways, rounds=2, passes=3)
    assert len(seen) == (1 + 2 * 3) * 4
    assert {name: len(rounds) for name, rounds in group.rounds.items()} == {"a": 2, "b": 2}
    assert group.baseline == "a"


def test_the_fastest_of_each_turn_is_added_up(
    make_learner: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = iter([{"a": [9.0, 9.0]}, {"a": [1.0, 5.0]}, {"a": [4.0, 2.0]}])
    monkeypatch.setattr("benchmarks.turns.in_turns", lambda ways: next(epochs))
    ways = {"a": (noting("a", []), make_learner())}
    group = compare_in_turns("title", "ms", ways, rounds=1, passes=2)
    assert group.rounds == {"a": [1.0 + 2.0]}
