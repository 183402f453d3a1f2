"""Processes of one attempt find one another in a store that the last attempt has left things in."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from hypothesis import given, settings, strategies as st
from torch import distributed as dist

from eventtrain.distributed.meeting import meet

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")
LONG, SHORT = timedelta(seconds=20), timedelta(seconds=0.2)


def met(store: dist.Store, delays: dict[int, float], size: int, timeout: timedelta) -> list[object]:
    """What comes of the ranks that have a delay (in seconds): a part of the store or an error."""
    came: dict[int, object] = {}

    def come(rank: int) -> None:
        time.sleep(delays[rank])
        try:
            came[rank] = meet(store, rank, size, timeout)
        except TimeoutError as error:
            came[rank] = error

    ranks = [threading.Thread(target=come, args=(rank,)) for rank in delays]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return [came[rank] for rank in sorted(came)]


@settings(max_examples=30)
@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 0.01, 0.04]), min_size=2, max_size=4),
        min_size=1,
        max_size=3,
    )
)
def test_each_attempt_has_a_part_of_the_store_of_its_own(attempts: list[list[float]]) -> None:
    store = dist.HashStore()
    for delays in attempts:
        parts = met(store, dict(enumerate(delays)), len(delays), LONG)
        parts[0].set("address", "mine")  # type: ignore[attr-defined]
        assert all(part.get("address") == b"mine" for part in parts)  # type: ignore[attr-defined]
        assert all(not part.check(["of the last"]) for part in parts)  # type: ignore[attr-defined]
        parts[0].set("of the last", "old")  # type: ignore[attr-defined]


def test_a_rank_that_was_lost_before_all_had_met_does_not_count_later() -> None:
    store = dist.HashStore()
    met(store, {1: 0.0, 2: 0.0}, 3, SHORT)  # rank 0 never came
    first, *others = met(store, {0: 0.0, 1: 0.1, 2: 0.0}, 3, LONG)
    first.set("key", "value")  # type: ignore[attr-defined]
    assert [part.get("key") for part in others] == [b"value"] * 2  # type: ignore[attr-defined]


def test_rank_zero_names_those_who_have_not_come() -> None:
    (error,) = [
        e for e in met(dist.HashStore(), {0: 0, 1: 0}, 3, SHORT) if isinstance(e, Exception)
    ]
    assert isinstance(error, TimeoutError)
    assert "2 others" in str(error)
    assert "1 have; never seen: ranks [2]" in str(error)


def test_another_rank_tells_that_rank_zero_has_not_come() -> None:
    (error,) = met(dist.HashStore(), {1: 0.0}, 2, SHORT)
    assert isinstance(error, TimeoutError)
    assert "rank 1 has waited 0:00:00.200000 for rank 0" in str(error)
