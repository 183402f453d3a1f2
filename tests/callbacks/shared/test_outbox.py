"""What is sent by a thread, to something that may not be there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from eventtrain.callbacks.shared.outbox import Outbox


class Refused(Exception):
    pass


def outbox(send: Callable[[Any], object]) -> Outbox:
    return Outbox(send, lambda error: isinstance(error, Refused))


def test_items_are_sent_in_their_order() -> None:
    sent: list[int] = []
    box = outbox(sent.append)
    for number in range(100):
        box.put(number)
    assert box.end(60) == []
    assert sent == list(range(100))


def test_an_item_that_does_not_get_through_is_tried_again_before_those_behind_it() -> None:
    tries: list[int] = []

    def send(item: int) -> None:
        tries.append(item)
        if tries == [0]:
            raise ConnectionError("away")

    box = outbox(send)
    box.put(0)
    assert not box.wait(60)
    assert isinstance(box.error, ConnectionError)
    box.put(1)
    assert box.end(60) == []
    assert tries == [0, 0, 1]
    assert box.error is None


def test_an_item_that_is_refused_is_put_aside_and_the_next_is_sent() -> None:
    sent: list[int] = []

    def send(item: int) -> None:
        if item == 1:
            raise Refused("never")
        sent.append(item)

    box = outbox(send)
    for number in range(3):
        box.put(number)
    assert box.end(60) == []
    assert sent == [0, 2]
    assert [(item, str(error)) for item, error in box.refused] == [(1, "never")]


def test_what_could_not_be_sent_is_given_back_in_order() -> None:
    def send(item: int) -> None:
        raise ConnectionError("away")

    box = outbox(send)
    box.put(0)
    box.put(1)
    assert box.end(0.05) == [0, 1]


def test_the_end_does_not_wait_for_a_send_that_never_returns() -> None:
    never, entered = threading.Event(), threading.Event()

    def send(item: int) -> None:
        entered.set()
        never.wait()

    box = outbox(send)
    box.put(0)
    entered.wait()
    assert box.end(0.05) == [0]
    never.set()


def test_the_end_goes_on_waiting_as_long_as_something_is_taken() -> None:
    gates = [threading.Event() for _ in range(3)]

    def send(item: int) -> None:
        gates[item].wait()
        if item + 1 < len(gates):
            gates[item + 1].set()

    box = outbox(send)
    for number in range(3):
        box.put(number)
    gates[0].set()
    assert box.end(60) == []


def test_what_waits_is_seen_with_what_is_being_sent() -> None:
    go, entered = threading.Event(), threading.Event()

    def send(item: int) -> None:
        entered.set()
        go.wait()

    box = outbox(send)
    box.put(0)
    box.put(1)
    entered.wait()
    assert box.waiting == [0, 1]
    go.set()
    assert box.end(60) == []
    assert box.waiting == []


def test_an_interrupt_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, never = threading.Event(), threading.Event()

    def send(item: int) -> None:
        entered.set()
        never.wait()

    box = outbox(send)
    box.put(0)
    box.put(1)
    entered.wait()

    def interrupt(seconds: float) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(box._changed, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        box.end(60)
    monkeypatch.undo()
    never.set()
    box._thread.join(60)
    assert not box._thread.is_alive()
    assert box.waiting == [1]
