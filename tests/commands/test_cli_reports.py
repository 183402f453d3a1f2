"""The commands why and report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventtrain import AvgStatsCallback, EventLog, Learner, Runner
from eventtrain.callbacks import Checkpoint

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(make_learner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which ``run`` is that of a run which somebody ended."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    leave(Path("run"), make_learner())
    return tmp_path


def leave(folder: Path, learner: Learner) -> None:
    stats, log = AvgStatsCallback(report=None), EventLog(folder / "events.jsonl")
    run = Runner([stats, log, Checkpoint(folder / "checkpoints")])
    run.on("after_epoch", lambda run: run.token.cancel("fit", "enough"), name="ender")
    run.fit(3, learner)


# why


def test_why_says_who_ended_the_run(folder: Path, call: Call) -> None:
    code, stdout, stderr = call("why", "run")
    assert (code, stderr) == (0, "")
    assert stdout.startswith("run: cancelled after ")
    assert "who    ender, in after_epoch" in stdout
    assert "resume='run/checkpoints'" in stdout


def test_why_takes_the_log_itself(folder: Path, call: Call) -> None:
    assert "ender, in after_epoch" in call("why", "run/events.jsonl")[1]


def test_why_as_json_is_one_strict_object(folder: Path, call: Call) -> None:
    code, stdout, _ = call("why", "run", "--json")
    told = json.loads(stdout, parse_constant=pytest.fail)
    assert (code, told["outcome"], told["why"]) == (0, "cancelled", "enough")


def test_why_writes_nothing(folder: Path, call: Call) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    call("why", "run")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("command", ["why", "report"])
@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("nowhere", "there is no folder nowhere"),
        ("empty", "empty holds nothing of a run"),
        ("text", "text is no event log"),
    ],
)
def test_what_is_no_run_takes_a_line(
    command: str, run: str, message: str, folder: Path, call: Call
) -> None:
    (folder / "empty").mkdir()
    (folder / "text").write_text("hello\n")
    code, stdout, stderr = call(command, run)
    assert (code, stdout) == (1, "")
    assert stderr.startswith(f"Error: {message}")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["why", "report"])
def test_a_run_must_be_named(command: str, call: Call) -> None:
    assert call(command)[0] == 2


# report


def test_report_writes_a_page(folder: Path, call: Call) -> None:
    pytest.importorskip("plotly", reason="needs plotly (extra 'report')")
    code, stdout, stderr = call("report", "run")
    assert (code, stderr) == (0, "")
    assert stdout == f"report: {folder / 'report.html'}\n"
    assert "ender, in after_epoch" in (folder / "report.html").read_text()


def test_report_sets_several_runs_side_by_side(folder: Path, make_learner: Any, call: Call) -> None:
    pytest.importorskip("plotly", reason="needs plotly (extra 'report')")
    (folder / "other").mkdir()
    leave(folder / "other", make_learner())
    assert call("report", "run", "other", "--out", "both.html")[0] == 0
    page = (folder / "both.html").read_text()
    assert "run: train_loss" in page
    assert "other: train_loss" in page


def test_report_as_json_needs_no_plotly(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    code, stdout, _ = call("report", "run", "run", "--json")
    told = json.loads(stdout, parse_constant=pytest.fail)
    assert (code, [run["run"] for run in told]) == (0, ["run (1)", "run (2)"])
    assert [row["epoch"] for row in told[0]["rows"]] == [0]
    assert not (folder / "report.html").exists()


def test_report_without_plotly_says_what_to_install(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    code, _, stderr = call("report", "run")
    assert code == 1
    assert stderr == 'Error: a run report needs plotly: pip install "eventtrain[report]"\n'


def test_report_does_not_write_over_what_is_no_page(folder: Path, call: Call) -> None:
    log = (folder / "run" / "events.jsonl").read_bytes()
    code, _, stderr = call("report", "run", "--out", "run/events.jsonl")
    assert code == 2
    assert "run/events.jsonl does not end in .html" in stderr
    assert (folder / "run" / "events.jsonl").read_bytes() == log
