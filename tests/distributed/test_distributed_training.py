"""Training on two real processes, which torchrun starts: equal, together, and not for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("train_program.py")
SIZE = 2


def start(torchrun: Any, folder: Path, deed: str) -> list[dict[str, Any]]:
    """Have the ranks do a deed; return what each has told, nothing where it was ended."""
    said = torchrun(str(PROGRAM), str(folder), deed).stderr
    files = [folder / f"{rank}.json" for rank in range(SIZE)]
    told = [json.loads(file.read_text()) if file.exists() else {} for file in files]
    for each in told:
        each["said"] = said
    return told


@pytest.fixture(scope="module")
def together(torchrun: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return start(torchrun, tmp_path_factory.mktemp("ranks"), "together")


def test_weights_equal_those_of_ddp_by_hand_bit_for_bit(together: list[dict[str, Any]]) -> None:
    for told in together:
        assert told["ddp"]["outcome"] == "completed", told["said"]
        assert told["ddp"]["weights"] == together[0]["hand"]


def test_each_rank_knows_its_place_and_has_the_users_own_model(
    together: list[dict[str, Any]],
) -> None:
    assert [told["group"] for told in together] == [[0, 2, True, "Blocks"], [1, 2, False, "Blocks"]]


def test_fsdp2_trains_to_the_weights_of_ddp(together: list[dict[str, Any]]) -> None:
    for told in together:
        assert told["fsdp2"]["weights"] == pytest.approx(told["ddp"]["weights"], abs=1e-6)


def test_a_group_without_distributed_is_an_error_that_names_it(
    together: list[dict[str, Any]],
) -> None:
    assert all("Distributed('ddp')" in told["without"] for told in together)


@pytest.mark.parametrize("where", ["in after_batch", "in after_validate"])
def test_a_fit_that_one_rank_cancels_ends_on_all_at_one_place(
    together: list[dict[str, Any]], where: str
) -> None:
    first, second = (told[where] for told in together)
    assert first == second
    assert (first["outcome"], first["reason"], first["by"]) == ("cancelled", "enough", [1])
    assert first["closed"][-2:] == ["after_epoch", "after_fit"]


def test_an_epoch_that_one_rank_cancels_ends_on_all_and_the_fit_goes_on(
    together: list[dict[str, Any]],
) -> None:
    first, second = (told["in begin_epoch"] for told in together)
    assert first == second
    assert (first["outcome"], first["by"]) == ("completed", [1])
    assert first["closed"] == ["after_cancel_epoch", "after_epoch", "after_epoch", "after_fit"]


def test_batches_and_steps_that_all_ranks_cancel_alike_are_no_error(
    together: list[dict[str, Any]],
) -> None:
    first, second = (told["alike"] for told in together)
    assert first["error"] is None
    assert first["weights"] == second["weights"]


def test_validation_and_predictions_need_no_training(together: list[dict[str, Any]]) -> None:
    for told in together:
        assert told["alone"] == ["completed", True, [True, True], [[0.0] * 3] * 2]


def test_a_run_inside_of_another_by_its_token_is_its_guest(together: list[dict[str, Any]]) -> None:
    for told in together:
        assert told["guest"]["error"] is None
        assert told["guest"]["weights"] == told["ddp"]["weights"]


def test_a_profile_leaves_the_scopes_those_that_all_leave_together(
    together: list[dict[str, Any]],
) -> None:
    first, second = (told["profiled"] for told in together)
    assert first == second
    assert (first["outcome"], first["is_timed"]) == ("cancelled", True)


def test_a_loop_that_calls_the_model_past_ddp_is_an_error(together: list[dict[str, Any]]) -> None:
    assert all("model_wrapped" in told["past DDP"] for told in together)


def test_a_step_that_one_rank_leaves_out_is_an_error_on_all(
    together: list[dict[str, Any]],
) -> None:
    for told in together:
        assert told["step"]["error"].startswith("DesyncError")
        assert "rank 1 took 3 steps and cancelled (step, epoch 0, batch 1)" in told["step"]["error"]
        assert told["step"]["closed"][-1] == "after_fit"


def test_a_failure_on_one_rank_is_told_on_the_other_whose_closing_events_fire(
    torchrun: Any, tmp_path: Path
) -> None:
    first, second = start(torchrun, tmp_path, "fails")
    assert second["error"] == "ValueError: no luck"
    assert first["error"] == (
        "RemoteError: rank 1 failed: ValueError: no luck "
        "(handler 'boom' of 'after_backward', epoch 0, batch 2)"
    )
    assert first["closed"] == ["fit_failed", "after_epoch", "after_fit"]


def test_a_sigterm_to_one_rank_ends_all_with_their_closing_events(
    torchrun: Any, tmp_path: Path
) -> None:
    start(torchrun, tmp_path, "is terminated")
    closed = [(tmp_path / f"{rank}.closed").read_text() for rank in range(SIZE)]
    assert closed == ["cancelled None", "cancelled None"]


def test_a_rank_that_is_killed_leaves_the_other_with_its_closing_events(
    torchrun: Any, tmp_path: Path
) -> None:
    start(torchrun, tmp_path, "is killed")
    assert not (tmp_path / "1.closed").exists()
    assert (tmp_path / "0.closed").read_text().startswith("failed the connection to another rank")
