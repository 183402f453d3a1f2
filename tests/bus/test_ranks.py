"""Who of several processes runs a handler."""

from __future__ import annotations

from typing import Any

import pytest

from eventtrain import Callback, CancellationToken, EventBus, handler
from eventtrain.bus.handlers import is_among


class Place:
    """A sender that says where it is."""

    phase = "train"

    def __init__(self, rank: int, local_rank: int) -> None:
        self.rank, self.local_rank = rank, local_rank


PLACES = [(0, 0), (1, 1), (2, 0), (3, 1)]


@pytest.mark.parametrize(
    ("ranks", "who"), [("all", [0, 1, 2, 3]), ("zero", [0]), ("local_zero", [0, 2])]
)
@pytest.mark.parametrize("emitted", ["bound", "emit", "send"])
def test_a_handler_runs_where_its_ranks_say(ranks: Any, who: list[int], emitted: str) -> None:
    bus = EventBus()
    ran: list[int] = []
    bus.on("after_loss", lambda sender: ran.append(sender.rank), ranks=ranks)
    for place in PLACES:
        sender = Place(*place)
        if emitted == "bound":
            emit, _ = bus.bind(sender, CancellationToken())
            emit.after_loss()
        elif emitted == "emit":
            bus.emit("after_loss", sender)
        else:
            bus["after_loss"].send(sender)
            bus["after_loss"].changed()  # one process is in one place, which is kept
    assert ran == who


@pytest.mark.parametrize(("rank", "local_rank", "ran"), [("0", "0", 1), ("1", "0", 0)])
def test_a_sender_that_does_not_say_is_where_the_environment_has_it(
    monkeypatch: Any, rank: str, local_rank: str, ran: int
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    bus, calls = EventBus(), []
    bus.declare("mine")
    bus.on("mine", calls.append, ranks="zero")
    bus.emit("mine", "a sender")
    assert len(calls) == ran
    assert is_among("local_zero", None)


def test_a_rank_that_there_is_none_of_is_refused() -> None:
    with pytest.raises(ValueError, match="all, zero or local_zero"):
        EventBus().on("after_loss", print, ranks="one")  # type: ignore[call-overload]


def test_a_class_says_it_for_all_its_handlers_and_a_method_for_itself() -> None:
    class Mine(Callback):
        ranks = "zero"

        def begin_fit(self) -> None:
            pass

        @handler(ranks="all")
        def after_fit(self) -> None:
            pass

    assert {h.event: h.options.ranks for h in Mine().handlers()} == {
        "begin_fit": "zero",
        "after_fit": "all",
    }


def test_explain_says_so() -> None:
    bus = EventBus()
    bus.on("after_loss", lambda run: None, ranks="zero")
    assert bus.explain("after_loss")[0].filter == "ranks=zero"


def test_subscribing_anew_replaces_also_where_it_does_not_run(monkeypatch: Any) -> None:
    monkeypatch.setenv("RANK", "1")
    bus = EventBus()
    for _ in range(2):
        if len(bus["after_loss"].handlers):
            with pytest.warns(RuntimeWarning, match="is replaced"):
                bus.on("after_loss", print, ranks="zero")
        else:
            bus.on("after_loss", print, ranks="zero")
    assert len(bus["after_loss"].handlers) == 1
