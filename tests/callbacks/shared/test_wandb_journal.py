"""Notes on rows that W&B's process may lose; what its files hold is in tests/trackers."""

from __future__ import annotations

from pathlib import Path

from eventtrain.callbacks.shared.wandb_journal import Journal, rows_in


def test_rows_are_read_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    assert journal.read() == (None, [])
    journal.add((3, 0), {"loss": 0.5})
    journal.add((6, 1), {"loss": 0.25})
    assert journal.read() == (None, [((3, 0), {"loss": 0.5}), ((6, 1), {"loss": 0.25})])


def test_what_is_written_for_certain_is_kept_no_longer(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    journal.add((3, 0), {"loss": 0.5})
    journal.close((3, 0))
    journal.add((6, 1), {"loss": 0.25})
    assert Journal(tmp_path / "a.jsonl").read() == ((3, 0), [((6, 1), {"loss": 0.25})])


def test_a_line_that_a_process_was_killed_in_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    journal.add((3, 0), {"loss": 0.5})
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('[6, 1, {"lo')
    assert journal.read() == (None, [((3, 0), {"loss": 0.5})])


def test_where_wandb_has_made_no_folder_nothing_is_noted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "nowhere" / "a.jsonl")
    journal.add((3, 0), {})
    journal.close((3, 0))
    assert journal.read() == (None, [])
    assert not (tmp_path / "nowhere").exists()


def test_a_run_without_files_has_no_rows(tmp_path: Path) -> None:
    assert rows_in(tmp_path, "abc") == set()
