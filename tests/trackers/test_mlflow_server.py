"""MLflow with a real server, which is asked over HTTP what it has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killed_program
import pytest

mlflow = pytest.importorskip("mlflow", reason="needs mlflow (extra 'mlflow')")

from eventtrain import AvgStatsCallback, CheckpointError, Learner, Runner, accuracy  # noqa: E402
from eventtrain.callbacks import Checkpoint, MLflow  # noqa: E402

Make = Callable[..., Learner]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what MLflow imports
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def losses(result: Any, name: str = "valid_loss") -> list[float]:
    return [row[name] for row in result.history]


def test_rows_are_metrics_at_the_steps_and_parameters_and_outcome_are_there(
    server: Any, learner: Learner
) -> None:
    tracker = MLflow("plain", tracking_uri=server.uri, params={"mine": [1, 2]}, tags={"who": "me"})
    result = Runner([AvgStatsCallback(accuracy, report=None), tracker]).fit(3, learner)
    found = server.run(tracker.run_id)
    assert server.points(tracker.run_id, "valid_loss") == list(
        zip([3, 6, 9], losses(result), strict=True)
    )
    assert server.points(tracker.run_id, "epoch") == [(3, 0), (6, 1), (9, 2)]
    assert found["params"]["model"] == "Linear"
    assert found["params"]["opt.lr"] == "0.1"
    assert found["params"]["data.train.batch_size"] == "4"
    assert found["params"]["callbacks.mlflow"] == "MLflow"
    assert found["params"]["mine"] == "[1, 2]"
    assert found["tags"]["who"] == "me"
    assert found["tags"]["eventtrain.outcome"] == "completed"
    assert found["status"] == "FINISHED"


def test_rows_of_validations_stand_at_their_steps(server: Any, learner: Learner) -> None:
    tracker = MLflow("steps", tracking_uri=server.uri, system=False)
    run = Runner([AvgStatsCallback(report=None), tracker])
    result = run.fit(steps=7, learn=learner, validate_every=2)
    steps = [row["step"] for row in result.history]
    assert steps == [2, 4, 6, 7]
    expected = list(zip(steps, losses(result), strict=True))
    assert server.points(tracker.run_id, "valid_loss") == expected


def test_a_cancelled_fit_says_who_asked_why_and_where(server: Any, learner: Learner) -> None:
    tracker = MLflow("cancelled", tracking_uri=server.uri, system=False)
    run = Runner(tracker)

    @run.on("after_batch", during="train", when=lambda run: run.n_iter == 4)
    def enough(run: Runner) -> None:
        run.token.cancel("fit", "had enough")

    run.fit(3, learner)
    found = server.run(tracker.run_id)
    tags = {name.partition(".")[2]: value for name, value in found["tags"].items()}
    assert (tags["outcome"], tags["reason"], tags["by"]) == ("cancelled", "had enough", "enough")
    assert (tags["event"], tags["epoch"], tags["steps"]) == ("after_batch", "1", "4")
    assert json.loads(tags["cancellations"])[0]["reason"] == "had enough"
    assert found["status"] == "FINISHED"


def test_a_failed_fit_says_what_failed_and_in_which_line(server: Any, learner: Learner) -> None:
    tracker = MLflow("failed", tracking_uri=server.uri, system=False)
    run = Runner(tracker)
    run.on("after_loss", lambda run: 1 / 0, name="divides")
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    found = server.run(tracker.run_id)
    assert found["status"] == "FAILED"
    assert found["tags"]["eventtrain.reason"] == "ZeroDivisionError: division by zero"
    assert "test_mlflow_server.py:" in found["tags"]["eventtrain.where"]
    assert "'divides'" in found["tags"]["eventtrain.where"]


def test_a_fit_that_fails_before_its_turn_is_told_of_too(server: Any, learner: Learner) -> None:
    tracker = MLflow("early", tracking_uri=server.uri, system=False)
    run = Runner(tracker)
    run.on("begin_fit", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    assert server.run(tracker.run_id)["status"] == "FAILED"


def test_each_fit_is_a_run_of_its_own(server: Any, make_learner: Make) -> None:
    tracker = MLflow("twice", tracking_uri=server.uri, system=False)
    run = Runner([AvgStatsCallback(report=None), tracker])
    run.fit(1, make_learner())
    first = tracker.run_id
    run.fit(2, make_learner())
    assert len({first, tracker.run_id}) == len(server.runs("twice")) == 2
    assert [len(server.points(each, "epoch")) for each in (first, tracker.run_id)] == [1, 2]


def test_fits_in_a_run_that_is_given_follow_one_another(server: Any, make_learner: Make) -> None:
    first = MLflow("given", tracking_uri=server.uri, system=False)
    Runner(first).fit(1, make_learner())
    again = MLflow(run_id=first.run_id, tracking_uri=server.uri, system=False)
    Runner(again).fit(2, make_learner())
    assert again.run_id == first.run_id
    assert server.points(first.run_id, "epoch") == [(3, 0), (6, 0), (9, 1)]
    assert server.run(first.run_id)["params"]["epochs"] == "1"  # MLflow changes none


def test_a_run_that_the_program_has_active_is_used_and_not_ended(
    server: Any, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server.uri)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    try:
        with mlflow.start_run() as active:
            tracker = MLflow(system=False)
            Runner(tracker).fit(1, learner)
            assert tracker.run_id == active.info.run_id
            assert server.run(tracker.run_id)["status"] == "RUNNING"
    finally:
        mlflow.set_tracking_uri(before)


def test_artifacts_and_the_newest_checkpoint_are_uploaded_when_the_fit_ends(
    server: Any, learner: Learner, tmp_path: Path
) -> None:
    tracker = MLflow("files", tracking_uri=server.uri, system=False, checkpoints=True)
    run = Runner([tracker, Checkpoint(tmp_path / "saved", keep_last=1)])

    @run.on("after_fit")
    def write(run: Runner) -> None:
        Path("report.html").write_text("<p>")
        tracker.add_artifact("report.html")

    run.fit(2, learner)
    listed = server.ask(f"artifacts/list?run_id={tracker.run_id}")["files"]
    assert {each["path"] for each in listed} == {"checkpoints", "report.html"}
    saved = server.ask(f"artifacts/list?run_id={tracker.run_id}&path=checkpoints")["files"]
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {Path(each["path"]).name for each in saved} == names


def test_the_machine_is_recorded_by_mlflow_itself(
    server: Any, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    tracker = MLflow("machine", tracking_uri=server.uri)
    run = Runner(tracker)

    @run.on("after_epoch")
    def wait(run: Runner) -> None:
        while not any(
            name.startswith("system/cpu") for name in server.run(tracker.run_id)["metrics"]
        ):
            pass

    run.fit(1, learner)


# A server that goes away


def test_rows_of_while_the_server_was_away_come_in_order_and_training_goes_on(
    server: Any, door: Any, learner: Learner
) -> None:
    tracker = MLflow("away", tracking_uri=door.uri, system=False)
    run = Runner([AvgStatsCallback(report=None), tracker])
    run.on("after_epoch", lambda run: door.shut(), when=lambda run: run.epoch == 0)
    run.on("after_epoch", lambda run: door.open(), when=lambda run: run.epoch == 2)
    result = run.fit(4, learner)
    expected = list(zip([3, 6, 9, 12], losses(result), strict=True))
    assert server.points(tracker.run_id, "valid_loss") == expected
    assert server.run(tracker.run_id)["tags"]["eventtrain.outcome"] == "completed"
    assert tracker.unsent_path is None


def test_what_cannot_be_sent_is_counted_in_one_warning_and_sent_from_a_file_later(
    server: Any, door: Any, learner: Learner
) -> None:
    tracker = MLflow("gone", tracking_uri=door.uri, system=False, patience=0.5)
    run = Runner([AvgStatsCallback(report=None), tracker])

    @run.on("begin_epoch", when=lambda run: run.epoch == 1)
    def shut(run: Runner) -> None:
        assert tracker._outbox is not None
        assert tracker._outbox.wait(60)
        door.shut()

    with pytest.warns(
        RuntimeWarning, match=r"2 rows, .* could not be sent .*send_unsent"
    ) as warned:
        result = run.fit(3, learner)
    assert result.outcome == "completed"
    assert sum(each.category is RuntimeWarning for each in warned) == 1
    path = tracker.unsent_path
    assert path is not None
    with pytest.raises(ConnectionError):
        MLflow.send_unsent(path)
    door.open()
    assert MLflow.send_unsent(path) == tracker.run_id
    assert server.points(tracker.run_id, "valid_loss") == list(
        zip([3, 6, 9], losses(result), strict=True)
    )
    assert server.run(tracker.run_id)["status"] == "FINISHED"
    assert not path.exists()


def test_a_server_that_was_never_there_is_told_of_and_its_run_is_made_later(
    server: Any, door: Any, learner: Learner, caplog: pytest.LogCaptureFixture
) -> None:
    door.shut()
    tracker = MLflow("never", tracking_uri=door.uri, system=False, patience=0.5)
    with pytest.warns(RuntimeWarning, match="2 rows, .* could not be sent"):
        Runner(tracker).fit(2, learner)
    assert f"MLflow at {door.uri} does not answer" in caplog.text
    assert tracker.run_id is None
    door.open()
    assert tracker.unsent_path is not None
    run_id = MLflow.send_unsent(tracker.unsent_path)
    assert server.points(run_id, "epoch") == [(3, 0), (6, 1)]


# Going on


def test_a_killed_fit_goes_on_as_the_same_run_and_writes_no_row_twice(
    server: Any, tmp_path: Path
) -> None:
    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, killed_program.__file__, "mlflow", server.uri, str(tmp_path)]
        root = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, "PYTHONPATH": root}
        return subprocess.run(
            [*program, *arguments], capture_output=True, text=True, env=environment, timeout=120
        )

    assert start("3").returncode < 0  # three rows are there, and two in the checkpoint
    (run_id,) = server.runs("killed")
    assert len(server.points(run_id, "epoch")) == 3
    done = start("-")
    assert (done.returncode, done.stdout.split()[-1:]) == (0, [run_id]), done.stderr
    assert server.points(run_id, "epoch") == [(3, 0), (6, 1), (9, 2), (12, 3)]
    assert len(server.points(run_id, "valid_loss")) == 4
    assert server.run(run_id)["status"] == "FINISHED"
    whole = Runner(AvgStatsCallback(report=None)).fit(4, killed_program.learner())
    assert [value for _, value in server.points(run_id, "valid_loss")] == losses(whole)


def test_rows_that_were_yet_to_be_sent_are_in_the_checkpoint(
    server: Any, door: Any, tmp_path: Path
) -> None:
    first = MLflow("kept", tracking_uri=door.uri, system=False, patience=0.2)
    run = Runner([Checkpoint(tmp_path / "saved"), first])
    run.on("after_epoch", lambda run: door.shut(), when=lambda run: run.epoch == 0)
    run.on("after_epoch", lambda run: run.token.cancel("fit"), when=lambda run: run.epoch == 1)
    with pytest.warns(RuntimeWarning, match="could not be sent"):
        run.fit(4, killed_program.learner())
    door.open()
    again = MLflow("kept", tracking_uri=door.uri, system=False)
    killed_program.trained(again, tmp_path)
    assert again.run_id == first.run_id
    assert server.points(first.run_id, "epoch") == [(3, 0), (6, 1), (9, 2), (12, 3)]


def test_going_on_from_before_the_end_of_a_completed_run_asks_for_fork(
    server: Any, tmp_path: Path
) -> None:
    first = MLflow("ended", tracking_uri=server.uri, system=False)
    killed_program.trained(first, tmp_path)
    (early, _) = sorted((tmp_path / "saved").glob("*.pt"))

    def go_on(**options: Any) -> MLflow:
        tracker = MLflow("ended", tracking_uri=server.uri, system=False, **options)
        run = Runner([AvgStatsCallback(report=None), Checkpoint(tmp_path / "other"), tracker])
        run.fit(4, killed_program.learner(), resume=early)
        return tracker

    with pytest.raises(CheckpointError, match=r"was completed, with 2 rows .*fork=True"):
        go_on()
    forked = go_on(fork=True)
    assert forked.run_id != first.run_id
    assert server.run(forked.run_id)["tags"]["eventtrain.forked_from"] == first.run_id
    assert server.points(forked.run_id, "epoch") == [(9, 2), (12, 3)]
    assert len(server.points(first.run_id, "epoch")) == 4


def test_a_run_that_is_not_there_is_refused_as_the_fit_begins(
    server: Any, learner: Learner
) -> None:
    tracker = MLflow(run_id="0" * 32, tracking_uri=server.uri, system=False)
    with pytest.raises(mlflow.exceptions.MlflowException, match="not found"):
        Runner(tracker).fit(1, learner)


# Without a server


def test_a_folder_serves_as_well(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracker = MLflow("plain", tracking_uri=f"file:{tmp_path}/runs", system=False)
    Runner([AvgStatsCallback(report=None), tracker]).fit(2, learner)
    (file,) = tmp_path.glob(f"runs/*/{tracker.run_id}/metrics/epoch")
    assert [line.split()[1:] for line in file.read_text().splitlines()] == [
        ["0.0", "3"],
        ["1.0", "6"],
    ]


def test_the_page_of_the_run_shows_its_numbers(
    server: Any, learner: Learner, tmp_path: Path
) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs chromium")
    tracker = MLflow("page", tracking_uri=server.uri, system=False)
    Runner([AvgStatsCallback(report=None), tracker]).fit(2, learner)
    experiment = server.ask("experiments/get-by-name?experiment_name=page")["experiment"]
    url = f"{server.uri}/#/experiments/{experiment['experiment_id']}/runs/{tracker.run_id}"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    done = subprocess.run(
        [browser, *options, f"--user-data-dir={tmp_path}/profile", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "valid_loss" in done.stdout
    assert "callbacks.mlflow" in done.stdout
