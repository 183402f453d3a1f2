"""Training that takes turns, a few batches each: for differences of a percent in long epochs.

A machine that is slow for a second is slow for all who take their turn in it. Timed
one after the other, each epoch would have a luck of its own. And as every epoch has the
same turns, the fastest of each can be added up, where a whole epoch is hardly ever
undisturbed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from threading import Condition, Thread
from typing import Any

from eventtrain import CancellationToken, Learner
from eventtrain.interrupts import Interrupts

from .loops import Way
from .measure import Group, without_gc

BATCHES = 2
"""Batches in a turn."""


class Turns:
    """Lets one thread run at a time, in a circle, and times each while it has its turn.

    Args:
        names: Of the threads, in order.
        token: When it is cancelled, the threads end instead of taking their next turn.

    Attributes:
        seconds: What each has taken for each of its turns so far.
        error: What the first thread that failed has raised; the others end then.
    """

    def __init__(self, names: list[str], token: CancellationToken) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.error: BaseException | None = None
        self._token = token
        self._waiting = list(names)
        self._changed = Condition()
        self._start = 0.0

    def run(self, name: str, work: Callable[[], object]) -> None:
        """Do ``work`` as the thread called ``name``."""
        try:
            self._wait(name)
            work()
        except _EndedEarly:
            pass
        except BaseException as error:
            self.error = self.error or error
        finally:
            self._end(name, leaves=True)

    def pass_on(self, name: str) -> None:
        """End a turn and wait for the next one."""
        self._end(name, leaves=False)
        self._wait(name)

    def _end(self, name: str, *, leaves: bool) -> None:
        with self._changed:
            self.seconds[name].append(time.perf_counter() - self._start)
            self._waiting.remove(name)
            if not leaves:
                self._waiting.append(name)
            self._changed.notify_all()

    def _wait(self, name: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting[0] == name or self._is_over())
        if self._is_over():
            raise _EndedEarly
        self._start = time.perf_counter()

    def _is_over(self) -> bool:
        return self.error is not None or self._token.pending is not None


class _EndedEarly(BaseException):
    """Leaves the work of a thread that is not to go on."""


class BatchesInTurns:
    """A loader that passes on after every ``BATCHES`` batches.

    Args:
        loader: Where the batches come from.
        pass_on: Ends the turn, and returns in the next one.
    """

    def __init__(self, loader: Any, pass_on: Callable[[], None]) -> None:
        self.loader = loader
        self.pass_on = pass_on

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for index, batch in enumerate(self.loader, 1):
            yield batch
            if index % BATCHES == 0:
                self.pass_on()


def compare_in_turns(
    title: str, unit: str, ways: Mapping[str, tuple[Way, Learner]], *, rounds: int, passes: int
) -> Group:
    """Train in turns, after an epoch that does not count.

    Args:
        title, unit: See ``Group``; its first variant is the baseline.
        ways: How, and what.
        rounds: How many count.
        passes: Epochs in a round, of which the fastest of each turn counts.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    with without_gc():
        in_turns(ways)
    for _ in range(rounds):
        with without_gc():
            epochs = [in_turns(ways) for _ in range(passes)]
        for name in ways:
            turns = zip(*(seconds[name] for seconds in epochs), strict=True)
            found[name].append(sum(map(min, turns)))
    return Group(title, unit, found)


def in_turns(ways: Mapping[str, tuple[Way, Learner]]) -> dict[str, list[float]]:
    """Train every learner its way for an epoch, in turns; return the seconds of every turn.

    Raises:
        BaseException: What the first that failed has raised.
        KeyboardInterrupt: After Ctrl-C, when all have ended: torch aborts a process that is
            left while a thread computes.
    """
    token = CancellationToken()
    turns = Turns(list(ways), token)
    threads = [
        Thread(target=turns.run, args=(name, _epoch(turns, name, way, learn)), daemon=True)
        for name, (way, learn) in ways.items()
    ]
    with Interrupts(token, "raise"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if turns.error is not None:
        raise turns.error
    return turns.seconds


def _epoch(turns: Turns, name: str, way: Way, learn: Learner) -> Callable[[], None]:
    def work() -> None:
        data, loaders = learn.data, (learn.data.train_dl, learn.data.valid_dl)

        def pass_on() -> None:
            turns.pass_on(name)

        data.train_dl, data.valid_dl = (BatchesInTurns(loader, pass_on) for loader in loaders)
        try:
            way(learn)
        finally:
            data.train_dl, data.valid_dl = loaders

    return work
