"""The CSV file, read back with the standard library."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eventtrain import AvgStatsCallback, Learner, Runner
from eventtrain.callbacks import CSVLogger

Make = Callable[..., Learner]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, strict=True))


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_row_an_epoch_holds_the_history(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.csv"
    run = Runner([AvgStatsCallback(report=None), CSVLogger(path)])
    history = run.fit(2, learner).history
    rows = rows_of(path)
    assert list(rows[0]) == ["epoch", "train_loss", "valid_loss", "seconds", "outcome"]
    for row, expected in zip(rows, history, strict=True):
        assert {name: float(row[name]) for name in expected} == expected
        assert float(row["seconds"]) > 0
        assert row["outcome"] == "completed"


def test_the_seconds_of_epochs_lie_within_those_of_the_fit(
    learner: Learner, tmp_path: Path
) -> None:
    result = Runner(CSVLogger(tmp_path / "log.csv")).fit(3, learner)
    seconds = [float(row["seconds"]) for row in rows_of(tmp_path / "log.csv")]
    assert 0 < sum(seconds) <= result.seconds


def test_lines_end_alike_on_every_system(learner: Learner, tmp_path: Path) -> None:
    Runner(CSVLogger(tmp_path / "log.csv")).fit(2, learner)
    assert (tmp_path / "log.csv").read_bytes().count(b"\r") == 0


def test_a_row_is_in_the_file_when_its_epoch_ends(learner: Learner, tmp_path: Path) -> None:
    path, seen = tmp_path / "log.csv", []
    run = Runner(CSVLogger(path))
    run.on("after_epoch", lambda run: seen.append(len(rows_of(path))), priority=-100)
    run.fit(3, learner)
    assert seen == [1, 2, 3]


def test_a_new_column_widens_the_whole_file(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    run = Runner(CSVLogger(path))

    @run.on("after_epoch", when=lambda run: run.epoch == 1)
    def more(run: Runner) -> None:
        run.history[-1]["extra, with comma"] = 5

    run.fit(3, learner)
    assert [row["extra, with comma"] for row in rows_of(path)] == ["", "5", ""]
    assert os.listdir(tmp_path) == ["log.csv"]


def test_numbers_that_are_not_finite_can_be_read_back(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    run = Runner(CSVLogger(path))
    run.on("after_epoch", lambda run: run.history[-1].update(a=math.nan, b=-math.inf, c=None))
    run.fit(1, learner)
    (row,) = rows_of(path)
    assert math.isnan(float(row["a"])) and float(row["b"]) == -math.inf and row["c"] == ""


def test_the_first_fit_replaces_the_file_and_later_ones_add(
    learner: Learner, tmp_path: Path
) -> None:
    path = tmp_path / "log.csv"
    path.write_text("old\n1\n")
    run = Runner(CSVLogger(path))
    run.fit(1, learner)
    run.fit(2, learner)
    assert [row["epoch"] for row in rows_of(path)] == ["0", "0", "1"]


def test_append_keeps_the_rows_that_are_there(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("epoch,old\n7,text\n")
    Runner(CSVLogger(path, append=True)).fit(1, learner)
    rows = rows_of(path)
    assert [(row["epoch"], row["old"]) for row in rows] == [("7", "text"), ("0", "")]


@pytest.mark.parametrize("torn", ["8", "8,1.", "8,1.0,completed", '8,"two\n', '8,"two\nli', '"'])
def test_append_drops_a_row_that_was_torn(learner: Learner, tmp_path: Path, torn: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f'epoch,seconds,outcome\n7,1.0,"two\nlines"\n{torn}')
    Runner(CSVLogger(path, append=True)).fit(1, learner)
    rows = rows_of(path)
    assert [row["epoch"] for row in rows] == ["7", "0"]
    assert rows[0]["outcome"] == "two\nlines"


def test_append_keeps_rows_with_a_single_quote_mark(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('epoch,note\n6,a 5" disk\n7,text\n')
    Runner(CSVLogger(path, append=True)).fit(1, learner)
    assert [row["note"] for row in rows_of(path)] == ['a 5" disk', "text", ""]


@pytest.mark.parametrize("text", ["epoch,seconds,outcome", "\n", ""])
def test_append_to_a_file_without_rows_writes_the_header_once(
    learner: Learner, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    Runner(CSVLogger(path, append=True)).fit(1, learner)
    assert path.read_text().startswith("epoch,seconds,outcome\n0,")


@pytest.mark.parametrize("text", ["name,price\nx,1\n", "name,price\nx,1", "name,price"])
def test_another_table_is_not_appended_to(learner: Learner, tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="name, price"):
        Runner(CSVLogger(path, append=True)).fit(1, learner)
    assert path.read_text() == text


def test_a_file_that_is_removed_meanwhile_is_written_again(
    learner: Learner, tmp_path: Path
) -> None:
    path = tmp_path / "log.csv"
    run = Runner(CSVLogger(path))
    run.on("begin_epoch", lambda run: path.unlink(), when=lambda run: run.epoch == 1)
    run.fit(2, learner)
    assert [row["epoch"] for row in rows_of(path)] == ["0", "1"]


def test_a_file_that_is_removed_between_two_fits_is_written_again(
    learner: Learner, tmp_path: Path
) -> None:
    path = tmp_path / "log.csv"
    run = Runner(CSVLogger(path))
    run.fit(2, learner)
    path.unlink()
    run.fit(1, learner)
    assert [row["epoch"] for row in rows_of(path)] == ["0", "1", "0"]


def test_an_unwritable_path_is_told_before_training(learner: Learner, tmp_path: Path) -> None:
    (tmp_path / "log.csv").mkdir()
    run = Runner(CSVLogger(tmp_path / "log.csv"))
    with pytest.raises(OSError, match=r"log\.csv"):
        run.fit(1, learner)
    assert run.result is not None and run.result.steps == 0


def test_a_handler_may_change_the_working_directory(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = Runner(CSVLogger("log.csv"))
    run.on("begin_epoch", lambda run: os.chdir(tmp_path / "elsewhere"))
    run.fit(1, learner)
    assert len(rows_of(tmp_path / "log.csv")) == 1


def test_cancelled_and_failed_epochs_have_rows(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    run = Runner(CSVLogger(path))
    run.on("begin_train", lambda run: run.token.cancel("epoch"), when=lambda run: run.epoch == 0)

    @run.on("after_loss")
    def fail(run: Runner) -> None:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        run.fit(2, learner)
    assert [row["outcome"] for row in rows_of(path)] == ["cancelled", "failed"]


def test_a_resumed_run_has_every_epoch_once(make_learner: Make, tmp_path: Path) -> None:
    path, learner = tmp_path / "log.csv", make_learner()
    states: list[dict[str, Any]] = []
    first = CSVLogger(path)
    run = Runner([AvgStatsCallback(report=None), first])
    run.on("after_epoch", lambda run: states.append(first.state_dict()), priority=-100)
    history = run.fit(4, learner).history
    whole = rows_of(path)

    second = CSVLogger(path)
    run = Runner(second)
    state = through_a_file(states[1])
    run.on("begin_fit", lambda run: second.load_state_dict(state), priority=-100)

    @run.on("begin_epoch")
    def where_it_resumes(run: Runner) -> None:
        run.epoch = 2 + run.epoch
        run.history[-1].update(history[run.epoch])

    run.fit(2, learner)
    names = ("epoch", "train_loss", "valid_loss")
    assert [[row[n] for n in names] for row in rows_of(path)] == [
        [row[n] for n in names] for row in whole
    ]


def test_validation_alone_and_no_epochs_write_no_row(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    run = Runner(CSVLogger(path))
    run.validate(learner)
    assert not path.exists()
    run.fit(0, learner)
    assert path.read_text() == ""


def test_append_must_be_a_flag(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'a'"):
        CSVLogger(tmp_path / "log.csv", append="a")  # type: ignore[arg-type]


def test_what_is_no_path_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"^path must be a path, got None"):
        CSVLogger(None)  # type: ignore[arg-type]


def test_validations_within_a_fit_are_its_rows(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    run = Runner([AvgStatsCallback(report=None), CSVLogger(path)])
    result = run.fit(steps=5, learn=learner, validate_every=2)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["epoch", "step", "train_loss", "valid_loss"]
    assert [(row["step"], row["outcome"]) for row in rows] == [
        ("2", "completed"), ("4", "completed"), ("5", "completed")
    ]  # fmt: skip
    assert [float(row["train_loss"]) for row in rows] == [r["train_loss"] for r in result.history]
    assert all(float(row["seconds"]) >= 0 for row in rows)
