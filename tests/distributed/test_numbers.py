"""Numbers of a run on two processes, and those of one process on the same batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numbers_program
import pytest
import torch

PROGRAM = Path(numbers_program.__file__)
TRAINED = [
    *("trains", "trains with a last batch of one row", "trains with a weight"),
    *("accumulates", "accumulates with a weight", "computes metrics"),
    *("logs", "logs with a weight", "has parts", "computes over all"),
    "validates on several",
    *("trains sharded", "accumulates sharded", "is cut short"),
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="needs gloo",
    ),
]


@pytest.fixture(scope="module")
def told(torchrun: Any) -> dict[str, list[dict[str, Any]]]:
    """What the two ranks told of each deed; they do all of them in one run."""
    done = torchrun(str(PROGRAM), *numbers_program.DEEDS, limit=120)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found: dict[str, list[dict[str, Any]]] = {deed: [] for deed in numbers_program.DEEDS}
    for line in lines:
        found[line["deed"]].append(line)
    assert all(len(ranks) == 2 for ranks in found.values())
    return found


@pytest.mark.filterwarnings("ignore:Metric `SpearmanCorrcoef` will save:UserWarning")
@pytest.mark.parametrize("deed", TRAINED)
def test_weights_and_averages_are_those_of_one_process(
    told: dict[str, list[dict[str, Any]]], deed: str
) -> None:
    alone = numbers_program.DEEDS[deed]()
    assert all(value == value for value in alone["weights"]), "no NaN can hide a difference"
    for rank in told[deed]:
        assert rank["weights"] == pytest.approx(alone["weights"], rel=1e-9)
        for row, expected in zip(rank["history"], alone["history"], strict=True):
            assert row == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("deed", TRAINED)
def test_rows_and_weights_are_equal_on_all_ranks(
    told: dict[str, list[dict[str, Any]]], deed: str
) -> None:
    one, other = told[deed]
    assert one["history"] == other["history"]
    assert one["weights"] == other["weights"]


def test_a_bad_loss_on_one_rank_ends_the_fit_of_all(told: dict[str, list[dict[str, Any]]]) -> None:
    ends = [(rank["steps"], rank["reason"]) for rank in told["meets nan"]]
    reason = "the loss was not finite in one of the batches 2 to 3 of epoch 0 on rank 1"
    assert ends == [(3, reason)] * 2


def test_an_overflow_in_one_shard_is_one_for_all(told: dict[str, list[dict[str, Any]]]) -> None:
    for rank in told["overflows sharded"]:
        assert (rank["steps"], rank["reasons"], rank["scale"]) == (3, ["overflow"], 2.0)


def test_a_range_test_is_that_of_one_process(told: dict[str, list[dict[str, Any]]]) -> None:
    alone = numbers_program.finds_rates()
    for rank in told["finds rates"]:
        assert rank["lrs"] == alone["lrs"]
        assert rank["losses"] == pytest.approx(alone["losses"])


def test_speed_is_that_of_the_slowest_and_samples_are_all(
    told: dict[str, list[dict[str, Any]]],
) -> None:
    one, other = told["measures speed"]
    assert one["row"] == other["row"]
    assert one["samples"] == pytest.approx(23 / 4)


def test_the_rank_that_the_others_wait_for_is_named(told: dict[str, list[dict[str, Any]]]) -> None:
    for rank in told["measures speed"]:
        row = rank["row"]
        assert [row["train_slowest_rank"], row["valid_slowest_rank"]] == [1, 1]
        assert 0.5 < row["train_spread"] < 1
        assert 0.5 < row["valid_spread"] < 1


def test_ranks_draw_other_random_numbers_and_share_one_order(
    told: dict[str, list[dict[str, Any]]],
) -> None:
    for rank in told["draws random numbers"]:
        assert (rank["streams"], rank["rows"]) == (2, 16)


def test_predictions_are_those_of_one_process_on_all_ranks(
    told: dict[str, list[dict[str, Any]]],
) -> None:
    alone = numbers_program.predicts()["found"]
    for rank in told["predicts"]:
        assert rank["found"][0] == pytest.approx(alone[0])
        assert rank["found"][1:-1] == alone[1:-1]
        assert rank["found"][-1] == pytest.approx(alone[-1])


def test_predictions_without_a_row_for_each_sample_are_an_error_on_all_ranks(
    told: dict[str, list[dict[str, Any]]],
) -> None:
    for rank in told["predicts means"]:
        assert "rank 0: shape [2], for 4 samples; rank 1" in rank["error"]


def test_loaders_of_other_lengths_are_an_error_on_all_ranks(
    told: dict[str, list[dict[str, Any]]],
) -> None:
    for rank in told["differs in length"]:
        assert "number of batches" in rank["error"]
        assert "rank 0: 4, rank 1: 5" in rank["error"]


def test_a_metric_that_each_rank_computes_for_itself_is_an_error(
    told: dict[str, list[dict[str, Any]]],
) -> None:
    for rank in told["has a metric of its own"]:
        assert "computes another number in each process" in rank["error"]
