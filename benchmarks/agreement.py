"""How long do 2 to 256 ranks take to agree on where a cancelled scope is left?

All ranks are in this process. Each has its threads, and their connections to one real ``TCPStore``;
its loop stands in a batch when one of them asks, and then runs batches, in a thread as well, until
it has left what it was asked to leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import cycle
from typing import Any

from torch.distributed import HashStore, Store, TCPStore

from eventtrain import CancellationToken, Scope
from eventtrain.distributed import Agreement

from .measure import Group, Options, Suite, Target, compare, stopwatch

RANKS = (2, 4, 8, 16, 32, 64, 128, 256)
BATCH_S = 0.01
PER_RANK = "calls of the store a rank, for one request"


def run(options: Options) -> Suite:
    """Measure how long a request takes to be obeyed, the calls of the store, and a boundary."""
    counts = RANKS[:3] if options.quick else RANKS
    rounds, passes = options.pick(5, 1), options.pick(5, 1)
    found = {ranks: _requests(ranks, rounds, passes) for ranks in counts}
    seconds = {_name(ranks): each for ranks, (each, _) in found.items()}
    parameters = {_name(ranks): {"ranks": ranks} for ranks in counts}
    title = "from a request to the last rank out of its loop, in batches of 10 ms"
    answer = Group(title, "ms", seconds, parameters)
    calls = {ranks: count for ranks, (_, count) in found.items()}
    most = counts[-1]
    targets = [
        Target(f"from a request to the last of {most} ranks out of its loop",
               answer.time(_name(most)).median / 1000, 1.0, "s"),
        Target(f"{PER_RANK}: {most} ranks over {counts[1]}", calls[most] / calls[counts[1]], 1.5),
    ]  # fmt: skip
    notes = [f"{PER_RANK}: " + ", ".join(f"{n} ranks {calls[n]:.1f}" for n in counts)]
    notes.append(_outlook(most, answer, calls))
    return Suite([answer, _boundary(options)], targets, notes)


def _outlook(most: int, answer: Group, calls: dict[int, float]) -> str:
    """Say what ten thousand ranks would take by the slope between the largest and its half."""
    half = most // 2
    slope = (answer.time(_name(most)).median - answer.time(_name(half)).median) / (most - half)
    seconds = max(slope, 0.0) * 10_000 / 1000
    return (
        f"10,000 ranks, at {slope:.2f} ms for one rank more: about {seconds:.1f} s and "
        f"{10_000 * calls[most] / 1000:.0f} thousand calls of one store; here all ranks share this "
        "machine's CPUs and Python's lock, which ranks of their own do not"
    )


def _name(ranks: int) -> str:
    return f"{ranks} ranks"


class _Counted:
    """A client of the store that counts how often it is called."""

    def __init__(self, store: Store, calls: list[str]) -> None:
        self._store = store
        self._calls = calls
        self.timeout = store.timeout
        self.set_timeout = store.set_timeout  # which is no call: nothing is sent

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self._store, name)

        def counted(*arguments: Any) -> Any:
            self._calls.append(name)
            return function(*arguments)

        return counted


class _Rank:
    """A rank with a loop that is taken from boundary to boundary by hand."""

    def __init__(self, store: TCPStore, calls: list[str], rank: int, ranks: int) -> None:
        self.token = CancellationToken()
        self.agreement = Agreement(
            lambda: _Counted(store.clone(), calls), "run", self.token, rank=rank, world_size=ranks
        )
        self._rest = self._loop()

    def _loop(self) -> Iterator[None]:
        fit, train, batch = (Scope(self.token, name) for name in ("fit", "train", "batch"))
        self.agreement.enter(fit)
        with fit:
            while True:
                self.agreement.enter(train)
                with train:
                    self.agreement.enter(batch)
                    with batch:
                        yield
                    while True:
                        self.agreement.enter(batch)  # when asked, waits for the answer, and leaves
                        with batch:
                            time.sleep(BATCH_S)
                yield

    def go_on(self) -> None:
        next(self._rest)

    def end(self) -> None:
        try:
            self.agreement.end()
        finally:
            self.agreement.close()


def _requests(ranks: int, rounds: int, passes: int) -> tuple[list[float], float]:
    """Ask again and again, each time another rank.

    Returns:
        The seconds of every round, and the calls of the store a rank, for one request.
    """
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    calls: list[str] = []
    seconds = []
    with ThreadPoolExecutor(ranks) as pool:
        there = list(pool.map(lambda rank: _Rank(store, calls, rank, ranks), range(ranks)))
        asking = cycle(there)
        _request(next(asking), there, pool)  # warms them up
        calls.clear()
        for _ in range(rounds):
            seconds.append(min(_request(next(asking), there, pool) for _ in range(passes)))
        made = len(calls)
        list(pool.map(_Rank.end, there))
    return seconds, made / (rounds * passes * ranks)


def _request(asks: _Rank, there: list[_Rank], pool: Executor) -> float:
    for rank in there:
        rank.go_on()
    start = time.perf_counter()
    asks.token.cancel("train")
    list(pool.map(_Rank.go_on, there))
    return time.perf_counter() - start


def _boundary(options: Options) -> Group:
    """Measure what a batch pays for being one of several processes: a boundary."""
    count = options.pick(20_000, 200)
    store, token = HashStore(), CancellationToken()
    agreement = Agreement(lambda: store, "run", token, rank=0, world_size=1)
    train, batch = Scope(token, "train"), Scope(token, "batch")
    agreement.enter(train)

    def alone() -> None:
        for _ in range(count):
            with batch:
                pass

    def agreeing() -> None:
        for _ in range(count):
            agreement.enter(batch)
            with batch:
                pass

    try:
        with train:
            variants = {
                "its scope": stopwatch(alone, count),
                "its scope, and a boundary before it": stopwatch(agreeing, count),
            }
            title = "a batch with nothing in it, on one of several ranks"
            return compare(title, "us", variants, rounds=options.pick(11, 2), passes=3)
    finally:
        agreement.end()
        agreement.close()
