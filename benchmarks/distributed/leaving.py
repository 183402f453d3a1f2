"""From a request on one rank to the last rank out of its loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .loops import train_until
from .work import Batches, Case, Work, everywhere

THREAD, HANDLER = "asked by a thread", "asked by a handler"
BY_HAND = "by hand, a flag reduced and read a batch"
FIRST, LATEST = 5, 25
"""Batches between which somebody asks."""


class Endless:
    """Batches without an end, which are told to be very many."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return 10**6

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from self.batches


def leaving(case: Case, batches: Batches, seed: int, requests: int) -> dict[str, list[float]]:
    """Return by who asks the seconds from each request until the last rank has left its loop.

    The ranks ask by turns, each time while another batch runs.
    """
    found = {
        BY_HAND: _by_hand(case, batches, seed, requests),
        HANDLER: _by_runner(case, batches, seed, requests, by_thread=False),
        THREAD: _by_runner(case, batches, seed, requests, by_thread=True),
    }
    # One clock for all processes of a machine.
    times = everywhere(found)
    return {
        name: [
            max(left for _, left in turn) - next(at for at, _ in turn if at is not None)
            for turn in zip(*(each[name] for each in times), strict=True)
        ]
        for name in found
    }


Times = list[tuple[float | None, float]]
"""For each request, when this rank has asked, if it has, and when it had left."""


def _asks(request: int) -> bool:
    return request % dist.get_world_size() == dist.get_rank()


def _by_runner(case: Case, batches: Batches, seed: int, requests: int, *, by_thread: bool) -> Times:
    from eventtrain import DataBunch, Distributed, Learner, Runner

    work, dice, threads = Work(case, batches, seed), Random(seed), []
    learn = Learner(work.model, work.opt, work.loss_func, DataBunch(Endless(batches)))
    run, asked, left = Runner(Distributed("ddp")), dict[int, float](), list[float]()
    places = [dice.randint(FIRST, LATEST) for _ in range(requests)]

    def ask(epoch: int) -> None:
        asked[epoch] = time.monotonic()
        run.token.cancel("train")

    def begin_batch(run: Any) -> None:
        if run.batch_index == places[run.epoch] and _asks(run.epoch):
            if by_thread:
                threads.append(threading.Thread(target=ask, args=(run.epoch,)))
                threads[-1].start()
            else:
                ask(run.epoch)

    run.on("begin_batch", begin_batch)
    run.on("after_train", lambda run: left.append(time.monotonic()), priority=10**9)
    run.fit(requests, learn)
    for thread in threads:
        thread.join()
    return [(asked.get(epoch), at) for epoch, at in enumerate(left)]


def _by_hand(case: Case, batches: Batches, seed: int, requests: int) -> Times:
    work, dice, found = Work(case, batches, seed), Random(seed), []
    model: Any = DistributedDataParallel(work.model)
    for request in range(requests):
        place, times = dice.randint(FIRST, LATEST), list[float]()
        train_until(model, work, Endless(batches), _asking(request, place, times))
        found.append((times[0] if times else None, time.monotonic()))
    return found


def _asking(request: int, place: int, times: list[float]) -> Callable[[], bool]:
    seen = 0

    def wants_to_stop() -> bool:
        nonlocal seen
        seen += 1
        if seen == place and _asks(request):
            times.append(time.monotonic())
        return bool(times)

    return wants_to_stop
