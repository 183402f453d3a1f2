"""Whatever the lines of a log say, it is told, drawn and written without a traceback."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from eventtrain import AvgStatsCallback, EventLog, Learner, Runner
from eventtrain.reports.charts import charts_of
from eventtrain.reports.page import data_of, page_of
from eventtrain.reports.run_facts import facts_of_folder, plain_json
from eventtrain.reports.why_text import why_text

JUNK: list[Any] = [
    None, True, 3, -1, 1e400, float("nan"), 10**400, "x", "<b>", "\ud800", "", [], [1], [[]], {},
    {"a": {}}, {"epoch": []}, {"where": 3}, [None], [3, {}],
]  # fmt: skip


def spoiled(value: Any, chance: random.Random) -> Any:
    """The value with junk in place of some of its parts, and some of them left out."""
    if chance.random() < 0.05:
        return chance.choice(JUNK)
    if isinstance(value, dict):
        return {k: spoiled(v, chance) for k, v in value.items() if chance.random() > 0.01}
    if isinstance(value, list):
        return [spoiled(each, chance) for each in value]
    return value


@pytest.fixture
def lines(learner: Learner, tmp_path: Path) -> list[dict[str, Any]]:
    """The log of a fit with a cancellation, and with a failure in the end."""
    log = EventLog()
    run = Runner([AvgStatsCallback(report=None), log])
    run.on("after_loss", lambda run: run.token.cancel("batch", "a spike"), once=True)
    run.on("begin_train", lambda run: 1 / 0, when=lambda run: run.epoch == 1)
    with pytest.raises(ZeroDivisionError):
        run.fit(2, learner)
    return log.records


@pytest.mark.parametrize("seed", range(60))
def test_lines_of_junk_are_told_as_far_as_they_can_be(
    seed: int, lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    chance = random.Random(seed)
    first = {**lines[0], "run": spoiled(lines[0]["run"], chance)}
    rest = [spoiled(line, chance) for line in lines[1:]]
    text = "".join(f"{json.dumps(line)}\n" for line in (first, *rest))
    (tmp_path / "events.jsonl").write_text(text)
    facts = facts_of_folder(tmp_path)
    assert why_text(facts)
    json.loads(plain_json(data_of(facts)), parse_constant=pytest.fail)
    page = page_of([facts, facts], charts_of([facts, facts]), "")
    assert "<b>" not in page


def test_what_train_wrote_long_after_the_log_is_noted(tmp_path: Path, learner: Learner) -> None:
    Runner(EventLog(tmp_path / "events.jsonl")).fit(1, learner)
    history = {"outcome": "completed", "reason": None, "history": [{"epoch": 0, "train_loss": 1.0}]}
    (tmp_path / "history.json").write_text(json.dumps(history))
    assert facts_of_folder(tmp_path).notes == []
    os.utime(tmp_path / "events.jsonl", (0, 0))
    note = "history.json is younger than the event log, and may be of another run"
    assert facts_of_folder(tmp_path).notes == [note]


def test_rows_of_those_that_drop_what_is_done_again_go_first(
    tmp_path: Path, learner: Learner
) -> None:
    Runner([AvgStatsCallback(report=None), EventLog(tmp_path / "events.jsonl")]).fit(2, learner)
    assert facts_of_folder(tmp_path).rows_from == "EventLog"
    (tmp_path / "rows.csv").write_text("epoch,valid_loss\n0,0.5\n")
    assert facts_of_folder(tmp_path).rows_from == "CSVLogger"
    row = {"event": "after_epoch", "epoch": 0, "valid_loss": 0.25}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    facts = facts_of_folder(tmp_path)
    assert (facts.rows_from, facts.rows) == (
        "JSONLLogger", [{"fit": 0, "epoch": 0, "valid_loss": 0.25}]
    )  # fmt: skip
