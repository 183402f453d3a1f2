"""Why a run stopped, out of what real runs left: ended, cancelled, failed, killed, resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import story_program

from eventtrain import EventLog, Runner
from eventtrain.callbacks import JSONLLogger
from eventtrain.reports.attempts import attempts_of
from eventtrain.reports.run_facts import facts_of_folder, plain_json
from eventtrain.reports.why import grouped, moment, outcome_of, span, why
from eventtrain.reports.why_text import why_text

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(Path(story_program.__file__))
Torchrun = Callable[..., Any]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")


def live(folder: Path, deed: str) -> int:
    """Run the program, and return how its process ended."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-W", "error", PROGRAM, str(folder), deed],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=300,
    )
    return done.returncode


def told(folder: Path) -> dict[str, Any]:
    """What JSON gives of why a run stopped: strict JSON."""
    return json.loads(plain_json(why(facts_of_folder(folder))), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed in its third epoch."""
    folder = tmp_path_factory.mktemp("why") / "killed"
    assert live(folder, "kill") == -signal.SIGKILL
    return folder


@pytest.fixture
def copied(killed: Path, tmp_path: Path) -> Path:
    """That folder, to be changed."""
    return Path(shutil.copytree(killed, tmp_path / "run"))


def line_of(function: Callable[..., object], after: int) -> str:
    """The place of a line of a function of the program."""
    return f"{PROGRAM}:{function.__code__.co_firstlineno + after}"


def test_a_run_that_came_to_its_end_is_completed(tmp_path: Path) -> None:
    run, learn = story_program.make_run(tmp_path)
    result = run.fit(2, learn)
    found = told(tmp_path)
    assert (found["outcome"], found["who"], found["why"]) == ("completed", None, None)
    assert found["rows"] == [{"fit": 0, **row} for row in result.history]
    assert found["checkpoint"]["steps"] == 6
    assert "completed after" in found["sentence"]
    assert "and 6 steps" in found["sentence"]


def test_a_cancellation_names_the_handler_the_reason_and_the_line(tmp_path: Path) -> None:
    run, learn = story_program.make_run(tmp_path)

    def impatient(run: Runner) -> None:
        run.token.cancel("fit", "seen enough")

    run.on("after_loss", impatient, when=lambda run: run.epoch == 1)
    run.fit(5, learn)
    found = told(tmp_path)
    assert (found["outcome"], found["why"]) == ("cancelled", "seen enough")
    assert found["who"] == "impatient, in after_loss"
    line = impatient.__code__.co_firstlineno + 1
    assert found["where"] == f"{__file__}:{line}, epoch 1, batch 0"
    assert (
        abs(time.mktime(time.strptime(found["when"][:19], "%Y-%m-%d %H:%M:%S")) - time.time()) < 60
    )


def test_a_thread_that_asked_is_named_with_its_line(tmp_path: Path) -> None:
    run, learn = story_program.make_run(tmp_path)
    run.on("begin_epoch", story_program.judge, when=lambda run: run.epoch == 1)
    run.fit(5, learn)
    found = told(tmp_path)
    assert (found["outcome"], found["why"]) == ("cancelled", "enough")
    assert found["who"] == "judge.<locals>.<lambda> in thread 'judge'"
    assert found["where"] == f"{line_of(story_program.judge, 2)}, epoch 1"


def test_a_timer_names_the_line_that_set_it(tmp_path: Path) -> None:
    run, learn = story_program.make_run(tmp_path)

    def wait(run: Runner) -> None:
        run.token.cancel_after(0).join()

    run.on("after_loss", wait)
    run.fit(5, learn)
    found = told(tmp_path)
    assert found["who"] == "timer"
    assert found["where"].startswith(f"{__file__}:{wait.__code__.co_firstlineno + 1}")


def test_a_signal_is_who_asked(tmp_path: Path) -> None:
    run, learn = story_program.make_run(tmp_path)
    run.on_interrupt = "return"
    run.on("after_train", story_program.interrupt)
    run.fit(5, learn)
    found = told(tmp_path)
    assert (found["outcome"], found["who"], found["why"]) == (
        "cancelled", "SIGTERM, in after_train", "SIGTERM"
    )  # fmt: skip


def test_of_many_requests_the_one_that_ended_the_fit_is_told(tmp_path: Path) -> None:
    run, learn = story_program.make_run(tmp_path)
    run.on("after_loss", lambda run: run.token.cancel("batch", "a spike"), name="spike")
    run.on("after_epoch", lambda run: run.token.cancel("fit", "late"), name="ender")
    run.fit(5, learn)
    found = told(tmp_path)
    assert (found["who"], found["why"]) == ("ender, in after_epoch", "late")
    assert [(each["times"], each["last"]["by"]) for each in found["cancellations"]] == [
        (6, "spike"), (1, "ender")
    ]  # fmt: skip
    assert found["asked"] == 7


def test_a_failure_names_the_handler_the_exception_and_the_line(tmp_path: Path) -> None:
    run, learn = story_program.make_run(tmp_path)
    run.on("after_loss", story_program.fail, name="culprit", when=lambda run: run.epoch == 1)
    with pytest.raises(ValueError, match="no <b>more"):
        run.fit(5, learn)
    found = told(tmp_path)
    assert (found["outcome"], found["why"]) == ("failed", "ValueError: no <b>more</b>")
    assert "handler 'culprit' of event 'after_loss'" in found["who"]
    assert found["where"] == f"{line_of(story_program.fail, 2)} in fail, epoch 1, batch 0"
    (failure,) = found["failures"]
    assert (failure["type"], failure["message"]) == ("ValueError", "no <b>more</b>")
    assert failure["where"][-1] == f"{line_of(story_program.fail, 2)} in fail"


def test_what_an_exception_was_raised_of_is_told(tmp_path: Path) -> None:
    run, learn = story_program.make_run(tmp_path)

    def fail(run: Runner) -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    run.on("after_loss", fail)
    with pytest.raises(ValueError, match="second"):
        run.fit(1, learn)
    assert told(tmp_path)["failures"][0]["because"] == ["KeyError: 'first'"]


def test_a_killed_process_is_told_by_the_closing_events_that_lack(killed: Path) -> None:
    found = told(killed)
    assert found["outcome"] == "killed"
    assert found["sentence"].startswith("no closing events: the process was killed or crashed")
    assert "inside of fit > epoch" in found["sentence"]
    assert "of epoch 2" in found["sentence"]
    assert [row["epoch"] for row in found["rows"]] == [0, 1]
    assert (found["checkpoint"]["epoch"], found["checkpoint"]["steps"]) == (2, 6)


def test_a_log_that_ends_in_the_middle_of_a_line_is_told_as_far_as_it_goes(copied: Path) -> None:
    log = copied / "events.jsonl"
    whole = told(copied)
    os.truncate(log, log.stat().st_size - 30)
    found = told(copied)
    assert found["outcome"] == "killed"
    assert any("the last one, is cut off" in note for note in found["notes"])
    assert found["attempts"][0]["seconds"] <= whole["attempts"][0]["seconds"]


@pytest.mark.parametrize("left", [0, 1, 40])
def test_a_log_of_which_next_to_nothing_is_left_tells_what_it_can(left: int, copied: Path) -> None:
    os.truncate(copied / "events.jsonl", left)
    found = told(copied)
    assert found["outcome"] == "unknown"
    assert found["checkpoint"]["steps"] == 6
    assert any("events.jsonl" in note for note in found["notes"]) or left == 1


def test_checkpoints_alone_tell_how_far_a_run_came(copied: Path) -> None:
    (copied / "events.jsonl").unlink()
    found = told(copied)
    assert found["outcome"] == "unknown"
    assert found["sentence"] == "nothing here tells how the run ended"
    assert found["checkpoint"]["steps"] == 6
    assert any("EventLog(path)" in what for what in found["missing"])


def test_a_damaged_line_in_the_midst_is_left_out_and_noted(copied: Path) -> None:
    log = copied / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[10:10] = [b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"event": 3}\n', b"null\n"]
    log.write_bytes(b"".join(lines))
    found = told(copied)
    assert found["outcome"] == "killed"
    assert [row["epoch"] for row in found["rows"]] == [0, 1]
    assert "events.jsonl: line 11, is damaged: it is not text" in found["notes"]
    assert "events.jsonl: 1 more lines are damaged" in found["notes"]


def test_lines_that_lie_are_told_without_a_traceback(copied: Path) -> None:
    log = copied / "events.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[0]["run"] = {"began_at": "noon", "resumed": 3, "environment": [], "configuration": "x"}
    for line, more in zip(
        lines[1:],
        [
            {"row": {"epoch": {}, "valid_loss": []}},
            {"row": 3},
            {"rates": {"lr": "high"}},
            {"rates": []},
            {"steps": [1]},
            {"t": float("nan")},
            {"exception": 3, "failure": {"notes": "x", "where": "y", "because": "z"}},
            {"exception": None, "failure": []},
            {"cancellations": [{"scope": 1, "reason": [], "by": {}, "event": 2, "time": "x"}]},
        ],
        strict=False,
    ):
        line.update(more)
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert told(copied)["outcome"] == "killed"
    assert "killed" in why_text(facts_of_folder(copied))


def test_a_log_of_a_later_version_is_read_and_named(copied: Path) -> None:
    log = copied / "events.jsonl"
    log.write_text(log.read_text().replace('"format": 2', '"format": 99', 1))
    found = told(copied)
    assert found["outcome"] == "killed"
    assert any("another version (format 99" in note for note in found["notes"])


def test_a_log_of_the_first_version_is_read(copied: Path) -> None:
    log = copied / "events.jsonl"
    new = ("run", "row", "rates", "steps", "failure")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    old = [{name: value for name, value in line.items() if name not in new} for line in lines]
    log.write_text("".join(f"{json.dumps(line)}\n" for line in old))
    found = told(copied)
    assert found["outcome"] == "killed"
    assert found["attempts"][0]["began_at"] is None
    assert "killed" in why_text(facts_of_folder(copied))


def test_a_run_that_was_resumed_has_its_attempts_joined(copied: Path) -> None:
    assert live(copied, "nothing") == 0
    found = told(copied)
    assert [each["outcome"] for each in found["attempts"]] == ["killed", "completed"]
    assert found["attempts"][1]["resumed"]["epoch"] == 2
    assert found["attempts"][1]["resumed"]["steps"] == 6
    rows = facts_of_folder(copied).rows
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    assert {row["fit"] for row in rows} == {0}


def test_what_lies_behind_the_place_of_a_resumption_is_dropped(copied: Path) -> None:
    for name in ("pt", "json"):
        (copied / "checkpoints" / f"checkpoint-000002.{name}").unlink()
    assert live(copied, "nothing") == 0
    facts = facts_of_folder(copied)
    assert [row["epoch"] for row in facts.rows] == [0, 1, 2, 3, 4]
    assert facts.attempts[1].resumed is not None
    assert facts.attempts[1].resumed["epoch"] == 1


def test_an_attempt_that_found_no_checkpoint_goes_on_in_the_log(copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints")
    assert live(copied, "nothing") == 0
    facts = facts_of_folder(copied)
    assert [outcome_of(each) for each in facts.attempts] == ["killed", "completed"]
    assert [(row["fit"], row["epoch"]) for row in facts.rows] == [(0, i) for i in range(5)]


def test_a_second_fit_of_one_log_is_a_fit_of_its_own(tmp_path: Path) -> None:
    run, learn = story_program.make_run(tmp_path)
    run.fit(2, learn)
    run.fit(1, learn)
    run.validate(learn)
    facts = facts_of_folder(tmp_path)
    assert [(row["fit"], row["epoch"]) for row in facts.rows] == [(0, 0), (0, 1), (1, 0)]
    assert [each.kind for each in facts.attempts] == ["fit", "fit", "validate"]
    assert why(facts)["sentence"].endswith("and 3 steps")


def test_a_run_that_goes_on_is_no_killed_one(tmp_path: Path) -> None:
    run, learn = story_program.make_run(tmp_path)
    outcomes: list[str] = []
    run.on("after_row", lambda run: outcomes.append(told(tmp_path)["outcome"]))
    run.fit(1, learn)
    assert outcomes == ["running"]


def test_a_process_of_another_machine_is_not_looked_for(copied: Path) -> None:
    log = copied / "events.jsonl"
    text = log.read_text().replace(f'"host": "{socket.gethostname()}"', '"host": "elsewhere"')
    pid = json.loads(text.splitlines()[0])["run"]["environment"]["pid"]
    log.write_text(text.replace(f'"pid": {pid}', f'"pid": {os.getpid()}'))
    assert told(copied)["outcome"] == "killed"


def test_a_process_that_has_the_number_of_one_that_is_gone_is_another(copied: Path) -> None:
    log = copied / "events.jsonl"
    first = json.loads(log.read_text().splitlines()[0])
    pid = first["run"]["environment"]["pid"]
    assert Path("/proc/self").exists() or pytest.skip("only Linux tells when a process began")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        log.write_text(log.read_text().replace(f'"pid": {pid}', f'"pid": {other.pid}'))
        lines = log.read_text().splitlines()
        first = json.loads(lines[0])
        first["run"]["began_at"] -= 1000
        log.write_text("\n".join([json.dumps(first), *lines[1:], ""]))
        outcome = told(copied)["outcome"]
        other.communicate(b"\n")
    assert outcome == "killed"


def test_the_ranks_of_a_run_are_told_apart(tmp_path: Path, torchrun: Torchrun) -> None:
    done = torchrun(PROGRAM, str(tmp_path), "fail", "1")
    assert done.returncode != 0
    found = told(tmp_path)
    assert found["outcome"] == "failed"
    assert "rank 1 failed" in found["why"]
    assert found["ranks"]["1"]["outcome"] == "failed"
    facts = facts_of_folder(tmp_path)
    (failure,) = facts.ranks[1][0].failures
    assert failure["exception"] == "ValueError: no <b>more</b>"
    assert "rank 1:" in why_text(facts)
    assert "ValueError: no <b>more</b>" in why_text(facts)


def test_a_log_of_a_later_rank_stands_for_the_first_that_is_not_there(copied: Path) -> None:
    (copied / "events.jsonl").rename(copied / "events.rank3.jsonl")
    found = told(copied)
    assert found["outcome"] == "killed"
    assert "there is no log of rank 0: the one of rank 3 stands for it" in found["notes"]


# The text


def test_the_text_has_who_why_and_where(tmp_path: Path) -> None:
    run, learn = story_program.make_run(tmp_path)
    run.on("after_loss", lambda run: run.token.cancel("fit", "a\x1b[2J\nb"), name="ender")
    run.fit(5, learn)
    text = why_text(facts_of_folder(tmp_path))
    assert "who    ender, in after_loss" in text
    assert "\x1b" not in text
    assert "no checkpoint to go on from" in text


def test_the_text_tells_the_lines_that_a_failure_came_through(tmp_path: Path) -> None:
    run, learn = story_program.make_run(tmp_path)
    run.on("after_loss", story_program.fail, name="culprit")
    with pytest.raises(ValueError):
        run.fit(5, learn)
    text = why_text(facts_of_folder(tmp_path))
    assert f"  {line_of(story_program.fail, 2)} in fail\n" in text


def test_times_of_parts_of_the_loop_do_not_widen_the_rows(tmp_path: Path) -> None:
    run, learn = story_program.make_run(tmp_path)
    run.on("after_train", lambda run: run.history[-1].update(seconds_train_data=1.0))
    run.fit(1, learn)
    assert "seconds_train_data" not in why_text(facts_of_folder(tmp_path))


# Its parts


def test_requests_that_are_alike_are_put_together() -> None:
    one = {"scope": "batch", "reason": "r", "by": "h", "event": "e", "rank": None, "source": "s:1"}
    requests = [
        {**one, "epoch": 0, "batch": 1},
        {**one, "epoch": 0, "batch": 2, "by": "other"},
        {**one, "epoch": 3, "batch": 4},
    ]
    found = grouped(requests)
    assert [(each["times"], each["last"]["by"]) for each in found] == [(1, "other"), (2, "h")]
    assert span(found[1]) == "epoch 0, batch 1 to epoch 3, batch 4"
    assert span(found[0]) == "epoch 0, batch 2"


@pytest.mark.parametrize("seconds", [None, 1e30, -1e30, float("nan")])
def test_a_time_that_is_none_is_told_as_none(seconds: float | None) -> None:
    assert moment(seconds) is None


def test_more_requests_than_are_kept_are_counted(learner: Any) -> None:
    log = EventLog()
    run = Runner(log)
    run.on("begin_batch", lambda run: run.token.cancel("batch"), during="train")
    run.fit(400, learner)
    (attempt,) = attempts_of(log.records)[0]
    assert attempt.asked == 1200
    assert len(attempt.cancellations) == 1000


def test_an_attempt_that_another_one_follows_goes_on_no_more(learner: Any) -> None:
    log = EventLog()
    run = Runner(log)
    run.fit(1, learner)
    begun = len(log.records)
    run.fit(1, learner)
    attempts, _ = attempts_of([*log.records[: begun - 1], *log.records[begun:-1]])
    assert [outcome_of(each) for each in attempts] == ["killed", "running"]


def test_rows_without_a_closing_line_tell_no_outcome(learner: Any, tmp_path: Path) -> None:
    run = Runner(JSONLLogger(tmp_path / "rows.jsonl"))
    run.fit(1, learner)
    assert told(tmp_path)["sentence"] == "completed (JSONLLogger tells, and no event log)"
    run.fit(1, learner)
    rows = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(rows[:-1]))
    found = told(tmp_path)
    assert found["outcome"] == "unknown"
    assert any("has no closing line" in note for note in found["notes"])
