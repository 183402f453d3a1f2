"""Checkpoints on disk: whole, checked, and read without running what they hold."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from eventtrain import CheckpointError, load_checkpoint
from eventtrain.checkpoints.files import (
    list_checkpoints,
    next_path,
    remove_checkpoint,
    remove_unfinished,
    write_checkpoint,
)
from eventtrain.checkpoints.records import FORMAT, Record

CONTENT = {"format": FORMAT, "model": {"weight": torch.arange(1000.0)}}


def write(folder: Path, **more: Any) -> Record:
    path, serial = next_path(folder)
    record = Record(path, serial, "fit", epoch=1, phase="train", batch=2, steps=3, **more)
    write_checkpoint(record, CONTENT)
    return record


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content = load_checkpoint(write(tmp_path).path)
    assert torch.equal(content["model"]["weight"], CONTENT["model"]["weight"])


def test_the_record_tells_where_the_run_stood(tmp_path: Path) -> None:
    write(tmp_path, metrics={"loss": 0.5})
    (record,) = list_checkpoints(tmp_path)
    assert (record.epoch, record.phase, record.batch, record.steps) == (1, "train", 2, 3)
    assert (record.fit, record.serial, record.metrics) == ("fit", 1, {"loss": 0.5})
    about = json.loads((tmp_path / "checkpoint-000001.json").read_text())
    assert about["torch"] == torch.__version__
    assert len(about["sha256"]) == 64


def test_serial_numbers_are_not_used_twice(tmp_path: Path) -> None:
    first = write(tmp_path)
    write(tmp_path)
    remove_checkpoint(first)
    assert [record.serial for record in list_checkpoints(tmp_path)] == [2]
    assert write(tmp_path).serial == 3


def test_foreign_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    for name in ("checkpoint.pt", "model.pt", "checkpoint-1.pt", "checkpoint-000001.txt"):
        (tmp_path / name).write_text("")
    assert list_checkpoints(tmp_path) == []
    assert next_path(tmp_path)[1] == 1


@pytest.mark.parametrize("where", [0, 500, -1])
@pytest.mark.parametrize("change", ["flip", "cut"])
def test_a_damaged_file_is_refused(where: int, change: str, tmp_path: Path) -> None:
    path = write(tmp_path).path
    content = bytearray(path.read_bytes())
    if change == "flip":
        content[where] ^= 0x10
    else:
        content = content[:where]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its SHA-256"):
        load_checkpoint(path)


def test_a_file_without_its_record_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path).path
    path.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match="damaged: its record beside it is missing"):
        load_checkpoint(path)


@pytest.mark.parametrize("record", ["", "[]", "{", '{"sha256": 1}'])
def test_a_damaged_record_is_no_record(record: str, tmp_path: Path) -> None:
    path = write(tmp_path).path
    path.with_suffix(".json").write_text(record)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
    assert [each.serial for each in list_checkpoints(tmp_path)] == [1]


def test_from_a_folder_the_newest_whole_one_is_read(tmp_path: Path) -> None:
    for _ in range(3):
        last = write(tmp_path)
    last.path.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="000003.pt is damaged.*one before it"):
        assert load_checkpoint(tmp_path)["format"] == FORMAT


class Killed(BaseException):
    """What ends a process that is doing something to files."""


def killed_at(call: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ``call``-th use of a function of ``os``, from 0, be the last thing that happens."""
    calls, real = itertools.count(), getattr(os, name)

    def die_before(*args: Any, **options: Any) -> Any:
        if next(calls) >= call:
            raise Killed
        return real(*args, **options)

    monkeypatch.setattr(os, name, die_before)


@pytest.mark.parametrize("function", ["replace", "fsync", "unlink"])
@pytest.mark.parametrize("call", range(5))
@pytest.mark.parametrize("before", [0, 1])
def test_whenever_writing_is_killed_what_is_there_is_whole(
    function: str, call: int, before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(before):
        write(tmp_path)
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        killed_at(call, function, patch)
        write(tmp_path)
    records = list_checkpoints(tmp_path)
    assert before <= len(records) <= before + 1
    for record in records:
        assert load_checkpoint(record.path)["format"] == FORMAT


@pytest.mark.parametrize("call", [0, 1])
def test_whenever_removing_is_killed_what_is_there_is_whole(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = write(tmp_path)
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        killed_at(call, "unlink", patch)
        remove_checkpoint(record)
    for record in list_checkpoints(tmp_path):
        assert load_checkpoint(record.path)["format"] == FORMAT


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path)
    others = {"checkpoint-000002.pt", "settings.json", "checkpoint.json"}
    for name in (*others, f".checkpoint-000003.pt.{os.getpid()}.part", "checkpoint-000003.json"):
        (tmp_path / name).write_text("{}")
    remove_unfinished(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"checkpoint-000001.pt", "checkpoint-000001.json", *others}


@pytest.mark.skipif(os.name == "nt", reason="cannot ask for processes there")
def test_a_record_whose_checkpoint_another_process_is_writing_stays(tmp_path: Path) -> None:
    names = {f".checkpoint-000003.pt.{os.getppid()}.part", "checkpoint-000003.json"}
    for name in names:
        (tmp_path / name).write_text("{}")
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_folder_without_checkpoints_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


def test_a_hostile_file_runs_no_code(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "it ran"),)

    record = write(tmp_path)
    # Whole by its sum: whoever made it can make the record, too.
    write_checkpoint(record, {"format": FORMAT, "model": Hostile()})
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(record.path)
    assert not (tmp_path / "it ran").exists()


def test_a_pickle_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    record = write(tmp_path)
    write_checkpoint(record, {"format": 99})
    with pytest.raises(CheckpointError, match=f"no checkpoint of format {FORMAT}"):
        load_checkpoint(record.path)
    record.path.write_bytes(pickle.dumps({"format": FORMAT}))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(record.path)


def test_what_cannot_be_written_is_told_and_leaves_the_others(tmp_path: Path) -> None:
    write(tmp_path)
    record = Record(tmp_path / "none" / "checkpoint-000002.pt", 2, "fit", 0, None, 0, 0)
    with pytest.raises(CheckpointError, match="cannot write checkpoint"):
        write_checkpoint(record, CONTENT)
    assert load_checkpoint(tmp_path)["format"] == FORMAT


def test_a_checkpoint_of_the_first_format_is_read_under_the_names_of_today(tmp_path) -> None:
    path, serial = next_path(tmp_path)
    counters = {"n_iter": 3, "_epochs_done": 1, "_first_iter": 2, "_train_iters": None}
    record = Record(path, serial, "fit", 0, None, 0, 3, {})
    write_checkpoint(record, {"format": 1, "counters": counters})
    assert load_checkpoint(path)["counters"] == {
        "n_iter": 3,
        "epochs_done": 1,
        "epoch_began_at": 2,
        "train_iters": None,
    }
