"""WandB as W&B writes it to its folder, which is read back without W&B's own reader."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killed_program
import pytest
from wandb_file import read

wandb = pytest.importorskip("wandb", reason="needs wandb (extra 'wandb')")

from eventtrain import AvgStatsCallback, Learner, Runner  # noqa: E402
from eventtrain.callbacks import Checkpoint, WandB  # noqa: E402
from eventtrain.callbacks.shared.wandb_journal import rows_in  # noqa: E402

Make = Callable[..., Learner]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what W&B imports
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(autouse=True)
def away_from_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "own"))
    for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def tracker(folder: Path, **options: Any) -> WandB:
    return WandB("plain", **{"mode": "offline", "folder": folder, "system": False, **options})


def folders(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*"))


def steps(found: dict[str, Any]) -> list[tuple[int, int]]:
    return [(row["step"], row["epoch"]) for row in found["rows"]]


def test_rows_parameters_and_outcome_are_there(learner: Learner, tmp_path: Path) -> None:
    told = tracker(tmp_path, params={"mine": 3})
    result = Runner([AvgStatsCallback(report=None), told]).fit(3, learner)
    (folder,) = folders(tmp_path)
    found = read(folder)
    assert steps(found) == [(3, 0), (6, 1), (9, 2)]
    assert [row["valid_loss"] for row in found["rows"]] == [
        row["valid_loss"] for row in result.history
    ]
    assert (found["id"], found["project"]) == (told.run_id, "plain")
    assert (found["config"]["opt.lr"], found["config"]["mine"]) == (0.1, 3)
    assert found["summary"]["eventtrain"]["outcome"] == "completed"
    assert found["exit"] == 0


def test_rows_of_validations_stand_at_their_steps(learner: Learner, tmp_path: Path) -> None:
    Runner(tracker(tmp_path)).fit(steps=5, learn=learner, validate_every=2)
    (folder,) = folders(tmp_path)
    assert [step for step, _ in steps(read(folder))] == [2, 4, 5]


def test_a_failed_fit_and_a_cancelled_one_say_why(make_learner: Make, tmp_path: Path) -> None:
    failing, ending = Runner(tracker(tmp_path / "a")), Runner(tracker(tmp_path / "b"))
    for name in "ab":
        (tmp_path / name).mkdir()
    failing.on("after_loss", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.fit(1, make_learner())
    ending.on("after_epoch", lambda run: run.token.cancel("fit", "enough"), name="ends")
    ending.fit(2, make_learner())
    failed, cancelled = (read(folders(tmp_path / name)[0]) for name in "ab")
    assert failed["exit"] == 1
    assert failed["summary"]["eventtrain"]["reason"] == "ZeroDivisionError: division by zero"
    assert cancelled["exit"] == 0
    told = cancelled["summary"]["eventtrain"]
    assert (told["reason"], told["by"], told["event"]) == ("enough", "ends", "after_epoch")


def test_each_fit_is_a_run_of_its_own_and_given_ones_follow_one_another(
    make_learner: Make, tmp_path: Path
) -> None:
    told = tracker(tmp_path)
    run = Runner(told)
    run.fit(1, make_learner())
    first = told.run_id
    run.fit(1, make_learner())
    assert told.run_id != first
    Runner(tracker(tmp_path, run_id=first)).fit(2, make_learner())
    found = [steps(read(each)) for each in folders(tmp_path) if f"-{first}" in each.name]
    assert found == [[(3, 0)], [(6, 0), (9, 1)]]


def test_rows_are_found_in_folders_of_one_second(tmp_path: Path) -> None:
    for count in range(3):  # W&B is that quick, and puts a number behind the second's name
        with wandb.init(mode="offline", dir=tmp_path, id="abc", resume="allow") as active:
            active.log({"step": count, "epoch": count})
    assert len(folders(tmp_path)) == 3
    assert rows_in(tmp_path / "wandb", "abc") == {(0, 0), (1, 1), (2, 2)}


def test_a_run_that_the_program_has_active_is_used_and_not_ended(
    learner: Learner, tmp_path: Path
) -> None:
    with wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True)) as active:
        told = WandB()
        run = Runner(told)
        run.fit(1, learner)
        run.fit(1, learner)
        assert told.run_id == active.id
        active.log({"after": 1})
    (folder,) = folders(tmp_path)
    rows = read(folder)["rows"]
    assert ["after" in row for row in rows] == [False, False, True]
    assert [row["step"] for row in rows[:2]] == [3, 6]


def test_checkpoints_and_files_are_handed_over(learner: Learner, tmp_path: Path) -> None:
    (tmp_path / "a note.txt").write_text("a")
    files = [tmp_path / "missing.txt", tmp_path / "a note.txt"]
    told = tracker(tmp_path, checkpoints=True, artifacts=files)
    with pytest.warns(RuntimeWarning, match=r"missing\.txt could not be handed over"):
        Runner([told, Checkpoint(tmp_path / "saved", keep_last=1)]).fit(1, learner)
    (folder,) = folders(tmp_path)
    names = ["checkpoint-000001.json", "checkpoint-000001.pt", "a_note.txt"]
    assert read(folder)["artifacts"] == [f"{told.run_id}-{name}" for name in names]


def test_the_machine_is_recorded_by_wandb_itself(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Runner(tracker(tmp_path, system=True)).fit(1, learner)
    (folder,) = folders(tmp_path)
    assert read(folder)["machine"] >= 1


def test_a_killed_fit_goes_on_as_the_same_run_and_writes_no_row_twice(tmp_path: Path) -> None:
    def start(kill_in: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, killed_program.__file__, "wandb", *[str(tmp_path)] * 2]
        # Without what leads to the process of W&B's that this process has.
        own = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_SERVICE")}
        environment = {**own, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        return subprocess.run(
            [*program, kill_in], capture_output=True, text=True, env=environment, timeout=120
        )

    assert start("3").returncode < 0  # three rows are there, and two in the checkpoint
    done = start("-")
    assert done.returncode == 0, done.stderr
    killed, resumed = folders(tmp_path)
    one, other = read(killed, rows=0), read(resumed)
    assert other["id"] == done.stdout.split()[-1] == killed.name.rpartition("-")[2]
    # Those that W&B's process had in memory when it was killed are handed over again.
    assert steps(one) + steps(other) == [(3, 0), (6, 1), (9, 2), (12, 3)]


def test_with_fork_it_goes_on_as_a_new_run(tmp_path: Path) -> None:
    first = tracker(tmp_path)
    killed_program.trained(first, tmp_path)
    (early, _) = sorted((tmp_path / "saved").glob("*.pt"))
    forked = tracker(tmp_path, fork=True)
    run = Runner([AvgStatsCallback(report=None), Checkpoint(tmp_path / "other"), forked])
    run.fit(4, killed_program.learner(), resume=early)
    assert forked.run_id != first.run_id
    (folder,) = [each for each in folders(tmp_path) if each.name.endswith(f"-{forked.run_id}")]
    found = read(folder)
    assert found["config"]["forked_from"] == first.run_id
    assert steps(found) == [(9, 2), (12, 3)]


def test_a_server_that_does_not_answer_leaves_all_rows_in_the_folder(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    told = tracker(tmp_path, mode="online", patience=1)
    with pytest.warns(RuntimeWarning, match="2 rows may not have got to W&B.*wandb sync"):
        result = Runner([AvgStatsCallback(report=None), told]).fit(2, learner)
    assert result.outcome == "completed"
    (folder,) = folders(tmp_path)
    assert steps(read(folder)) == [(3, 0), (6, 1)]


def test_a_process_of_wandbs_that_is_gone_does_not_end_the_training(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tracker(tmp_path)
    run = Runner(told)

    @run.on("after_epoch", when=lambda run: run.epoch == 0)
    def lose(run: Runner) -> None:
        def gone(row: Any) -> None:
            raise BrokenPipeError("gone")

        monkeypatch.setattr(told.wandb_run, "log", gone)

    with pytest.warns(RuntimeWarning, match=r"\d more, which it did not take, are in") as warned:
        assert run.fit(3, learner).outcome == "completed"
    (path,) = (tmp_path / "wandb").glob("eventtrain-*-unsent.jsonl")
    assert str(path) in str(warned[0].message)
    assert len(path.read_text().splitlines()) >= 2


def test_disabled_it_writes_nothing(learner: Learner, tmp_path: Path) -> None:
    Runner(tracker(tmp_path, mode="disabled")).fit(1, learner)
    assert not (tmp_path / "wandb").exists()
