"""Signals that are heard at once, with real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from torch.distributed import HashStore

from eventtrain import CancellationToken
from eventtrain.interrupts import Interrupts, hear_at_once
from eventtrain.wakeup import WakeUp

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals here")


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def _all_is_put_back() -> Iterator[None]:
    threads = threading.active_count()
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    yield
    signal.signal(signal.SIGUSR1, previous)
    assert signal.set_wakeup_fd(-1) == -1
    wait_for(lambda: threading.active_count() == threads)


def test_a_signal_is_heard_while_the_main_thread_waits_in_code_that_is_not_pythons() -> None:
    heard: list[float] = []
    wake_up = WakeUp(lambda number: heard.append(time.monotonic()))
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    store = HashStore()
    threading.Timer(1.0, store.set, ("key", "value")).start()
    store.wait(["key"])  # as a collective does: no handler runs meanwhile
    ended = time.monotonic()
    wake_up.stop()
    wake_up.join(5)
    assert ended - heard[0] > 0.5


def test_who_was_woken_before_gets_the_bytes_and_stands_there_again() -> None:
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno())
        heard: list[int] = []
        wake_up = WakeUp(heard.append)
        signal.raise_signal(signal.SIGUSR1)
        reader.settimeout(30)
        assert reader.recv(1) == bytes([signal.SIGUSR1])
        wait_for(lambda: heard == [signal.SIGUSR1])
        wake_up.stop()
        wake_up.join(5)
        assert signal.set_wakeup_fd(-1) == writer.fileno()


def test_who_has_come_after_stays() -> None:
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        wake_up = WakeUp(lambda number: None)
        signal.set_wakeup_fd(writer.fileno())
        wake_up.stop()
        assert signal.set_wakeup_fd(-1) == writer.fileno()


def test_one_inside_of_another_keeps_its_signals_to_itself() -> None:
    outer, inner = list[int](), list[int]()
    around = WakeUp(outer.append)
    inside = WakeUp(inner.append)
    signal.raise_signal(signal.SIGUSR1)
    wait_for(lambda: inner)
    inside.stop()
    inside.join(5)
    signal.raise_signal(signal.SIGUSR1)
    wait_for(lambda: outer)
    around.stop()
    assert (len(outer), len(inner)) == (1, 1)


def test_an_event_loop_around_it_still_gets_its_signals() -> None:
    async def main() -> list[str]:
        called: list[str] = []
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, called.append, "called")
        wake_up = WakeUp(lambda number: None)
        signal.raise_signal(signal.SIGUSR1)
        wake_up.stop()
        wake_up.join(5)
        await asyncio.sleep(0.05)
        return called

    assert asyncio.run(main()) == ["called"]


def test_a_token_is_asked_once_for_a_signal_that_is_heard_and_then_received() -> None:
    token = CancellationToken()
    with Interrupts(token, "return"):
        hear_at_once(token)
        hear_at_once(token)
        signal.raise_signal(signal.SIGTERM)
        wait_for(lambda: token.history)
        time.sleep(0.05)
    assert [record.by for record in token.history] == ["SIGTERM"]
    assert token.is_interrupted


def test_a_run_inside_that_does_not_listen_has_the_one_around_it_ask_nothing() -> None:
    outer, inner = CancellationToken(), CancellationToken()
    with Interrupts(outer, "return"):
        hear_at_once(outer)
        with Interrupts(inner, "return"):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.05)
    assert (len(outer.history), len(inner.history)) == (0, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_child_that_is_forked_meanwhile_wakes_nobody() -> None:
    token = CancellationToken()
    with Interrupts(token, "return"):
        hear_at_once(token)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, lambda number, frame: None)
            signal.raise_signal(signal.SIGINT)
            os._exit(0 if signal.set_wakeup_fd(-1) == -1 else 1)
        assert os.waitpid(child, 0)[1] == 0
        time.sleep(0.05)
    assert token.history == []


def test_aside_it_hears_nothing_and_who_was_woken_before_is_so_again() -> None:
    heard: list[int] = []
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno())
    try:
        wake_up = WakeUp(heard.append)
        with wake_up.aside():
            assert signal.set_wakeup_fd(writer.fileno()) == writer.fileno()
            signal.raise_signal(signal.SIGUSR1)
            assert reader.recv(8) == bytes([signal.SIGUSR1])
        signal.raise_signal(signal.SIGUSR1)
        assert reader.recv(8) == bytes([signal.SIGUSR1])  # handed on
        wake_up.stop()
        wake_up.join(20)
    finally:
        signal.set_wakeup_fd(before)
        reader.close()
        writer.close()
    assert heard == [signal.SIGUSR1]
