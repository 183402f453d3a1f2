"""Files of a run, found by what stands in them; what is several runs' is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from eventtrain import AvgStatsCallback, DataError, EventLog, Learner, Runner
from eventtrain.callbacks import Checkpoint, CSVLogger, JSONLLogger, Timing
from eventtrain.reports.found_files import kind_of, stem_and_rank
from eventtrain.reports.row_files import csv_rows, jsonl_rows
from eventtrain.reports.run_folder import read_run_folder


def test_all_that_a_run_leaves_is_found_by_its_content(learner: Learner, tmp_path: Path) -> None:
    callbacks = [
        AvgStatsCallback(report=None),
        EventLog(tmp_path / "what.happened"),
        EventLog(tmp_path / "log.txt"),
        JSONLLogger(tmp_path / "logs" / "a.jsonl"),
        CSVLogger(tmp_path / "logs" / "b.csv"),
        Checkpoint(tmp_path / "kept"),
    ]
    callbacks[1].name = "other_log"
    run = Runner(callbacks)
    with run.bus.profile() as profile:
        run.fit(2, learner)
    profile.to_json(tmp_path / "time.json")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "model.pt").write_bytes(b"x")
    found = read_run_folder(tmp_path)
    assert found.sources == [
        "log.txt", "logs/a.jsonl", "logs/b.csv", "time.json", "kept"
    ]  # fmt: skip
    assert found.attempts[0][0].outcome == "completed"
    assert [row["epoch"] for row in found.rows["JSONLLogger"]] == [0, 1]
    assert [row["epoch"] for row in found.rows["CSVLogger"]] == [0, 1]
    assert found.rows["CSVLogger"][1]["valid_loss"] == found.rows["JSONLLogger"][1]["valid_loss"]
    assert found.ends[0]["outcome"] == "completed"
    assert found.handlers
    assert [record.epoch for record in found.checkpoints] == [1, 2]
    assert found.notes == []


def test_one_log_of_several_is_a_run_of_its_own(learner: Learner, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Runner(EventLog(tmp_path / f"{name}.jsonl")).fit(1, learner)
    with pytest.raises(DataError, match=r"more than one event log \(a, b\).*name a folder"):
        read_run_folder(tmp_path)
    assert read_run_folder(tmp_path / "a.jsonl").sources == ["a.jsonl"]


def test_folders_of_runs_are_no_run(learner: Learner, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Runner(EventLog(tmp_path / name / "events.jsonl")).fit(1, learner)
    with pytest.raises(DataError, match=r"a/events, b/events"):
        read_run_folder(tmp_path)


def test_a_folder_without_a_run_says_what_would_leave_one(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    (tmp_path / "y.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "z.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"holds nothing of a run.*EventLog\('RUN/events.jsonl'\)"):
        read_run_folder(tmp_path)


def test_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").touch()
    with pytest.raises(DataError, match=r"nothing but empty files \(events.jsonl\)"):
        read_run_folder(tmp_path)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        read_run_folder(tmp_path / "nowhere")


def test_a_file_that_is_no_log_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello\n")
    with pytest.raises(DataError, match="is no event log: name one"):
        read_run_folder(tmp_path / "x.txt")


def test_a_path_that_no_file_can_have_is_an_error() -> None:
    with pytest.raises(DataError):
        read_run_folder(Path("x" * 5000))


def test_damaged_checkpoints_are_noted_and_left_out(learner: Learner, tmp_path: Path) -> None:
    Runner(Checkpoint(tmp_path)).fit(2, learner)
    (tmp_path / "checkpoint-000002.json").write_text("{")
    os.truncate(tmp_path / "checkpoint-000002.pt", 100)
    found = read_run_folder(tmp_path)
    assert [record.epoch for record in found.checkpoints] == [1]
    assert found.notes == ["checkpoint-000002.pt is damaged"]


def test_the_times_of_parts_are_no_names_of_runs(learner: Learner, tmp_path: Path) -> None:
    Runner([Timing(history=True), JSONLLogger(tmp_path / "rows.jsonl")]).fit(1, learner)
    assert read_run_folder(tmp_path).rows["JSONLLogger"][0]["seconds_train_total"] > 0


@pytest.mark.parametrize(
    ("name", "stem", "rank"),
    [("e.jsonl", "e", 0), ("e.rank1.jsonl", "e", 1), ("e.rank12.jsonl", "e", 12)],
)
def test_the_rank_of_a_log_stands_in_its_name(name: str, stem: str, rank: int) -> None:
    assert stem_and_rank(Path(name)) == (Path(stem), rank)


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.jsonl", '{"event": "after_fit"}\n', "rows"),
        ("a.jsonl", '{"event": "begin_f', "event log"),
        ("a.jsonl", '{"message": 1}\n', None),
        ("a.csv", "epoch,valid_loss\n", "table"),
        ("a.csv", "x,y\n", None),
        ("a.json", '{"history": [], "outcome": "completed"}', "history"),
        ("a.json", '{"handlers": []}', "profile"),
        ("a.json", "[]", None),
        ("a.jsonl", "", "empty"),
        ("a.py", '{"event": "after_fit"}\n', None),
    ],
)
def test_a_file_is_what_its_content_says(
    name: str, text: str, kind: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    assert kind_of(tmp_path / name) == kind


def test_what_train_was_told_is_read(learner: Learner, tmp_path: Path) -> None:
    Runner(EventLog(tmp_path / "events.jsonl")).fit(1, learner)
    text = "epochs = 3\n[[plugins]]\nname = 'wire'\napi_key = 'hunter2'\n"
    (tmp_path / "config.toml").write_text(text)
    wire = {"name": "wire", "api_key": "(not shown)"}
    assert read_run_folder(tmp_path).settings == {"epochs": 3, "plugins": [wire]}
    (tmp_path / "config.toml").write_text("epochs =")
    found = read_run_folder(tmp_path)
    assert found.settings == {}
    assert found.notes[0].startswith("config.toml is left out: ")


def test_what_a_run_was_told_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("epochs = 3\n")
    with pytest.raises(DataError, match="nothing of a run"):
        read_run_folder(tmp_path)


# Rows


def test_each_fit_of_a_jsonl_file_has_its_number(tmp_path: Path) -> None:
    lines = [
        {"event": "after_epoch", "epoch": 0}, {"event": "after_fit", "outcome": "failed"},
        {"event": "after_epoch", "epoch": 0},
    ]  # fmt: skip
    path = tmp_path / "rows"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"event": "aft')
    rows, ends, notes = jsonl_rows(path, "rows")
    assert rows == [{"fit": 0, "epoch": 0}, {"fit": 1, "epoch": 0}]
    assert ends == [{"outcome": "failed"}]
    assert notes[0].startswith("rows: line 4 is left out")


def test_a_row_of_a_table_that_is_not_behind_the_last_begins_a_fit(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("epoch,loss\n0,0.5\n1,nan\nx,\n0,\n1")
    rows, notes = csv_rows(path, "rows.csv")
    assert [(row["fit"], row["epoch"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert notes == ["rows.csv: a row without an epoch is left out"]
