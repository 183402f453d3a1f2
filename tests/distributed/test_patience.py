from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from eventtrain.distributed import patience
from eventtrain.distributed.patience import SOON, Patience
from eventtrain.errors import RemoteError


class Others:
    """What an agreement knows of other ranks; it counts how often it is asked."""

    def __init__(self) -> None:
        self.failure: RemoteError | None = None
        self.asked, self.is_answered = 0, False

    def ask_who_is_there(self) -> Callable[[], bool]:
        self.asked += 1
        return lambda: self.is_answered


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def patience_of(others: Others, *, is_interrupted: bool = False) -> Patience:
    token: Any = SimpleNamespace(is_interrupted=is_interrupted)
    agreement: Any = others
    return Patience(agreement, token)


def test_a_short_wait_asks_nobody(clock: list[float]) -> None:
    others = Others()
    look = patience_of(others)
    clock[0] += SOON - 0.1
    look()
    assert others.asked == 0


def test_a_long_wait_asks_once_and_again_when_all_have_answered(clock: list[float]) -> None:
    others = Others()
    look = patience_of(others)
    for _ in range(10):
        clock[0] += SOON
        look()
    assert others.asked == 1
    others.is_answered = True
    look()
    clock[0] += SOON
    look()
    assert others.asked == 2


def test_a_failure_of_another_rank_ends_the_wait(clock: list[float]) -> None:
    others = Others()
    look = patience_of(others)
    others.failure = RemoteError("rank 1 failed: ValueError", [1])
    with pytest.raises(RemoteError, match="rank 1 failed: ValueError") as caught:
        look()
    assert caught.value.ranks == others.failure.ranks


def test_a_signal_has_others_asked_at_once_and_waited_for_no_longer_than_soon(
    clock: list[float],
) -> None:
    others = Others()
    look = patience_of(others, is_interrupted=True)
    look()
    assert others.asked == 1
    clock[0] += SOON
    look()
    clock[0] += 0.1
    with pytest.raises(RemoteError, match="no sign of life"):
        look()


def test_a_signal_lets_those_who_answer_take_as_long_as_they_need(clock: list[float]) -> None:
    others = Others()
    others.is_answered = True
    look = patience_of(others, is_interrupted=True)
    for _ in range(20):
        clock[0] += SOON
        look()
    assert others.asked > 5
