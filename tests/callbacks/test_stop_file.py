"""A file that ends a fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from eventtrain import Learner, Runner
from eventtrain.callbacks import StopFile
from eventtrain.priorities import POLICY


def writing(run: Runner, path: Path, iteration: int) -> None:
    """Put the file there when so many training batches are done."""

    @run.on("begin_batch")
    def write(run: Runner) -> None:
        if run.n_iter == iteration:
            path.touch()


def test_the_fit_ends_after_the_batch_in_which_the_file_appears(make_learner, tmp_path) -> None:
    path = tmp_path / "stop"
    run = Runner(StopFile(path, every_seconds=0))
    writing(run, path, 4)
    result = run.fit(5, make_learner(train=3))
    assert (result.outcome, result.steps) == ("cancelled", 5)
    assert result.reason == f"the file {path} is there"


def test_without_the_file_the_fit_completes(learner: Learner, tmp_path: Path) -> None:
    assert Runner(StopFile(tmp_path / "stop")).fit(2, learner).outcome == "completed"


def test_between_two_looks_the_file_system_is_not_asked(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "stop"
    run = Runner(StopFile(path, every_seconds=3600))
    writing(run, path, 1)  # after the first look
    assert run.fit(3, learner).outcome == "completed"


def test_a_file_that_is_there_already_ends_the_fit_after_one_batch(learner, tmp_path) -> None:
    path = tmp_path / "stop"
    path.touch()
    assert Runner(StopFile(path)).fit(2, learner).steps == 1


def test_a_second_fit_looks_at_the_first_opportunity(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "stop"
    run = Runner(StopFile(path, every_seconds=3600))
    run.fit(1, learner)
    path.touch()
    assert run.fit(1, learner).steps == 1


def test_reports_know_of_the_file_and_code_of_ones_own_comes_before(learner, tmp_path) -> None:
    path = tmp_path / "stop"
    path.touch()
    knows: dict[int, bool] = {}
    run = Runner(StopFile(path))
    for priority in (POLICY + 1, POLICY - 1):
        tell = lambda run, p=priority: knows.update({p: run.token.pending is not None})  # noqa: E731
        run.on("after_batch", tell, priority=priority, once=True)
    run.fit(1, learner)
    assert knows == {POLICY + 1: False, POLICY - 1: True}


def test_the_file_stays_unless_it_is_to_be_removed(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "stop"
    path.touch()
    Runner(StopFile(path)).fit(1, learner)
    assert path.exists()
    Runner(StopFile(path, remove=True)).fit(1, learner)
    assert not path.exists()


def test_a_removed_file_ends_one_fit_only(learner: Learner, tmp_path: Path) -> None:
    path = tmp_path / "stop"
    path.touch()
    run = Runner(StopFile(path, remove=True))
    assert run.fit(1, learner).outcome == "cancelled"
    assert run.fit(1, learner).outcome == "completed"


def test_another_scope_can_be_ended(make_learner, tmp_path: Path) -> None:
    path = tmp_path / "stop"
    run = Runner(StopFile(path, every_seconds=0, scope="train", remove=True))
    writing(run, path, 1)
    result = run.fit(2, make_learner(train=3))
    assert (result.outcome, result.steps) == ("completed", 5)


def test_a_scope_that_is_not_open_is_waited_for(make_learner, tmp_path: Path) -> None:
    path = tmp_path / "stop"
    run = Runner(StopFile(path, every_seconds=0, scope="train", remove=True))
    run.on("begin_validate", lambda run: path.touch())
    result = run.fit(2, make_learner(train=3))
    assert (result.outcome, result.steps) == ("completed", 4)


@pytest.mark.parametrize("scope", ["fit", "validate"])
def test_a_validation_outside_of_a_fit_goes_on(
    learner: Learner, tmp_path: Path, scope: str
) -> None:
    path = tmp_path / "stop"
    path.touch()
    run = Runner(StopFile(path, scope=scope))
    assert run.validate(learner).outcome == "completed"
    assert len(run.predict(learner, learner.data.valid_dl)) == 8


def test_a_relative_path_is_taken_from_where_the_object_was_made(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stop = StopFile("stop")
    (tmp_path / "stop").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Runner(stop).fit(1, learner).outcome == "cancelled"


@pytest.mark.parametrize(
    "arguments", [{"every_seconds": -1}, {"every_seconds": math.inf}, {"scope": "batch"}]
)
def test_bad_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        StopFile("stop", **arguments)


def test_what_is_no_path_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"^path must be a path, got None"):
        StopFile(None)  # type: ignore[arg-type]
