"""Threads of which one runs at a time, and which may change places at every bytecode.

The code under test is the real one: its threads are real, too, but run only while it is their
turn. A trace function ends a turn at any bytecode of the files that are watched, as the dice
have it. What blocks (conditions, queues, joins, waits on a store) has a stand-in that knows of
turns, so it is seen when nobody can go on. Time passes only then.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection
from datetime import timedelta
from random import Random
from types import FrameType, SimpleNamespace
from typing import Any

from eventtrain.distributed import agreement, poster
from eventtrain.distributed.log import FOR_EVER
from eventtrain.distributed.standing import Standing


class Stuck(BaseException):
    """Nobody can go on: ends every thread."""


class Task:
    def __init__(self, schedule: Schedule, work: Callable[[], object]) -> None:
        self.schedule, self.work = schedule, work
        self.sleeps_until = 0
        self.turn = threading.Semaphore(0)
        self.until: Callable[[], bool] | None = None
        self.has_time_limit = self.is_finished = self.timed_out = False
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.turn.acquire()
        try:
            if not self.schedule.is_stuck:
                sys.settrace(self.schedule.trace)
                self.work()
        except Stuck:
            pass
        except BaseException as error:
            self.error = error
        finally:
            sys.settrace(None)
            self.is_finished = True
            self.schedule.pass_on(None)


class Schedule:
    """Runs tasks by turns.

    Args:
        dice: Choose when turns end and who is next.
        files: Where a turn may end at any bytecode.
    """

    def __init__(self, dice: Random, files: Collection[str]) -> None:
        self.dice, self.files = dice, files
        self.rate = dice.choice((0.3, 0.1, 0.03))
        self.turns = 0
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.is_stuck = False
        self.done = threading.Event()

    def start(self, work: Callable[[], object]) -> Task:
        task = Task(self, work)
        self.tasks.append(task)
        task.thread.start()
        return task

    def run(self) -> None:
        """Have all tasks come to their end; raise what one of them has raised."""
        self.pass_on(None)
        self.done.wait()
        for task in self.tasks:
            task.thread.join()
        if self.is_stuck:
            raise AssertionError("they wait for each other for ever")
        for task in self.tasks:
            if task.error is not None:
                raise task.error

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        frame.f_trace_opcodes = True
        return self.step

    def step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode" and self.dice.random() < self.rate:
            self.may_end()
        return self.step

    def may_end(self) -> None:
        """End a turn; the next one is soon or late, as if a machine were busy for a while."""
        task = self.current
        assert task is not None
        task.sleeps_until = self.turns + self.dice.choice((0, 0, 0, 30, 300))
        self.pass_on(task)

    def block(self, until: Callable[[], bool], has_time_limit: bool = False) -> bool:
        """Wait; return whether it has come true, which it has unless time has run out."""
        task = self.current
        assert task is not None
        if not until():
            task.until, task.has_time_limit, task.timed_out = until, has_time_limit, False
            self.pass_on(task)
            task.until = None
            return not task.timed_out
        return True

    def pass_on(self, task: Task | None) -> None:
        """Give the turn to somebody; ``task``, whose it was, waits for its next one."""
        following = self._next()
        if following is None:
            self.done.set()
        elif following is not task:
            self.current = following
            following.turn.release()
            if task is not None:
                task.turn.acquire()
        if self.is_stuck and task is not None:
            raise Stuck

    def _next(self) -> Task | None:
        there = [task for task in self.tasks if not task.is_finished]
        if self.is_stuck or not there:
            return there[0] if there else None
        ready = [task for task in there if task.until is None or task.until()]
        if not ready:
            ready = [task for task in there if task.has_time_limit and task.until is not None]
            for task in ready[:1]:
                task.timed_out = True
            ready = ready[:1]
        if not ready:
            self.is_stuck = True
            return there[0]
        self.turns += 1
        awake = [task for task in ready if task.sleeps_until <= self.turns]
        if not awake:
            return min(ready, key=lambda task: task.sleeps_until)
        return self.dice.choice(awake)

    def stand_in(self, patch: Callable[[object, str, object], None]) -> None:
        """Put what knows of turns in the place of what the agreement blocks on."""
        schedule = self

        class Thread:
            def __init__(self, target: Callable[[], object], name: str, daemon: bool) -> None:
                self.target = target

            def start(self) -> None:
                self.task = schedule.start(self.target)

            def join(self, timeout: float) -> None:
                schedule.block(lambda: self.task.is_finished, has_time_limit=True)

        names = SimpleNamespace(Thread=Thread, TIMEOUT_MAX=threading.TIMEOUT_MAX)
        patch(agreement, "threading", names)
        patch(agreement, "Standing", lambda: Standing(news=Condition(schedule)))
        patch(poster, "SimpleQueue", lambda: Queue(schedule))


class Queue:
    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.items: list[Any] = []

    def put(self, item: object) -> None:
        self.items.append(item)

    def get(self, timeout: float) -> Any:
        self.schedule.block(lambda: bool(self.items))
        return self.items.pop(0)


class Condition:
    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.owner: Task | None = None
        self.notices = 0

    def __enter__(self) -> None:
        self.schedule.block(lambda: self.owner is None)
        self.owner = self.schedule.current

    def __exit__(self, *error: object) -> None:
        self.owner = None

    def notify_all(self) -> None:
        assert self.owner is self.schedule.current
        self.notices += 1

    def wait(self, timeout: float | None = None) -> bool:
        assert self.owner is self.schedule.current
        known = self.notices
        self.owner = None
        notified = self.schedule.block(lambda: self.notices != known, timeout is not None)
        self.__enter__()
        return notified

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> bool:
        while not predicate():
            if not self.wait(timeout):
                return bool(predicate())
        return True


class DictStore:
    """A store in a dictionary; every call of it may end a turn.

    Attributes:
        log: What was written under each key of a log, kept when the key is removed.
        calls: How many there were.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.data: dict[str, bytes] = {}
        self.log: dict[str, bytes] = {}
        self.calls = 0
        self.timeout = FOR_EVER

    def _called(self) -> None:
        self.calls += 1
        self.schedule.may_end()

    def set(self, key: str, value: str) -> None:
        self._called()
        assert "/log/" not in key or self.data[key] == value.encode(), "an entry was changed"
        self.data[key] = value.encode()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self._called()
        self.schedule.block(lambda: all(key in self.data for key in keys))
        return [self.data[key] for key in keys]

    def add(self, key: str, amount: int) -> int:
        self._called()
        value = int(self.data.get(key, b"0")) + amount
        self.data[key] = str(value).encode()
        return value

    def check(self, keys: list[str]) -> bool:
        self._called()
        return all(key in self.data for key in keys)

    def set_timeout(self, timeout: timedelta) -> None:
        self.timeout = timeout

    def get(self, key: str) -> bytes:
        has_time_limit = self.timeout < FOR_EVER  # of whoever has the turn, and set it just now
        self._called()
        if not self.schedule.block(lambda: key in self.data, has_time_limit):
            raise TimeoutError
        return self.data[key]

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        self._called()
        assert expected == ""
        if "/log/" in key:
            self.log.setdefault(key, desired.encode())
        return self.data.setdefault(key, desired.encode())

    def delete_key(self, key: str) -> bool:
        self._called()
        return self.data.pop(key, None) is not None
