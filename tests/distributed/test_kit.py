"""Every callback of the kit on two processes, and what docs/distributed.md says of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kit_program
import pytest
import torch
from kit_cases import CASES

from eventtrain import Callback, callbacks

PROGRAM = Path(kit_program.__file__)
PAGE = PROGRAM.parents[2] / "docs" / "distributed.md"
LIMIT = 200.0
OF_ITS_OWN_DRAWS = ["CutMix", "Mixup", "Seed"]
BY_THE_CLOCK = ["StopFile", "TimeLimit"]
"""Those that end the fit: after how many batches is not said."""
ELSEWHERE = ["MLflow", "WandB"]
"""Those that need a tracker's package, which tests/trackers/test_trackers_on_ranks.py runs."""
WORKING = list(CASES)
ALIKE = [name for name in WORKING if name not in (*OF_ITS_OWN_DRAWS, *BY_THE_CLOCK)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="needs gloo",
    ),
    pytest.mark.parametrize("strategy", kit_program.STRATEGIES),
]
Told = dict[str, list[dict[str, Any]]]
"""By the callback, what each rank has told."""


@pytest.fixture(scope="module")
def together(torchrun: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank has told, after all fits with both strategies in one process group."""
    for module in ("torchmetrics", "tensorboard", "tqdm", "matplotlib"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("kit")
    done = torchrun(str(PROGRAM), str(folder), limit=LIMIT)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture
def told(together: list[dict[str, Any]], strategy: str) -> Told:
    return {name: [rank[strategy][name] for rank in together] for name in CASES}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    names = [*ALIKE, *BY_THE_CLOCK]
    found = kit_program.told_by(None, tmp_path_factory.mktemp("alone"), names)
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def nearly(value: Any, tolerance: float) -> Any:
    """What compares equal to nested numbers that are nearly the same."""
    if isinstance(value, dict):
        return {key: nearly(each, tolerance) for key, each in value.items()}
    if isinstance(value, list):
        return [nearly(each, tolerance) for each in value]
    is_number = isinstance(value, float)
    return pytest.approx(value, abs=tolerance, rel=1e-5, nan_ok=True) if is_number else value


@pytest.mark.parametrize("name", WORKING)
def test_it_runs_and_all_ranks_have_the_same(name: str, told: Told) -> None:
    one, other = told[name]
    assert one.get("trace") is None
    for key in ("outcome", "reason", "steps", "history", "weights", "numbers"):
        assert one[key] == other[key], key


@pytest.mark.parametrize("name", ALIKE)
def test_weights_history_and_numbers_are_those_of_one_process(
    name: str, told: Told, alone: dict[str, Any]
) -> None:
    tolerance = 1e-2 if name == "MixedPrecision" else 1e-6
    for rank in told[name]:
        for key in ("outcome", "steps", "weights", "history", "numbers"):
            assert rank[key] == nearly(alone[name][key], tolerance), key


@pytest.mark.parametrize("name", WORKING)
def test_lines_are_printed_once(name: str, told: Told) -> None:
    one, other = told[name]
    epochs = len(one["history"])
    assert epochs <= one["printed"] <= 2 * epochs + 1  # titles are printed when they change
    assert other["printed"] == 0


@pytest.mark.parametrize("name", ["CSVLogger", "JSONLLogger", "TensorBoard"])
def test_a_writer_writes_one_file_of_the_numbers_of_all(
    name: str, told: Told, alone: dict[str, Any]
) -> None:
    for rank in told[name]:
        assert len(rank["files"]) == len(alone[name]["files"])
        for key in ("scalars", "live"):
            assert rank.get(key) == nearly(alone[name].get(key), 1e-6)


def test_plots_are_saved_and_bars_drawn_on_rank_zero(told: Told) -> None:
    assert set(told["Recorder"][0]["files"]) == {"loss.png", "schedules.png"}
    assert [rank["drawn"] > 0 for rank in told["Progress"]] == [True, False]


def test_a_checkpoint_is_one_of_all_and_read_back_by_one_process(told: Told, strategy: str) -> None:
    shards = {"shards"} if strategy == "fsdp2" else set()
    for rank in told["Checkpoint"]:
        assert rank["read back"] == rank["weights"]
        parts = {Path(name).parts[0].partition(".")[2] for name in rank["files"]}
        assert parts == {"pt", "json", "rank0001.pt"} | shards


def test_an_event_log_is_a_file_a_rank(told: Told) -> None:
    lines = told["EventLog"][0]["files"]
    assert set(lines) == {"events.jsonl", "events.rank1.jsonl"}
    assert len(set(lines.values())) == 1


@pytest.mark.parametrize("name", ["DeviceStats", "Throughput", "Timing"])
def test_what_is_measured_of_processes_is_one_row_on_all(name: str, told: Told) -> None:
    one, other = (rank["rows"] for rank in told[name])
    assert one == other
    assert any("host" in key or "second" in key for key in one[0])


def test_a_loss_that_is_nan_on_one_rank_ends_all_and_the_reason_names_it(told: Told) -> None:
    for rank in told["TerminateOnNaN"]:
        assert rank["reason"] == "the loss was not finite in batch 1 of epoch 1 on rank 1"


@pytest.mark.parametrize("name", BY_THE_CLOCK)
def test_what_one_rank_alone_sees_ends_all(name: str, told: Told) -> None:
    for rank in told[name]:
        assert rank["outcome"] == "cancelled"
        assert ("0.4 s" if name == "TimeLimit" else "stop.1") in rank["reason"]


def test_a_range_test_puts_the_weights_back(told: Told) -> None:
    assert [rank["restored"] for rank in told["LRFinder"]] == [True, True]


def test_gradients_are_shared_once_a_group(told: Told) -> None:
    for rank in told["GradientAccumulation"]:
        assert rank["shared"] == {"each": 4, "third": 2}


def test_a_step_that_overflows_in_one_part_is_taken_nowhere(
    told: Told, alone: dict[str, Any]
) -> None:
    for rank in told["MixedPrecision"]:
        assert rank["fp16 steps"] == 7
        assert rank["fp16"] == nearly(alone["MixedPrecision"]["fp16"], 1e-2)


def test_statistics_of_normalization_are_means_over_the_shares_of_all(told: Told) -> None:
    assert [rank["statistics"] for rank in told["SWA"]] == [True, True]


@pytest.mark.parametrize("name", ["CutMix", "Mixup"])
def test_each_rank_mixes_otherwise_and_the_targets_with_it(name: str, told: Told) -> None:
    one, other = told[name]
    assert one["wrong"] == other["wrong"] == []
    assert not set(one["shares"][:3]) <= set(other["shares"][:3])


def test_ranks_draw_other_numbers_and_begin_with_the_same_weights(told: Told) -> None:
    one, other = told["Seed"]
    assert one["drawn"][0] != other["drawn"][0]
    assert one["first"] == other["first"]


@pytest.mark.parametrize("call", ["sums", "gather", "average", "whole_weight_of", "predict"])
def test_a_handler_of_rank_zero_that_waits_for_all_is_an_error_at_once(
    call: str, strategy: str, together: list[dict[str, Any]]
) -> None:
    one, other = (rank["refused"][call] for rank in together)
    assert one.startswith("RuntimeError")
    assert "'alone'" in one and "ranks='zero'" in one
    assert other.startswith("RemoteError: rank 0 failed")


ROW = re.compile(r"^\| \[(\w+)\]\([^)]+\) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)


def test_the_page_has_a_row_for_each_callback_that_says_what_was_found(
    strategy: str, told: Told
) -> None:
    rows = {found[1]: found for found in ROW.finditer(PAGE.read_text(encoding="utf-8"))}
    public = [getattr(callbacks, name) for name in callbacks.__all__]
    kit = [c.__name__ for c in public if isinstance(c, type) and issubclass(c, Callback)]
    assert sorted(rows) == sorted(kit) == sorted([*CASES, *ELSEWHERE])
    column = 2 + kit_program.STRATEGIES.index(strategy)
    for name, row in rows.items():
        if name in ELSEWHERE:
            assert row[column] == "yes"
            continue
        errors = [rank.get("error") for rank in told[name]]
        assert (row[column], errors) == ("yes", [None, None]), name
