"""What MLflow is asked for; what it writes is in tests/trackers."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path
from typing import Any

import pytest

from eventtrain import Runner
from eventtrain.callbacks import MLflow
from eventtrain.callbacks.shared import tracking
from eventtrain.callbacks.shared.mlflow_run import answers, is_refusal, without_password


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it look as if mlflow were there: nothing here imports it."""
    spec = importlib.machinery.ModuleSpec("mlflow", None)
    monkeypatch.setattr(tracking, "find_spec", lambda name: spec)


def test_without_mlflow_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'MLflow needs mlflow: .*"eventtrain\[mlflow\]"'):
        MLflow()


def test_recording_the_machine_needs_a_package_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = importlib.machinery.ModuleSpec("mlflow", None)
    monkeypatch.setattr(tracking, "find_spec", {"mlflow": spec, "psutil": None}.get)
    with pytest.raises(ModuleNotFoundError, match=r'needs psutil: .*"eventtrain\[mlflow\]"'):
        MLflow()
    MLflow(system=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"experiment": 3}, TypeError, "experiment must be a text, got 3"),
        ({"tracking_uri": Path("a")}, TypeError, "tracking_uri must be a text"),
        ({"run_id": ""}, TypeError, "run_id must be a text, got ''"),
        ({"tags": ["a"]}, TypeError, "tags must be a mapping"),
        ({"patience": "long"}, TypeError, "patience must be a number of seconds"),
        ({"patience": -1}, ValueError, "patience must be at least 0"),
        ({"unsent": 3}, TypeError, "unsent must be a path"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it(
    options: dict[str, Any], error: type[Exception], message: str, installed: None
) -> None:
    with pytest.raises(error, match=message):
        MLflow(**options)


def test_it_is_run_mlflow(installed: None) -> None:
    tracker = MLflow()
    assert Runner(tracker).mlflow is tracker


def test_a_checkpoint_of_another_run_than_the_given_one_is_refused(installed: None) -> None:
    tracker = MLflow(run_id="a")
    assert "MLflow's run b" in str(tracker.why_not_load({"run_id": "b"}, Runner()))
    assert tracker.why_not_load({"run_id": "a"}, Runner()) is None
    assert MLflow(run_id="a", fork=True).why_not_load({"run_id": "b"}, Runner()) is None


def test_a_password_is_taken_out_of_a_uri_and_nothing_else() -> None:
    assert without_password("https://me:secret@host:1/a") == "https://host:1/a"
    assert without_password("sqlite:////tmp/a.db") == "sqlite:////tmp/a.db"
    assert without_password("http://host/a@b") == "http://host/a@b"


def test_a_folder_answers_and_a_port_without_a_server_does_not() -> None:
    assert answers("sqlite:///a.db")
    assert not answers("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("code", "refused"), [(400, True), (404, True), (429, False), (500, False)]
)
def test_a_refusal_is_an_answer_to_what_was_sent(code: int, refused: bool) -> None:
    class Answer(Exception):
        def get_http_status_code(self) -> int:
            return code

    assert is_refusal(Answer()) is refused
    assert not is_refusal(ConnectionError())


def test_a_file_that_is_something_else_is_not_sent(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow (extra 'mlflow')")
    (tmp_path / "other.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="is no file of what MLflow could not be sent"):
        MLflow.send_unsent(tmp_path / "other.jsonl")
