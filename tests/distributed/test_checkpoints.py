"""Runs on several processes that save, are lost, and go on, on this number of them or another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_program
import pytest
from checkpoint_program import BATCHES, EPOCHS

pytestmark = pytest.mark.slow

PROGRAM = Path(checkpoint_program.__file__)
LIMIT = 60.0
CLOSE = 1e-6
Tell = Callable[[str], Any]


@pytest.fixture
def told_by(tmp_path: Path) -> Tell:
    """Runs a scenario of the program, and returns what it tells."""

    def told(scenario: str) -> Any:
        environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])}
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(tmp_path), scenario],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the ranks are of its session
            said, _ = process.communicate()
            raise AssertionError(f"{scenario!r} has not ended in {LIMIT:g} s: {said}") from None
        assert process.returncode == 0, said
        return json.loads((tmp_path / f"{scenario}.json").read_text())

    return told


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["weights"] == pytest.approx(other["weights"], abs=CLOSE)
    assert (one["steps"], one["outcome"]) == (other["steps"], other["outcome"])
    keys = ("train_loss", "valid_loss")
    for row, same in zip(one["history"], other["history"], strict=True):
        assert [row[key] for key in keys] == pytest.approx([same[key] for key in keys], abs=CLOSE)


@pytest.mark.parametrize("scenario", ["ddp", "ddp, groups", "fsdp2", "fsdp2, groups"])
def test_ranks_that_are_all_killed_go_on_as_if_nothing_had_happened(
    told_by: Tell, scenario: str
) -> None:
    whole, resumed = told_by(scenario)
    assert [each["outcome"] for each in whole] == ["completed", "completed"]
    assert resumed == whole  # weights, random numbers, history and steps, on each rank


@pytest.mark.parametrize("scenario", ["ddp elsewhere", "fsdp2 elsewhere", "alone"])
def test_another_number_of_processes_goes_on_in_the_middle_of_an_epoch_with_the_same_batches(
    told_by: Tell, scenario: str
) -> None:
    whole, *resumed = told_by(scenario)
    assert whole[0]["steps"] == EPOCHS * BATCHES
    assert [len(each) for each in resumed] == ([2] if scenario == "alone" else [1, 4])
    for ranks in resumed:
        for each in ranks:
            assert_close(each, whole[0])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_fit_that_one_rank_cancels_leaves_a_checkpoint_of_its_last_step(
    told_by: Tell, strategy: str
) -> None:
    whole, cut, steps, resumed = told_by(f"{strategy} cancelled")
    assert [each["outcome"] for each in cut] == ["cancelled"] * 2
    # The other rank may have begun the batch after it.
    assert cut[0]["steps"] == cut[1]["steps"] in (8, 9)
    assert steps == [cut[0]["steps"]]
    assert resumed == whole


OF_ZERO = ["replace .pt", "replace .json", "unlink .pt", "unlink .json", "unlink .rank0001.pt"]
CHANGES = {
    "ddp": {*(f"0 {each}" for each in OF_ZERO), "1 replace .rank0001.pt"},
    "fsdp2": {"0 mkdir .shards", "0 rename .metadata", "0 rmtree .shards"},
}
CHANGES["fsdp2"] |= CHANGES["ddp"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_rank_that_is_killed_before_any_change_of_the_folder_loses_nothing(
    told_by: Tell, strategy: str
) -> None:
    outcomes, found = told_by(f"{strategy} killed")
    assert outcomes == ["completed"] * 2
    assert CHANGES[strategy] <= set(found)
    assert [change for change, was in found.items() if was != [True, True]] == []


def test_who_saves_with_a_rank_that_was_killed_does_not_wait_for_ever(told_by: Tell) -> None:
    (error, seconds), other = told_by("noticed")
    assert error.startswith("RemoteError: rank 1 has not answered for 2 s")
    assert seconds < 5
    assert other == "was killed"


@pytest.mark.parametrize(
    ("scenario", "rank"),
    [("ddp cannot", 1), ("fsdp2 cannot", 1), ("zero cannot", 0), ("shards cannot", 1)],
)
def test_where_one_rank_cannot_write_all_fail_and_the_checkpoint_before_stays_the_newest(
    told_by: Tell, tmp_path: Path, scenario: str, rank: int
) -> None:
    told, left, goes_on_at = told_by(scenario)
    assert len(told) == 2
    for each in told:
        assert each.startswith(f"CheckpointError: cannot write checkpoint {tmp_path / scenario}")
        assert f"rank {rank}: " in each
    # Where a thread writes, that of the step before may be the one.
    serials = sorted({int(name[11:17]) for name in left})
    assert serials in ([3, 4], [2, 3])
    assert goes_on_at == serials[1:] * 2


def test_ranks_that_have_not_one_folder_are_told_so_before_anything_is_trained(
    told_by: Tell,
) -> None:
    for each in told_by("other folders"):
        assert "rank 1: it does not see what rank 0 writes" in each
        assert "a file system that they share" in each


def test_a_checkpoint_that_lacks_one_rank_s_part_is_passed_over_by_all(told_by: Tell) -> None:
    from_folder, warned, by_name = told_by("damaged")
    assert [each["steps"] for each in from_folder] == [EPOCHS * BATCHES] * 2
    assert warned == [True, False]  # the one before it is tried, says rank 0
    for each in by_name:
        assert each.startswith("CheckpointError: rank 1: checkpoint ")
        assert "rank0001.pt is another" in each
