from __future__ import annotations

from itertools import accumulate

from hypothesis import given, strategies as st

from eventtrain.checkpoints.pace import Pace

batches = st.lists(st.floats(1e-3, 50), min_size=1, max_size=200)


def due_at(pace: Pace, now: list[float], lasting: list[float], agree: object = None) -> int | None:
    """The number of the first batch at whose end a pace is due."""
    for number, end in enumerate(accumulate(lasting), 1):
        now[0] = end
        if pace.is_due(agree):  # type: ignore[arg-type]
            return number
    return None


@given(lasting=batches, seconds=st.floats(0.01, 100))
def test_who_is_alone_is_due_at_the_first_batch_for_which_the_time_has_passed(
    lasting: list[float], seconds: float
) -> None:
    now = [0.0]
    found = due_at(Pace(seconds, lambda: now[0]), now, lasting)
    assert found == next(
        (number for number, end in enumerate(accumulate(lasting), 1) if end >= seconds), None
    )


def test_ranks_ask_in_the_next_batch_once_the_seconds_are_others() -> None:
    now = [0.0]
    pace = Pace(1e9, lambda: now[0])
    said: list[float] = []

    def agree(seconds: float) -> float:
        said.append(seconds)
        return seconds

    for _ in range(9):
        now[0] += 1
        assert not pace.is_due(agree)
    pace.change_to(10)
    now[0] += 1
    assert pace.is_due(agree)
    assert said == [1, 2, 4, 8, 10]


@given(first=batches, second=batches, seconds=st.floats(0.01, 100))
def test_ranks_ask_each_other_at_the_same_batches_whatever_their_clocks_say(
    first: list[float], second: list[float], seconds: float
) -> None:
    length = min(len(first), len(second))
    said: list[float] = []
    asked: list[list[int]] = [[], []]
    found = []
    for rank, lasting in enumerate((first, second)):
        now, batch, answers = [0.0], [0], iter(list(said))

        def agree(
            passed: float,
            rank: int = rank,
            batch: list[int] = batch,
            answers: object = answers,
        ) -> float:
            asked[rank].append(batch[0])
            if rank == 0:
                said.append(passed)
                return passed
            return next(answers)  # type: ignore[call-overload,no-any-return]

        pace, due = Pace(seconds, lambda now=now: now[0]), None  # type: ignore[misc]
        for end in list(accumulate(lasting))[:length]:
            now[0], batch[0] = end, batch[0] + 1
            if pace.is_due(agree):
                due = batch[0]
                break
        found.append(due)
    assert asked[0] == asked[1]
    assert found[0] == found[1]


@given(length=st.integers(1, 5000))
def test_they_ask_seldom_while_batches_take_as_long_as_they_did(length: int) -> None:
    now, asked = [0.0], 0

    def agree(passed: float) -> float:
        nonlocal asked
        asked += 1
        return passed

    pace = Pace(1e9, lambda: now[0])
    for _ in range(length):
        now[0] += 1
        assert not pace.is_due(agree)
    assert asked <= length.bit_length()


@given(each=st.floats(1e-3, 10), count=st.integers(1, 3000))
def test_batches_of_one_length_are_due_at_the_batch_where_one_process_would_be(
    each: float, count: int
) -> None:
    seconds, now = each * count, [0.0]
    pace = Pace(seconds, lambda: now[0])
    for batch in range(1, count + 3):
        now[0] = batch * each
        if pace.is_due(lambda passed: passed):
            break
    assert abs(batch - count) <= 1  # rounding


def test_a_restart_begins_to_count_anew() -> None:
    now = [0.0]
    pace = Pace(10, lambda: now[0])
    now[0] = 9
    assert not pace.is_due()
    pace.restart()
    now[0] = 18
    assert not pace.is_due()
    now[0] = 19
    assert pace.is_due()
