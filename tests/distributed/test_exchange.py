from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, strategies as st
from torch.distributed import HashStore

from eventtrain.distributed.exchange import NO_EXCHANGE, Exchange
from eventtrain.errors import RemoteError


def exchanges(
    store: HashStore, size: int, watch: Callable[[], Callable[[], object]] = lambda: lambda: None
) -> list[Exchange]:
    return [
        Exchange(lambda: store, "run/1", rank=rank, world_size=size, watch=watch)
        for rank in range(size)
    ]


def on_all(ranks: list[Exchange], work: Callable[[int, Exchange], Any]) -> list[Any]:
    """Each rank in a thread of its own."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(work, range(len(ranks)), ranks))


@given(
    texts=st.lists(st.lists(st.text(), min_size=3, max_size=3), min_size=1, max_size=5),
)
def test_every_rank_hears_what_all_have_said_in_the_order_of_ranks(texts: list[list[str]]) -> None:
    ranks = exchanges(HashStore(), 3)
    heard = on_all(ranks, lambda rank, say: [say(each[rank]) for each in texts])
    assert heard == [texts] * 3


def test_who_is_alone_hears_itself() -> None:
    assert NO_EXCHANGE("a") == ["a"]
    assert NO_EXCHANGE.for_thread()("b") == ["b"]
    NO_EXCHANGE.close()


def test_a_thread_of_each_rank_has_words_of_its_own() -> None:
    def talk(rank: int, say: Exchange) -> list[list[str]]:
        say("before")
        of_thread, heard = say.for_thread(), []
        thread = threading.Thread(target=lambda: heard.append(of_thread(f"thread {rank}")))
        thread.start()
        loud = say(f"loop {rank}")
        thread.join()
        return [loud, *heard]

    expected = [["loop 0", "loop 1"], ["thread 0", "thread 1"]]
    assert on_all(exchanges(HashStore(), 2), talk) == [expected, expected]


def test_nothing_is_left_in_the_store_when_all_have_closed() -> None:
    store = HashStore()

    def talk(rank: int, say: Exchange) -> None:
        for number in range(5):
            say(f"{number} of {rank}")
        say.for_thread()(f"thread {rank}")
        say.close()

    on_all(exchanges(store, 3), talk)
    assert store.num_keys() == 0


def test_one_that_has_said_nothing_does_not_ask_for_a_store() -> None:
    def connect() -> HashStore:
        raise AssertionError

    Exchange(connect, "run", rank=0, world_size=2, watch=lambda: lambda: None).close()


def test_a_wait_ends_when_what_watches_it_says_that_it_is_in_vain() -> None:
    def watch() -> Callable[[], object]:
        looks = iter(range(3))

        def look() -> None:
            if next(looks) == 2:
                raise RemoteError("rank 1 failed", [1])

        return look

    with pytest.raises(RemoteError, match="rank 1 failed"):
        exchanges(HashStore(), 2, watch)[0]("is anybody there")


def test_a_store_that_is_gone_does_not_keep_anybody_from_closing() -> None:
    class Gone(HashStore):
        is_gone = False

        def add(self, key: str, amount: int) -> int:
            if Gone.is_gone:
                raise RuntimeError("connection reset")
            return super().add(key, amount)

    def talk(rank: int, say: Exchange) -> None:
        say("a")
        Gone.is_gone = True
        say.close()

    on_all(exchanges(Gone(), 1), talk)
