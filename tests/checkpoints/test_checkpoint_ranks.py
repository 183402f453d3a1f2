from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from eventtrain.checkpoints.ranks import Ranks
from eventtrain.distributed.exchange import Exchange
from eventtrain.errors import CheckpointError, RemoteError

Deed = Callable[[], Any]


def together(*deeds: Deed) -> list[Any]:
    """What comes of it on each rank: a result, or what was raised."""
    store, size = HashStore(), len(deeds)

    def on_rank(rank: int) -> Any:
        exchange = Exchange(
            lambda: store, "run", rank=rank, world_size=size, watch=lambda: lambda: None
        )
        try:
            return Ranks(exchange, rank, size).together("write x", deeds[rank])
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(on_rank, range(size)))


def fails(error: Exception) -> Deed:
    def deed() -> None:
        raise error

    return deed


def test_all_hear_what_came_of_it_on_each() -> None:
    assert together(lambda: 1, lambda: ["b"], lambda: None) == [[1, ["b"], None]] * 3


def test_what_fails_on_one_is_raised_on_all() -> None:
    first, second, third = together(lambda: 1, fails(OSError("disk full")), lambda: 3)
    for each in (first, second, third):
        assert isinstance(each, CheckpointError)
        assert str(each) == "cannot write x: rank 1: OSError: disk full"
    assert isinstance(second.__cause__, OSError)
    assert first.__cause__ is None


def test_all_that_have_failed_are_named() -> None:
    first, _ = together(fails(CheckpointError("no room")), fails(ValueError("b")))
    assert str(first) == "cannot write x: rank 0: no room; rank 1: ValueError: b"


def test_a_failure_elsewhere_is_no_matter_of_the_checkpoint() -> None:
    error = RemoteError("rank 1 failed", [1])
    with pytest.raises(RemoteError):
        Ranks(size=2).together("write x", fails(error))


def test_a_process_that_is_alone_raises_what_it_met() -> None:
    with pytest.raises(OSError, match="disk full"):
        Ranks().together("write x", fails(OSError("disk full")))
    tensor = torch.ones(1)
    assert Ranks().together("write x", lambda: tensor) == [tensor]
