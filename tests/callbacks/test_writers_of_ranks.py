"""Who prints and writes: of several processes one, and the event log on each."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from eventtrain import AvgStatsCallback, EventLog, Runner, callbacks as kit
from eventtrain.distributed import groups

WRITERS = {
    "CSVLogger": lambda folder: kit.CSVLogger(folder / "log.csv"),
    "JSONLLogger": lambda folder: kit.JSONLLogger(folder / "log.jsonl"),
    "TensorBoard": lambda folder: kit.TensorBoard(folder / "board"),
    "Progress": lambda folder: kit.Progress(file=io.StringIO()),
}


@pytest.fixture
def as_rank(monkeypatch: Any) -> Any:
    """Have runs validate as one of two ranks, which needs no other."""

    def be(rank: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")

    return be


def handlers_that_run(run: Runner) -> list[str]:
    """In the events in which files are opened and written."""
    events = ("begin_fit", "after_epoch", "after_fit")
    handlers = [h for name in events for h in run.bus.signal(name).handlers_for(run)]
    return [h.name for h in handlers if h.options.ranks != "all"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_runs_on_rank_zero_alone(name: str, tmp_path: Path, as_rank: Any) -> None:
    writer = WRITERS[name](tmp_path)
    run = Runner(writer)
    as_rank(0)
    assert writer.name in handlers_that_run(run)
    as_rank(1)
    assert writer.name not in handlers_that_run(run)


@pytest.mark.parametrize("name", ["CSVLogger", "JSONLLogger"])
def test_what_is_resumed_is_written_on_rank_zero_alone(
    name: str, tmp_path: Path, as_rank: Any
) -> None:
    writer = WRITERS[name](tmp_path)
    run = Runner(writer)
    as_rank(1)
    writer.load_state_dict(writer.state_dict())
    assert not writer.path.exists()
    as_rank(0)
    writer.load_state_dict(writer.state_dict())
    assert writer.path.exists()
    assert run.is_zero


@pytest.mark.parametrize(("rank", "prints"), [(0, True), (1, False)])
def test_averages_are_printed_on_rank_zero_and_known_on_all(
    rank: int, prints: bool, make_learner: Any, as_rank: Any
) -> None:
    lines: list[str] = []
    run = Runner(AvgStatsCallback(report=lines.append))
    as_rank(rank)
    result = run.validate(make_learner())
    assert bool(lines) is prints
    assert "valid_loss" in result.history[0]


def test_an_event_log_is_a_file_a_rank(make_learner: Any, tmp_path: Path, as_rank: Any) -> None:
    for rank in range(2):
        as_rank(rank)
        Runner(EventLog(tmp_path / "events.jsonl")).validate(make_learner())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "events.jsonl",
        "events.rank1.jsonl",
    ]
    texts = [path.read_text() for path in tmp_path.iterdir()]
    assert all("after_validate" in text for text in texts)


def test_a_handler_of_one_rank_that_calls_what_all_must_call_is_an_error(
    make_learner: Any, as_rank: Any
) -> None:
    run = Runner()
    as_rank(0)
    run.on("after_loss", lambda run: groups.require_all_ranks("a sum"), ranks="zero", name="mine")
    with pytest.raises(RuntimeError, match=r"'mine' .*ranks='zero' and calls a sum"):
        run.validate(make_learner())
