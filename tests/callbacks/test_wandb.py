"""What WandB is asked for; what it writes is in tests/trackers."""

from __future__ import annotations

import importlib.machinery
from typing import Any

import pytest

from eventtrain import Runner
from eventtrain.callbacks import WandB
from eventtrain.callbacks.shared import tracking


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it look as if wandb were there: nothing here imports it."""
    spec = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setattr(tracking, "find_spec", lambda name: spec)


def test_without_wandb_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'WandB needs wandb: .*"eventtrain\[wandb\]"'):
        WandB()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"project": 3}, TypeError, "project must be a text, got 3"),
        ({"run_id": ""}, TypeError, "run_id must be a text, got ''"),
        ({"mode": "dryrun"}, ValueError, "mode must be 'online', 'offline' or 'disabled'"),
        ({"tags": "one"}, TypeError, "tags must be a list of texts"),
        ({"tags": [1]}, TypeError, "tags must be a list of texts"),
        ({"patience": 0}, ValueError, "patience must be above 0"),
        ({"folder": 3}, TypeError, "folder must be a path"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it(
    options: dict[str, Any], error: type[Exception], message: str, installed: None
) -> None:
    with pytest.raises(error, match=message):
        WandB(**options)


def test_it_is_run_wandb(installed: None) -> None:
    tracker = WandB()
    assert Runner(tracker).wandb is tracker


def test_a_checkpoint_of_another_run_than_the_given_one_is_refused(installed: None) -> None:
    tracker = WandB(run_id="a")
    assert "W&B's run b" in str(tracker.why_not_load({"run_id": "b"}, Runner()))
    assert tracker.why_not_load({"run_id": "a"}, Runner()) is None
    assert WandB(run_id="a", fork=True).why_not_load({"run_id": "b"}, Runner()) is None
