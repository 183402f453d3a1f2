"""Many fits on the ranks of one process group: they do the same, whoever asks for what, when."""

from __future__ import annotations

from typing import Any

import pytest
from forked_ranks import Ranks
from together_program import SEEDS

from eventtrain import EVENTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    ranks = Ranks("together_program.py", tmp_path_factory.mktemp("together"), 2, "together")
    ranks.wait(60)
    told = ranks.told("together")
    assert all("closing" in each for each in told), (ranks.seeds("together"), ranks.said)
    return told


def check_random_fits(found: list[dict[str, Any]], size: int) -> None:
    for each in found:
        assert each["differ"] == {}, "by seed"
        assert sum(each["outcomes"].values()) == len(SEEDS[size])
        assert each["outcomes"]["cancelled"] >= len(SEEDS[size]) / 3
        assert {"handler", "timer", "thread", "SIGTERM", "held"} <= set(each["origins"])
        assert each["after"] == each["before"], "what is left open"


def test_a_hundred_fits_with_requests_at_random_are_the_same_on_two_ranks(
    told: list[dict[str, Any]],
) -> None:
    check_random_fits([each["random fits"] for each in told], 2)


def test_thirty_are_the_same_on_four_ranks(tmp_path_factory: pytest.TempPathFactory) -> None:
    ranks = Ranks("together_program.py", tmp_path_factory.mktemp("four"), 4, "random fits")
    ranks.wait(60)
    found = ranks.told("random fits")
    assert all("differ" in each for each in found), (ranks.seeds("random fits"), ranks.said)
    check_random_fits(found, 4)


CLOSED = {"fit_failed", "after_cancel_fit", "after_fit"}
WITHIN_FIT = [each.name for each in EVENTS if each.scope != "predict" and each.name not in CLOSED]


@pytest.mark.parametrize("event", WITHIN_FIT)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_fit_that_rank_1_cancels_in_any_event_ends_on_both_at_one_place(
    told: list[dict[str, Any]], strategy: str, event: str
) -> None:
    first, second = (each["events"][strategy][event] for each in told)
    assert first["rest"] == second["rest"]
    outcome, reason, _, _, _, records, _ = first["rest"]
    assert (outcome, reason) == ("cancelled", event)
    [(epoch, batch)] = second["where"]
    assert records == [["fit", event, "cancel_fit", event, epoch, batch, 1]]


@pytest.mark.parametrize("event", ["after_epoch", "after_row"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_an_epoch_that_no_rank_has_begun_is_not_told_of(
    told: list[dict[str, Any]], strategy: str, event: str
) -> None:
    for each in told:
        last, begun, ended = each["events"][strategy][event]["epochs"]
        assert begun == last + 1  # each that was begun has a row
        assert ended <= begun


@pytest.mark.parametrize("use", ["fit", "validate"])
def test_a_token_that_one_rank_has_cancelled_before_keeps_all_from_beginning(
    told: list[dict[str, Any]], use: str
) -> None:
    for each in told:
        assert each["held"][use] == ["cancelled", "too early", [["too early", 1]], []]
        assert each["held"]["is a factory still"]
        assert each["held"]["again"] == "completed"


def test_a_fit_in_another_thread_than_the_main_one_is_left_together(
    told: list[dict[str, Any]],
) -> None:
    first, second = (each["in a thread"]["told"] for each in told)
    assert first == second
    assert first[:2] == ["cancelled", "enough"]


def test_ordinary_batches_call_no_store_and_no_collective_and_read_nothing(
    told: list[dict[str, Any]],
) -> None:
    for each in told:
        called = each["counts"]["called"]
        assert set(called) == {"around", "read around"}, called


def test_averages_are_those_of_all_samples_and_are_printed_and_written_once(
    told: list[dict[str, Any]],
) -> None:
    zero, one = (each["numbers"] for each in told)
    loss, error = zero["direct"]
    names = ("train_loss", "train_error", "valid_loss", "valid_error")
    assert zero["row"] == one["row"]
    assert zero["row"] == pytest.approx(dict(zip(names, (loss, error) * 2, strict=True)), rel=1e-6)
    assert (len(zero["lines"]), len(zero["csv"])) == (3, 3)  # a line of names, and one an epoch
    assert (one["lines"], one["csv"]) == ([], [])


def test_a_closing_event_that_fails_in_a_cancelled_batch_is_what_its_rank_raises(
    told: list[dict[str, Any]],
) -> None:
    first, second = (each["closing"]["error"] for each in told)
    assert second == "ValueError: no luck"
    assert first.startswith("RemoteError: rank 1 failed: ValueError: no luck (handler 'boom'")
