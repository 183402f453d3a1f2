from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest

from eventtrain.bus.handlers import Handler, Options, names, number, place_of
from eventtrain.bus.subscription import Subscription

HERE = __name__


def plain(run: Any) -> None: ...


LINE = plain.__code__.co_firstlineno


class Plot:
    def draw(self, run: Any) -> None: ...

    def __call__(self, run: Any) -> None: ...


def test_one_name_or_several_become_a_tuple() -> None:
    assert names("ab") == ("ab",)
    assert names(["a", "b"]) == ("a", "b")
    assert names(()) == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (-5, "-5"), (2.0, "2"), (2.5, "2.5"), (float("inf"), "inf"), (1234567, "1234567")],
)
def test_a_priority_is_printed_as_people_write_it(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("sender", "text"),
    [
        (None, ""),
        (SimpleNamespace(epoch=0, batch_index=0), ", epoch 0, batch 0"),
        (SimpleNamespace(epoch=3, batch_index=None), ", epoch 3"),
        (SimpleNamespace(batch_index=7), ", batch 7"),
    ],
)
def test_a_position_is_told_as_far_as_the_sender_knows_it(sender: Any, text: str) -> None:
    assert place_of(sender) == text


def test_options_accept_one_name_for_several() -> None:
    options = Options(before="a", after=["b", "c"])  # type: ignore[arg-type]
    assert (options.before, options.after) == (("a",), ("b", "c"))


class TestHandler:
    def test_it_describes_itself_by_event_name_priority_and_source(self) -> None:
        handler = Handler("after_loss", plain, Options(priority=-2.5))
        assert handler.describe() == (
            f"handler 'plain' of event 'after_loss' (priority -2.5, {HERE}:{LINE})"
        )
        assert repr(handler) == f"<{handler.describe()}>"

    def test_the_plugin_that_brought_it_is_part_of_the_description(self) -> None:
        handler = Handler("after_loss", plain, Options(), plugin="plots (pkg 1)")
        assert handler.describe().endswith(", plugin plots (pkg 1))")

    def test_origin_is_what_its_name_and_source_come_from(self) -> None:
        handler = Handler("after_loss", lambda run: None, Options(), origin=plain)
        assert handler.name == "plain"
        assert handler.source == f"{HERE}:{LINE}"

    def test_a_name_in_the_options_wins(self) -> None:
        assert Handler("after_loss", plain, Options(name="x")).name == "x"

    def test_its_filters_are_described_as_they_would_be_written(self) -> None:
        options = Options(every=3, once=True, during="train", when=plain)
        handler = Handler("after_loss", plain, options)
        assert handler.describe_filter() == "every=3 once during=train when=plain"

    def test_without_filters_it_describes_none_and_counts_no_calls(self) -> None:
        handler = Handler("after_loss", plain, Options())
        assert handler.describe_filter() == ""
        assert handler.calls is None

    @pytest.mark.parametrize(
        "options", [{"every": 2}, {"once": True}, {"during": "train"}, {"when": bool}]
    )
    def test_with_a_filter_it_counts_calls_from_zero(self, options: dict[str, Any]) -> None:
        assert Handler("after_loss", plain, Options(**options)).calls == 0

    def test_a_handler_on_no_signal_has_no_key_and_detaches_in_silence(self) -> None:
        handler = Handler("after_loss", plain, Options())
        assert handler.key is None
        handler.detach()

    def test_a_weak_one_loses_its_receiver(self) -> None:
        plot = Plot()
        handler = Handler("after_loss", plot, Options(weak=True))
        assert handler.receiver is plot
        del plot
        gc.collect()
        assert handler.receiver is None
        assert handler(None) is None
        assert handler(None, size=3) is None
        assert handler.callee()(None) is None

    def test_called_it_runs_with_its_filters(self) -> None:
        seen: list[Any] = []
        handler = Handler("after_loss", seen.append, Options(every=2))
        for i in range(4):
            handler(i)
        assert seen == [1, 3]

    def test_a_handler_for_one_phase_fails_for_a_sender_without_any(self) -> None:
        handler = Handler("after_loss", plain, Options(during="train"))
        with pytest.raises(AttributeError, match="phase"):
            handler(object())


class TestSubscription:
    def test_of_no_handlers_it_is_not_connected(self) -> None:
        subscription = Subscription([])
        assert not subscription.connected
        subscription.disconnect()

    def test_it_gives_itself_to_the_block(self) -> None:
        subscription = Subscription([])
        with subscription as given:
            assert given is subscription


async def true_later(run: object) -> bool:
    return True


def yields(run: object) -> object:
    yield True


@pytest.mark.parametrize("predicate", [true_later, yields])
def test_a_predicate_whose_body_would_not_run_is_refused(predicate: Any) -> None:
    with pytest.raises(TypeError, match=f"when={predicate.__name__} is a"):
        Options(when=predicate)
