"""Whatever the order in which the threads of all ranks run, down to the bytecode."""

from __future__ import annotations

from pathlib import Path as File
from random import Random

import pytest
from hypothesis import given, settings, strategies as st
from ranks import PHASES, Place, Scenario, Shape, agreed_in, check, play

from eventtrain.cancellation import Request
from eventtrain.distributed import AGREED, Agreement, agreement
from eventtrain.distributed.boundary import Boundary
from eventtrain.distributed.paths import Path
from eventtrain.distributed.watcher import Watcher

FILES = {str(path) for path in File(agreement.__file__).parent.glob("*.py")} | {__file__}
SCOPES = [name for name in AGREED if name != "predict"]
seeds = st.integers(0, 2**32)


def places(shape: Shape) -> list[Place]:
    """Everywhere in a loop, with each scope that is open there."""
    found: list[Place] = []
    for epoch, counts in enumerate(shape):
        found += [((epoch,), "fit"), ((epoch,), "epoch")]
        for phase, count in enumerate(counts):
            for batch in range(count):
                names = ("fit", "epoch", PHASES[phase])
                found += [((epoch, phase, batch), name) for name in names]
    return found


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Two to four ranks, of unequal lengths, some of which ask."""
    size = draw(st.integers(2, 4))
    epochs = draw(st.integers(1, 3))
    counts = st.tuples(st.integers(1, 4), st.integers(0, 3))
    shapes = [draw(st.lists(counts, min_size=epochs, max_size=epochs)) for _ in range(size)]
    asks = [draw(st.lists(st.sampled_from(places(shape)), max_size=2)) for shape in shapes]
    others = st.lists(st.tuples(st.integers(0, size - 1), st.sampled_from(SCOPES)), max_size=2)
    return Scenario(shapes, asks, draw(others))


@given(scenarios(), seeds)
@settings(max_examples=120)
def test_all_ranks_do_what_was_agreed_on_and_no_more_for_any_schedule(
    scenario: Scenario, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        traces, store = play(scenario, Random(seed), patch.setattr, FILES)
    check(scenario, traces, store)


def all_ask_in(place: Path, size: int) -> Scenario:
    return Scenario([[(6, 0)]] * size, [[(place, "fit")]] * size)


@given(st.integers(0, 5), st.integers(2, 4), seeds)
@settings(max_examples=60)
def test_what_all_ask_for_in_one_batch_ends_with_that_batch(
    batch: int, size: int, seed: int
) -> None:
    scenario = all_ask_in((0, 0, batch), size)
    with pytest.MonkeyPatch.context() as patch:
        traces, store = play(scenario, Random(seed), patch.setattr, FILES)
    check(scenario, traces, store)
    assert [last for _, last, _ in agreed_in(store)] == [(0, 0, batch)]


@given(scenarios(), seeds, st.data())
@settings(max_examples=60)
def test_when_one_fails_all_others_say_so_for_any_schedule(
    scenario: Scenario, seed: int, data: st.DataObject
) -> None:
    failing = data.draw(st.integers(0, len(scenario.shapes) - 1))
    scenario.fails_at = failing, (0, 0, 0)
    scenario.asks, scenario.others = [[] for _ in scenario.asks], []
    with pytest.MonkeyPatch.context() as patch:
        traces, store = play(scenario, Random(seed), patch.setattr, FILES)
    message = f"rank {failing} failed: ZeroDivisionError: no luck (in a batch)"
    for rank, trace in enumerate(traces):
        assert trace.failure == (None if rank == failing else message)
    assert store.data == {}


class LooksFirst(Boundary):
    """Its loop looks, and then writes."""

    def _reach(self, path: Path) -> None:
        if self._standing.is_held:
            self._wait_at(path)
        else:
            self._standing.position = path


class TakesNothingBack(Boundary):
    """Its loop waits at the position that it has not begun."""

    def _reach(self, path: Path) -> None:
        self._standing.position = path
        if self._standing.is_held:
            self._wait_at(path)


class Deaf(Agreement):
    """Its loop is not held when it asks, only when all are asked."""

    def ask(self, request: Request) -> None:
        super().ask(request)
        self._standing.is_held = False


class AnswersFirst(Watcher):
    """Looks where the loop is, and then writes that there is a request."""

    def _look(self, index: int) -> Path:
        position = self._standing.position
        super()._look(index)
        return position


ALL_IN_ONE_BATCH = all_ask_in((0, 0, 2), 2)
AGAIN_AND_AGAIN = Scenario(
    [[(4, 0)] * 4] * 2, [[((epoch, 0, 1), "train") for epoch in range(4)], []]
)


def has_fault(scenario: Scenario, part: str, other: type, schedules: int = 1000) -> bool:
    """Whether the checks object to one of the schedules, with another class for a part."""
    for seed in range(schedules):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(agreement, part, other)
            try:
                traces, store = play(scenario, Random(seed), patch.setattr, FILES)
                check(scenario, traces, store)
                if scenario is ALL_IN_ONE_BATCH:
                    assert [last for _, last, _ in agreed_in(store)] == [(0, 0, 2)]
            except AssertionError:
                return True
    return False


@pytest.mark.parametrize(
    ("scenario", "part", "other"),
    [
        pytest.param(AGAIN_AND_AGAIN, "Boundary", LooksFirst, id="the loop looks before it writes"),
        pytest.param(AGAIN_AND_AGAIN, "Watcher", AnswersFirst, id="the watcher does"),
        pytest.param(ALL_IN_ONE_BATCH, "Boundary", TakesNothingBack, id="nothing is taken back"),
        pytest.param(ALL_IN_ONE_BATCH, "Agreement", Deaf, id="who asks goes on"),
    ],
)
def test_the_checks_find_the_fault_in_another_order_of_things(
    scenario: Scenario, part: str, other: type
) -> None:
    assert has_fault(scenario, part, other)


@pytest.mark.parametrize("scenario", [ALL_IN_ONE_BATCH, AGAIN_AND_AGAIN], ids=["one", "again"])
def test_the_checks_find_no_fault_in_the_right_order(scenario: Scenario) -> None:
    assert not has_fault(scenario, "Agreement", Agreement, schedules=100)
