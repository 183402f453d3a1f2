"""What ranks tell each other of the batches that they have cancelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from eventtrain import DesyncError
from eventtrain.distributed.groups import Group
from eventtrain.distributed.tallies import Tallies


class Store:
    """A store of which each rank has a part; before a look of rank 0, others may go on."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.before_look: Callable[[], object] = lambda: None

    def set(self, key: str, value: str) -> None:
        self.data[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        self.before_look()
        return all(key in self.data for key in keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self.data[key] for key in keys]

    def delete_key(self, key: str) -> bool:
        return self.data.pop(key, None) is not None


@dataclass(frozen=True)
class Ranks(Group):
    """A group whose ranks share a dictionary."""

    store: Any = None

    def connect(self) -> Any:
        return self.store


def tallies(store: Store, rank: int, lost_after: float = 5.0) -> Tallies:
    group = Ranks(rank=rank, world_size=2, store=store)
    return Tallies(group, "run", lost_after, check=lambda: None)


PLACE = ", epoch 0, batch 3"


@pytest.mark.parametrize("look", range(1, 7))
def test_a_rank_that_ends_the_phase_while_another_looks_has_cancelled_alike(look: int) -> None:
    store = Store()
    first, second = tallies(store, 0), tallies(store, 1)
    looks = 0

    def go_on() -> None:
        nonlocal looks
        looks += 1
        if looks == look:
            store.before_look = lambda: None
            second.count("batch", PLACE)
            second.meet(PLACE)
            store.set("run/tally/0/1", "{}")  # the phase is over for it

    store.before_look = go_on
    first.count("batch", PLACE)
    first.meet(PLACE)
    assert looks == look, "the other rank has come in between"


def test_a_rank_that_has_ended_the_phase_without_cancelling_is_named() -> None:
    store = Store()
    first = tallies(store, 0)
    store.set("run/tally/0/1", "{}")
    first.count("batch", PLACE)
    with pytest.raises(DesyncError, match="the batch at epoch 0, batch 3, and rank 1 has"):
        first.meet(PLACE)


def test_a_rank_that_has_cancelled_another_batch_is_named() -> None:
    store = Store()
    first = tallies(store, 0)
    store.set("run/left/0/1/1", "epoch 0, batch 4")
    first.count("batch", PLACE)
    with pytest.raises(DesyncError, match="rank 1 that at epoch 0, batch 4"):
        first.meet(PLACE)
