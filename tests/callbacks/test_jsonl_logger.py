"""The lines of JSON, read back with a strict reader."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eventtrain import AvgStatsCallback, Learner, Runner
from eventtrain.callbacks import JSONLLogger

Make = Callable[..., Learner]


def refuse(text: str) -> float:
    raise AssertionError(f"{text} is not JSON")


def lines_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def epochs_of(path: Path) -> list[int]:
    return [line["epoch"] for line in lines_of(path) if line["event"] == "after_epoch"]


def test_a_line_an_epoch_holds_the_history_and_the_last_the_outcome(
    learner: Learner, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "log.jsonl"
    run = Runner([AvgStatsCallback(report=None), JSONLLogger(path)])
    result = run.fit(2, learner)
    *epochs, last = lines_of(path)
    for line, expected in zip(epochs, result.history, strict=True):
        assert {name: line[name] for name in expected} == expected
        assert line["outcome"] == "completed" and line["seconds"] > 0
    assert last.pop("seconds") > 0
    assert last == {
        "event": "after_fit",
        "outcome": "completed",
        "reason": None,
        "epochs": result.epochs,
        "steps": result.steps,
    }


def test_a_line_is_in_the_file_when_its_epoch_ends(learner: Learner, tmp_path: Path) -> None:
    path, seen = tmp_path / "log.jsonl", []
    run = Runner(JSONLLogger(path))
    run.on("after_epoch", lambda run: seen.append(len(lines_of(path))), priority=-100)
    run.fit(2, learner)
    assert seen == [1, 2]


def test_numbers_that_are_not_finite_become_null(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    run = Runner(JSONLLogger(path))
    run.on(
        "after_epoch",
        lambda run: run.history[-1].update(a=math.nan, b=math.inf, c=torch.tensor(math.nan)),
    )
    run.fit(1, learner)
    line = lines_of(path)[0]
    assert (line["a"], line["b"], line["c"]) == (None, None, None)


def test_the_last_line_says_why_a_fit_was_cancelled(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    run = Runner(JSONLLogger(path))
    run.on("after_batch", lambda run: run.token.cancel("fit", "enough"))
    result = run.fit(2, learner)
    epoch, last = lines_of(path)
    assert epoch["outcome"] == "cancelled"
    assert (last["outcome"], last["reason"], last["epochs"]) == ("cancelled", "enough", 0)
    assert result.reason == "enough"


def test_the_last_line_says_what_a_fit_failed_of(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    run = Runner(JSONLLogger(path))

    @run.on("after_loss")
    def fail(run: Runner) -> None:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        run.fit(1, learner)
    last = lines_of(path)[-1]
    assert (last["outcome"], last["reason"]) == ("failed", "RuntimeError: gone")


def test_the_first_fit_replaces_the_file_and_later_ones_add(
    learner: Learner, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("old\n")
    run = Runner(JSONLLogger(path))
    run.fit(1, learner)
    run.fit(2, learner)
    assert [line["event"][6:] for line in lines_of(path)] == ["epoch", "fit", *["epoch"] * 2, "fit"]


def test_every_fit_counts_its_own_epochs(learner: Learner, tmp_path: Path) -> None:
    run = Runner(JSONLLogger(tmp_path / "log.jsonl"))
    run.fit(2, learner)
    run.fit(1, learner)
    ends = [line for line in lines_of(tmp_path / "log.jsonl") if line["event"] == "after_fit"]
    assert [line["epochs"] for line in ends] == [2, 1]


def test_the_seconds_of_epochs_lie_within_those_of_the_fit(
    learner: Learner, tmp_path: Path
) -> None:
    result = Runner(JSONLLogger(tmp_path / "log.jsonl")).fit(3, learner)
    *epochs, fit = [line["seconds"] for line in lines_of(tmp_path / "log.jsonl")]
    assert 0 < sum(epochs) <= fit <= result.seconds


def test_a_handler_may_change_the_working_directory(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = Runner(JSONLLogger("log.jsonl"))
    run.on("begin_epoch", lambda run: os.chdir(tmp_path / "elsewhere"))
    run.fit(1, learner)
    assert epochs_of(tmp_path / "log.jsonl") == [0]


def test_a_second_fit_that_ends_before_its_turn_has_no_line(
    learner: Learner, tmp_path: Path
) -> None:
    run = Runner(JSONLLogger(tmp_path / "log.jsonl"))
    run.fit(1, learner)
    run.on("begin_fit", lambda run: run.token.cancel("fit"))
    run.fit(1, learner)
    assert [line["event"] for line in lines_of(tmp_path / "log.jsonl")] == [
        "after_epoch",
        "after_fit",
    ]


def test_append_keeps_whole_lines_and_drops_a_torn_one(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "after_epoch", "epoch": 7}\n{"event": "aft')
    Runner(JSONLLogger(path, append=True)).fit(1, learner)
    assert epochs_of(path) == [7, 0]


def test_an_unwritable_path_is_told_once_and_before_training(
    learner: Learner, tmp_path: Path
) -> None:
    (tmp_path / "log.jsonl").mkdir()
    run = Runner(JSONLLogger(tmp_path / "log.jsonl"))
    with pytest.raises(OSError, match=r"log\.jsonl"):
        run.fit(1, learner)
    assert run.result is not None and run.result.steps == 0


def test_a_fit_that_ends_before_its_turn_leaves_the_file_alone(
    learner: Learner, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("old\n")
    run = Runner(JSONLLogger(path))
    run.on("begin_fit", lambda run: run.token.cancel("fit"))
    run.fit(1, learner)
    assert path.read_text() == "old\n"


def test_a_resumed_run_has_every_epoch_once(make_learner: Make, tmp_path: Path) -> None:
    path, learner = tmp_path / "log.jsonl", make_learner()
    states: list[dict[str, Any]] = []
    first = JSONLLogger(path)
    run = Runner(first)
    run.on("after_epoch", lambda run: states.append(first.state_dict()), priority=-100)
    run.fit(4, learner)
    assert epochs_of(path) == [0, 1, 2, 3]

    file = io.BytesIO()
    torch.save(states[1], file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = JSONLLogger(path)
    run = Runner(second)
    run.on("begin_fit", lambda run: second.load_state_dict(state), priority=-100)

    @run.on("begin_epoch")
    def where_it_resumes(run: Runner) -> None:
        run.epoch = run.history[-1]["epoch"] = 2 + run.epoch

    run.fit(2, learner)
    assert epochs_of(path) == [0, 1, 2, 3]
    assert lines_of(path)[-1]["epochs"] == 4
    assert [line["event"] for line in lines_of(path)].count("after_fit") == 1


def test_validation_alone_writes_nothing(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    Runner(JSONLLogger(path)).validate(learner)
    assert not path.exists()


def test_a_fit_of_no_epochs_has_its_outcome_alone(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    Runner(JSONLLogger(path)).fit(0, learner)
    assert [line["event"] for line in lines_of(path)] == ["after_fit"]


def test_append_must_be_a_flag(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'a'"):
        JSONLLogger(tmp_path / "log.jsonl", append="a")  # type: ignore[arg-type]


def test_what_is_no_path_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"^path must be a path, got None"):
        JSONLLogger(None)  # type: ignore[arg-type]


def test_validations_within_a_fit_are_its_lines(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    run = Runner([AvgStatsCallback(report=None), JSONLLogger(path)])
    result = run.fit(2, learner, validate_every=4)
    *rows, last = map(json.loads, path.read_text().splitlines())
    assert [(row["event"], row["step"]) for row in rows] == [("after_row", 4), ("after_row", 6)]
    assert [row["valid_loss"] for row in rows] == [row["valid_loss"] for row in result.history]
    assert (last["event"], last["epochs"], last["steps"]) == ("after_fit", 2, 6)
