"""On a real TCPStore: threads that stand for ranks, and processes that are ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from operator import gt
from pathlib import Path

import pytest
from ranks import Rank, Shape, Trace
from torch.distributed import PrefixStore, Store, TCPStore

from eventtrain import CancellationToken, Scope
from eventtrain.distributed import Agreement
from eventtrain.errors import RemoteError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(params=[True, False], ids=["libuv", "sockets"])
def store(request: pytest.FixtureRequest) -> TCPStore:
    return TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False, use_libuv=request.param)


def client_of(store: TCPStore) -> TCPStore:
    libuv = store.libuvBackend
    return TCPStore("127.0.0.1", store.port, None, False, wait_for_workers=False, use_libuv=libuv)


def join(
    store: TCPStore, token: CancellationToken, rank: int, size: int, **options: float
) -> Agreement:
    def connect() -> Store:
        return PrefixStore("eventtrain", client_of(store))

    return Agreement(connect, "fit 0", token, rank=rank, world_size=size, **options)


def run_ranks(
    store: TCPStore, shapes: list[Shape], make: Callable[[int, CancellationToken, Agreement], Rank]
) -> list[Trace]:
    def run(rank: int) -> Trace:
        token = CancellationToken()
        return make(rank, token, join(store, token, rank, len(shapes), lost_after=30))()

    with ThreadPoolExecutor(len(shapes)) as pool:
        return list(pool.map(run, range(len(shapes))))


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_of_very_different_speed_leave_at_one_place(store: TCPStore, size: int) -> None:
    shapes: list[Shape] = [[(20, 2)] * 3] * size

    def make(rank: int, token: CancellationToken, agreement: Agreement) -> Rank:
        asks = [((1, 0, 3), "train"), ((2, 0, 0), "fit")] if rank == 1 else []
        return Rank(shapes[rank], token, agreement, asks, at_batch=lambda: time.sleep(rank / 2000))

    traces = run_ranks(store, shapes, make)
    assert all(trace.begun == traces[0].begun for trace in traces)
    assert all(trace.ended == traces[0].ended for trace in traces)
    assert all(trace.history == traces[0].history for trace in traces)
    assert traces[0].history and {record.rank for record in traces[0].history} == {1}


def test_nothing_is_left_behind_by_run_after_run(store: TCPStore) -> None:
    def make(rank: int, token: CancellationToken, agreement: Agreement) -> Rank:
        return Rank(shapes[rank], token, agreement, [((0, 0, 1), "epoch")] if rank else [])

    def left() -> tuple[int, int, int]:
        return store.num_keys(), threading.active_count(), len(os.listdir("/proc/self/fd"))

    shapes: list[Shape] = [[(3, 1)] * 2] * 2
    before = left()
    for _ in range(2):
        run_ranks(store, shapes, make)
    deadline = time.monotonic() + 30
    # The server closes its ends of connections when it notices, those of earlier tests too.
    while any(map(gt, left(), before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(gt, left(), before)), (before, left())


def test_a_request_from_before_the_run_is_for_all_ranks(store: TCPStore) -> None:
    def make(rank: int, token: CancellationToken, agreement: Agreement) -> Rank:
        return Rank([(50, 0)], token, agreement, at_batch=lambda: time.sleep(0.001))

    def run(rank: int) -> Trace:
        token = CancellationToken()
        if rank == 1:
            token.cancel("fit", "too early")
        return make(rank, token, join(store, token, rank, 2))()

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(run, range(2))
    assert one.begun == other.begun
    assert one.ended[-1] == ((), "cancelled")
    assert [(c.reason, c.rank) for c in one.history] == [("too early", 1)]
    assert one.history == other.history


def test_who_has_failed_is_told_to_those_who_wait_in_a_collective(store: TCPStore) -> None:
    told = []

    def waits(rank: int) -> None:
        agreement = join(store, CancellationToken(), rank, 2)
        try:
            if rank == 0:
                agreement.fail(ValueError("no luck"), "handler 'boom' of 'after_batch', epoch 0")
                assert agreement.remote_failure(30) is None
            else:
                told.append(str(agreement.remote_failure(30)))
        finally:
            agreement.close()
        assert agreement.failure is not None

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(waits, range(2)))
    assert told == ["rank 0 failed: ValueError: no luck (handler 'boom' of 'after_batch', epoch 0)"]


def test_who_leaves_without_a_word_keeps_nobody_waiting(store: TCPStore) -> None:
    def run(rank: int) -> str:
        token = CancellationToken()
        agreement = join(store, token, rank, 2)
        try:
            if rank == 0:
                agreement.end()
        except RemoteError as error:
            return str(error)
        finally:
            agreement.close()
        return ""

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(run, range(2)))
    assert told == ["rank 1 failed: RuntimeError: it has left the run before the end", ""]


def test_what_cannot_be_read_in_the_log_is_an_error_and_runs_nothing(store: TCPStore) -> None:
    token = CancellationToken()
    agreement = join(store, token, 0, 1, lost_after=30)
    try:
        PrefixStore("eventtrain", client_of(store)).set("fit 0/log/0", "cos\nsystem")
        assert "JSONDecodeError" in str(agreement.remote_failure(30))
        with pytest.raises(RemoteError, match="the store between the ranks has failed"):
            agreement.enter(Scope(token, "fit"))
    finally:
        agreement.close()


def test_the_first_word_of_a_rank_that_fails_counts(store: TCPStore) -> None:
    agreement = join(store, CancellationToken(), 0, 1, lost_after=30)
    agreement.fail(ValueError("first"))
    agreement.fail(ValueError("second"))
    agreement.close()
    assert str(agreement.failure) == "rank 0 failed: ValueError: first"


class Ranks:
    """Ranks that are processes, on a store that this process serves."""

    def __init__(self, size: int, deed: str) -> None:
        self.store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        program = [sys.executable, "-W", "error", str(HERE / "rank_program.py")]
        self.process = subprocess.Popen(
            [*program, str(self.store.port), str(size), deed],
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(HERE)))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def printed(self) -> dict[int, str]:
        """Wait for them, and return what each that came to its end has printed."""
        printed, errors = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, errors
        lines = [line.split(maxsplit=1) for line in printed.splitlines()]
        return {int(rank): text for rank, text in lines}

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def test_processes_leave_at_one_place_with_one_record() -> None:
    with Ranks(4, "asks") as ranks:
        printed = ranks.printed()
    assert len(printed) == 4
    assert len(set(printed.values())) == 1
    assert "cancelled" in printed[0]


def test_processes_hear_why_another_one_failed() -> None:
    with Ranks(2, "fails") as ranks:
        printed = ranks.printed()
    assert printed[0].endswith("rank 1 failed: ZeroDivisionError: no luck (in a batch)")
    assert printed[1].endswith("None")


def test_a_process_that_forgets_to_close_ends_well_and_keeps_nobody_waiting() -> None:
    with Ranks(2, "forgets") as ranks:
        printed = ranks.printed()
    assert printed[0].endswith("rank 1 failed: RuntimeError: it has left the run before the end")


@pytest.mark.parametrize("deed", ["freezes", "dies"])
def test_a_process_that_does_not_answer_is_named(deed: str) -> None:
    with Ranks(3, deed) as ranks:
        printed = ranks.printed()
    assert set(printed) == {0, 1}
    assert all("rank 2 has not answered for 1 s, when" in text for text in printed.values())


def test_without_the_store_nobody_waits() -> None:
    with Ranks(2, "freezes") as ranks:
        while ranks.store.num_keys() < 3:
            time.sleep(0.01)
        del ranks.store
        assert "the store between the ranks has failed" in ranks.printed()[0]
