"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from eventtrain.atomic_file import prepare_folder, remove_parts, replace_file


def test_a_file_gets_its_content_and_nothing_else_stays(tmp_path: Path) -> None:
    replace_file(tmp_path / "a.txt", lambda file: file.write(b"new"))
    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_while_it_is_written_the_old_one_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"

    replace_file(path, write)
    assert path.read_text() == "new"


def test_it_is_on_the_disk_before_it_gets_its_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def note(name: str, real: Any, *args: Any) -> None:
        calls.append(name)
        real(*args)

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, partial(note, name, getattr(os, name)))
    replace_file(tmp_path / "a.txt", lambda file: file.write(b"new"))
    assert calls == ["fsync", "replace", *(["fsync"] if os.name != "nt" else [])]


def test_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_killed_process_left_can_be_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    for number in (process.pid, os.getpid()):  # which was another's before, in a container say
        (tmp_path / f".a.txt.{number}.part").write_text("half")
    (tmp_path / "a.txt").write_text("whole")
    remove_parts(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="cannot ask for processes there")
def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    part = tmp_path / f".a.txt.{os.getppid()}.part"
    part.write_text("half")
    remove_parts(tmp_path)
    assert part.exists()


def test_a_folder_is_made_with_those_around_it_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(FileExistsError):
        prepare_folder(tmp_path / "a")
