"""What ranks get, and when, if another one fails, dies, stands still or is told to end."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from forked_ranks import Ranks

from eventtrain.checkpoints.files import list_checkpoints

pytestmark = pytest.mark.slow

SOON = 5.0
CLOSED = ["fit_failed", "after_epoch", "after_fit"]


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    deeds = ("lives on", "is killed", "is stopped", "exits", "ends early", "insists")
    ranks = Ranks("failing_program.py", tmp_path_factory.mktemp("failing"), 3, *deeds)
    ranks.wait(58)
    return ranks


def reasons(ranks: Ranks, deed: str, who: int) -> list[str]:
    """What the others' results say, all of whom were out soon with their closing events."""
    others = [each for rank, each in enumerate(ranks.told(deed)) if rank != who]
    for each in others:
        assert each.get("closed") == CLOSED, each["said"]
        assert each["outcome"] == "failed"
        assert each.get("after", 0) < SOON
    return [each["reason"] for each in others]


def test_others_are_freed_from_a_collective_with_a_rank_that_has_failed_and_lives_on(
    failing: Ranks,
) -> None:
    reason = "RemoteError: rank 0 failed: ValueError: no luck (handler 'act' of 'after_loss', "
    assert reasons(failing, "lives on", 0) == [f"{reason}epoch 0, batch 2)"] * 2


def test_others_hear_of_a_rank_that_leaves_its_process(failing: Ranks) -> None:
    for reason in reasons(failing, "exits", 2):
        assert reason.startswith("RemoteError: rank 2 failed: SystemExit: 3 (handler 'act'")


@pytest.mark.parametrize("deed", ["is killed", "is stopped"])
def test_a_rank_that_is_killed_or_stopped_is_named(failing: Ranks, deed: str) -> None:
    for reason in reasons(failing, deed, 2):
        assert "rank 2 has not answered for" in reason


def test_a_loader_that_ends_early_on_one_rank_is_an_error_on_all(failing: Ranks) -> None:
    said = "DesyncError: the training of rank 2 in epoch 0 has ended after 3 batches, and another"
    assert failing.told("ends early")[2]["reason"].startswith(said)
    for reason in reasons(failing, "ends early", 2):
        assert reason.startswith(f"RemoteError: rank 2 failed: {said}")


def test_a_third_ctrl_c_ends_a_rank_that_waits_for_others_who_hear_of_it(failing: Ranks) -> None:
    assert failing.told("insists")[2]["error"] == "KeyboardInterrupt"
    for reason in reasons(failing, "insists", 2):
        assert reason.startswith("RemoteError: rank 2 failed: KeyboardInterrupt")


SIGNALLED = ("one rank", "one rank in a collective", "all ranks", "the whole group")


@pytest.fixture(scope="module")
def signalled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ranks, dict[str, float]]:
    """Ranks that were sent a SIGTERM, and when."""
    ranks = Ranks("failing_program.py", tmp_path_factory.mktemp("signalled"), 2, *SIGNALLED)
    times = {}
    for deed in SIGNALLED:
        for rank in (0, 1):
            ranks.wait_for(deed, f"{rank}.ready")
        time.sleep(0.1)  # by now rank 1 waits for rank 0
        times[deed] = time.time()
        if deed == "the whole group":
            os.killpg(ranks.process.pid, signal.SIGTERM)
        else:
            for rank in (0, 1) if deed == "all ranks" else (1,):
                os.kill(int(ranks.wait_for(deed, f"{rank}.pid")), signal.SIGTERM)
    ranks.wait(58)
    return ranks, times


@pytest.mark.parametrize("deed", SIGNALLED)
def test_a_sigterm_has_all_ranks_leave_together_with_their_closing_events(
    signalled: tuple[Ranks, dict[str, float]], deed: str
) -> None:
    ranks, times = signalled
    first, second = ranks.told(deed)
    for told in (first, second):
        assert told.get("outcome") == "cancelled", told["said"]
        assert told["reason"] == "SIGTERM"
        end = ["after_batch", "after_train", "after_epoch", "after_cancel_fit", "after_fit"]
        assert told["closed"] == end
        assert told["ended"] - times[deed] < SOON
    assert first["records"] == second["records"]
    assert first["steps"] == second["steps"]
    [checkpoint] = list_checkpoints(ranks.folder / deed / "checkpoints")
    assert checkpoint.steps == first["steps"]


def test_a_rank_in_a_collective_asks_before_that_is_over(
    signalled: tuple[Ranks, dict[str, float]],
) -> None:
    ranks, times = signalled
    deed = "one rank in a collective"
    told: Any = ranks.told(deed)[0]
    assert told["records"] == [["fit", "SIGTERM", 1]]
    assert told["heard"] - times[deed] < 1.0
