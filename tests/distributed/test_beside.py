"""Two ranks that step through a fit together, and handlers that run beside the loop on them."""

from __future__ import annotations

from typing import Any

import beside_program
import pytest
import torch
from forked_ranks import Ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="needs gloo",
    ),
]
STOPPED = ["after_train", "after_epoch", "after_cancel_fit", "after_fit"]
LEFT = "the loop over run.iterate(...) was left"
ENDED_TOGETHER = ["leaves", "leaves in validation", "all leave", "lets go", "raises"]
Told = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    ranks = Ranks(
        "beside_program.py", tmp_path_factory.mktemp("beside"), 2, *beside_program.deeds()
    )
    ranks.wait(58)
    return ranks


@pytest.fixture
def told(ranks: Ranks, request: pytest.FixtureRequest) -> Told:
    """What both ranks tell of a deed."""
    found = ranks.told(request.param)
    assert all("outcome" in rank for rank in found), ranks.said
    return found


def of(*deeds: str) -> Any:
    return pytest.mark.parametrize("told", deeds, indirect=True, ids=deeds)


@of("steps")
def test_a_fit_that_all_step_through_is_the_fit_to_the_bit(told: Told) -> None:
    epoch = [[phase, batch] for phase in ("train", "validate") for batch in range(4)]
    for rank in told:
        assert (rank["outcome"], rank["again"]) == ("completed", "completed")
        assert rank["weights"] == rank["fitted"]
        assert rank["moments"] == [[e, *each] for e in (0, 1) for each in epoch]


@of(*ENDED_TOGETHER)
def test_when_one_leaves_the_loop_all_leave_the_fit_at_one_boundary(told: Told) -> None:
    one, other = told
    for key in ("outcome", "reason", "steps", "closed", "weights"):
        assert one[key] == other[key]
    assert (one["outcome"], one["reason"]) == ("cancelled", LEFT)
    assert one["closed"][-2:] == STOPPED[-2:]
    assert set(one["by"]) <= {0, 1} and one["by"] == other["by"]


@of("leaves", "all leave", "raises", "leaves in validation")
def test_the_ranks_train_together_again_after_that(told: Told) -> None:
    assert [rank["again"] for rank in told] == ["completed", "completed"]


@of("leaves")
def test_no_step_is_taken_that_others_do_not_take(told: Told) -> None:
    for rank in told:
        assert 3 <= rank["steps"] <= 4
        assert (rank["by"], rank["closed"], rank["error"]) == ([1], STOPPED, None)


@of("raises")
def test_an_exception_of_the_body_is_the_callers_and_ends_the_fit_of_all(told: Told) -> None:
    assert [rank["error"] for rank in told] == [None, "ValueError: of the body"]
    assert [rank["closed"] for rank in told] == [STOPPED, STOPPED]


@of("cancels")
def test_what_the_body_cancels_on_one_rank_all_leave(told: Told) -> None:
    one, other = told
    assert one["moments"] == other["moments"]
    assert one["weights"] == other["weights"]
    for rank in told:
        assert (rank["outcome"], rank["by"]) == ("completed", [0])
        assert [0, "validate", 0] not in rank["moments"]
        assert rank["moments"][-1] == [1, "validate", 3]


@of("is interrupted")
def test_ctrl_c_that_the_body_takes_is_no_concern_of_the_fit(told: Told) -> None:
    for rank in told:
        assert (rank["outcome"], rank["by"], rank["steps"]) == ("completed", [], 8)


@of("has a failing handler")
def test_what_a_handler_raises_on_one_rank_comes_out_of_the_loop_on_all(told: Told) -> None:
    one, other = told
    assert other["error"] == "ValueError: of a handler"
    assert one["error"].startswith("RemoteError: rank 1 failed: ValueError: of a handler")
    for rank in told:
        assert rank["outcome"] == "failed"
        assert rank["moments"] == [1, 2]


# Handlers in the background


@of("works off")
def test_each_rank_works_off_its_own_records_in_order_before_the_fit_is_over(told: Told) -> None:
    for number, rank in enumerate(told):
        assert rank["seen"]["all"] == list(range(1, 9))
        assert rank["seen"]["zero"] == ([] if number else list(range(8)))
        assert rank["seen"]["method"] == ([] if number else [[n, 4] for n in range(8)])
        assert rank["outcome"] == "completed"
    assert told[0]["weights"] == told[1]["weights"]


@of("fails beside", "fails at the end")
def test_what_is_raised_beside_the_loop_of_one_rank_is_an_error_on_all(told: Told) -> None:
    one, other = told
    assert other["error"] == "ValueError: beside the loop"
    assert any("raised in handler 'writer' of event" in note for note in other["notes"])
    assert one["error"].startswith("RemoteError: rank 1 failed: ValueError: beside the loop")
    assert one["closed"][-1] == other["closed"][-1] == "after_fit"


@of("calls a collective")
def test_what_all_ranks_do_together_is_refused_beside_the_loop(told: Told) -> None:
    errors = [rank["error"] for rank in told]
    assert all("'adds' of event 'after_train'" in error for error in errors)
    assert all("runs in the background" in error for error in errors)
    assert any(error.startswith("RuntimeError") for error in errors)
