"""When a tracker is told what, with one that writes down what it is told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from eventtrain import AvgStatsCallback, CancellationToken, Learner, Runner
from eventtrain.callbacks import Checkpoint
from eventtrain.callbacks.shared.tracking import Tracker, look_for

Make = Callable[..., Learner]


class Told(Tracker):
    """Keeps what it is told."""

    def __init__(self, params: Any = None, **options: Any) -> None:
        given = {"system": True, "checkpoints": False, "artifacts": (), "fork": False, **options}
        super().__init__(params, **given)
        self.starts: list[dict[str, Any]] = []
        self.rows: list[tuple[int, int, dict[str, float]]] = []
        self.ends: list[dict[str, Any]] = []
        self.files: list[Path] = []

    def start(self, run: Any, continued: Mapping[str, Any]) -> None:
        self.starts.append(dict(continued))
        self.run_id = continued.get("run_id") or f"run-{len(self.starts)}"
        self.described = self.all_params(run)

    def send_row(self, steps: int, epoch: int, row: Mapping[str, float]) -> None:
        self.rows.append((steps, epoch, dict(row)))

    def finish(self, outcome: Mapping[str, Any], artifacts: Iterable[Path]) -> None:
        self.ends.append(dict(outcome))
        self.files = list(artifacts)


def test_each_epoch_is_a_row_with_its_numbers_its_rate_and_its_time(learner: Learner) -> None:
    told = Told()
    history = Runner([AvgStatsCallback(report=None), told]).fit(2, learner).history
    assert [(steps, epoch) for steps, epoch, _ in told.rows] == [(3, 0), (6, 1)]
    for (_, epoch, row), kept in zip(told.rows, history, strict=True):
        assert row.keys() == {"epoch", "lr", "seconds", "train_loss", "valid_loss"}
        assert (row["valid_loss"], row["lr"]) == (kept["valid_loss"], 0.1)
        assert row["epoch"] == epoch
        assert row["seconds"] > 0


def test_each_validation_is_a_row_at_its_step(learner: Learner) -> None:
    told = Told()
    Runner(told).fit(steps=5, learn=learner, validate_every=2)
    assert [steps for steps, _, _ in told.rows] == [2, 4, 5]
    assert all("step" not in row for _, _, row in told.rows)


def test_rates_of_groups_are_told_apart(learner: Learner) -> None:
    weight, bias = learner.model.parameters()
    learner.opt = torch.optim.SGD([{"params": [weight]}, {"params": [bias], "lr": 0.5}], lr=0.1)
    told = Told()
    Runner(told).fit(1, learner)
    ((_, _, row),) = told.rows
    assert (row["lr/0"], row["lr/1"]) == (0.1, 0.5)


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_a_row_that_is_not_completed_as_the_fit_is_left_is_told_apart(
    how: str, learner: Learner
) -> None:
    told = Told()
    run = Runner([AvgStatsCallback(report=None), told])

    run.on("after_train", lambda run: run.history[-1].update(own=1.0))

    @run.on("after_batch", during="validate", when=lambda run: run.epoch == 1)
    def leave(run: Runner) -> None:
        if how == "failed":
            raise RuntimeError("no")
        run.token.cancel("fit")

    with pytest.raises(RuntimeError) if how == "failed" else nullcontext():
        run.fit(3, learner)
    (_, _, whole), (steps, epoch, partial) = told.rows
    assert (steps, epoch) == (6, 1)
    assert {name.removeprefix("partial/") for name in partial} <= {*whole, "valid_loss"}
    assert all(name.startswith("partial/") for name in partial)
    assert partial["partial/own"] == 1.0


def test_a_row_of_an_epoch_that_alone_is_cancelled_is_whole(learner: Learner) -> None:
    told = Told()
    run = Runner([AvgStatsCallback(report=None), told])
    run.on("begin_validate", lambda run: run.token.cancel("epoch"), when=lambda run: run.epoch == 0)
    run.fit(2, learner)
    assert [("epoch" in row, "train_loss" in row) for _, _, row in told.rows] == [(True, True)] * 2


def test_a_fit_that_is_left_before_anything_is_measured_tells_of_no_row(learner: Learner) -> None:
    told = Told()
    run = Runner([AvgStatsCallback(report=None), told])
    run.on("begin_epoch", lambda run: run.token.cancel("fit"))
    run.fit(1, learner)
    assert told.rows == []


def test_what_the_user_adds_wins_over_what_is_found(learner: Learner) -> None:
    told = Told({"model": "mine", "note": "first"})
    Runner(told).fit(1, learner)
    assert (told.described["model"], told.described["note"]) == ("mine", "first")
    assert told.described["opt"] == "SGD"


def test_a_completed_fit_ends_so(learner: Learner) -> None:
    told = Told()
    Runner(told).fit(2, learner)
    (end,) = told.ends
    assert (end["outcome"], end["reason"], end["epochs"], end["steps"]) == ("completed", None, 2, 6)
    assert end["seconds"] > 0
    assert (end["cancelled"], end["cancellations"]) == (0, [])


def test_a_cancelled_fit_ends_with_who_why_and_where(learner: Learner) -> None:
    told, token = Told(), CancellationToken()
    run = Runner(told)

    @run.on("after_loss", during="train", when=lambda run: run.n_iter == 1)
    def tired(run: Runner) -> None:
        run.token.cancel("batch", "a bad one")

    @run.on("after_epoch")
    def bored(run: Runner) -> None:
        run.token.cancel("fit", "dull")

    run.fit(3, learner, token)
    (end,) = told.ends
    found = {name: end[name] for name in ("outcome", "reason", "by", "event", "epoch", "batch")}
    assert found == {
        "outcome": "cancelled", "reason": "dull", "by": "bored", "event": "after_epoch", "epoch": 0,
        "batch": None,
    }  # fmt: skip
    assert end["cancelled"] == 2
    assert [each["reason"] for each in end["cancellations"]] == ["a bad one", "dull"]
    assert json.loads(json.dumps(end)) == end


def test_of_many_cancellations_the_last_are_written_down_and_all_counted(
    make_learner: Make,
) -> None:
    told = Told()
    run = Runner(told)
    run.on("begin_step", lambda run: run.token.cancel("step", str(run.n_iter)))
    run.fit(10, make_learner())
    (end,) = told.ends
    assert end["cancelled"] == 30
    assert [each["reason"] for each in end["cancellations"]] == [str(n) for n in range(10, 30)]


def test_a_failed_fit_ends_with_the_exception_its_line_and_its_handler(learner: Learner) -> None:
    told = Told()
    run = Runner(told)
    run.on("after_loss", lambda run: 1 / 0, name="divides")
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    (end,) = told.ends
    assert (end["outcome"], end["reason"]) == ("failed", "ZeroDivisionError: division by zero")
    assert end["where"].startswith(f"{__file__}:")
    assert "handler 'divides' of event 'after_loss'" in end["where"]


def test_a_fit_that_ends_before_its_turn_is_told_of(learner: Learner) -> None:
    told = Told()
    run = Runner(told)
    run.on("begin_fit", lambda run: run.token.cancel("fit", "not today"))
    run.fit(1, learner)
    assert told.starts == [{}]
    assert [end["reason"] for end in told.ends] == ["not today"]


def test_a_start_that_fails_is_not_tried_again(learner: Learner) -> None:
    class Refusing(Told):
        def start(self, run: Any, continued: Mapping[str, Any]) -> None:
            super().start(run, continued)
            raise PermissionError("no")

    told = Refusing()
    with pytest.raises(PermissionError):
        Runner(told).fit(1, learner)
    assert len(told.starts) == 1


def test_a_second_fit_is_another_run(make_learner: Make) -> None:
    told = Told()
    run = Runner(told)
    run.fit(1, make_learner())
    run.fit(2, make_learner())
    assert told.starts == [{}, {}]
    assert [end["epochs"] for end in told.ends] == [1, 2]


@pytest.mark.parametrize("every", [{"every_steps": 2}, {"every_epochs": 1}])
def test_a_resumed_fit_starts_once_as_the_run_of_the_checkpoint(
    every: dict[str, int], make_learner: Make, tmp_path: Path
) -> None:
    first = Told()
    run = Runner([Checkpoint(tmp_path, **every), first])
    run.on("after_batch", lambda run: 1 / 0, when=lambda run: run.n_iter == 5)
    with pytest.raises(ZeroDivisionError):
        run.fit(3, make_learner(), resume="auto")
    again = Told()
    Runner([Checkpoint(tmp_path, **every), again]).fit(3, make_learner(), resume="auto")
    assert [each["run_id"] for each in again.starts] == ["run-1"]
    rows = first.rows + again.rows
    assert [steps for steps, _, row in rows if "epoch" in row] == [3, 6, 9]


def test_with_fork_a_resumed_fit_is_a_new_run_that_knows_the_old_one(
    make_learner: Make, tmp_path: Path
) -> None:
    Runner([Checkpoint(tmp_path), Told()]).fit(1, make_learner())
    told = Told(fork=True)
    Runner([Checkpoint(tmp_path), told]).fit(2, make_learner(), resume="auto")
    assert told.starts == [{}]
    assert told.forked_from == "run-1"


def test_a_checkpoint_without_a_tracker_is_gone_on_from_as_a_new_run(
    make_learner: Make, tmp_path: Path
) -> None:
    saved = Told()
    saved.state_dict = dict  # type: ignore[method-assign]
    Runner([Checkpoint(tmp_path), saved]).fit(1, make_learner())
    told = Told()
    Runner([Checkpoint(tmp_path), told]).fit(2, make_learner(), resume="auto")
    assert (told.starts, [steps for steps, _, _ in told.rows]) == ([{}], [6])


def test_files_are_handed_over_with_the_newest_and_the_best_checkpoint(
    learner: Learner, tmp_path: Path
) -> None:
    saving = Checkpoint(tmp_path, monitor="score", mode="max", keep_last=1)
    told = Told(checkpoints=True, artifacts="always.txt")
    run = Runner([saving, told])
    run.on("after_epoch", lambda run: run.history[-1].update(score=-run.epoch))
    run.on("after_fit", lambda run: told.add_artifact("late.txt"))
    run.fit(3, learner)
    names = [f"checkpoint-00000{n}.{kind}" for n in (1, 3) for kind in ("json", "pt")]
    assert [path.name for path in told.files] == [*names, "always.txt", "late.txt"]


def test_files_of_an_earlier_fit_are_not_handed_over_again(make_learner: Make) -> None:
    told = Told()
    run = Runner(told)
    run.on("begin_epoch", lambda run: told.add_artifact("a.txt"), once=True)
    run.fit(1, make_learner())
    assert [path.name for path in told.files] == ["a.txt"]
    run.fit(1, make_learner())
    assert told.files == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": [1]}, "params must be a mapping"),
        ({"system": 1}, "system must be True or False"),
        ({"checkpoints": "all"}, "checkpoints must be True or False"),
        ({"fork": None}, "fork must be True or False"),
        ({"artifacts": 3}, "artifacts must be a path"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Told(**options)


def test_a_missing_package_is_told_with_its_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r'X needs nowhere: .*"eventtrain\[nowhere\]"'):
        look_for("nowhere", "X")


@pytest.mark.parametrize("module", ["mlflow", "wandb"])
def test_its_module_brings_neither_torch_nor_the_trackers_package(module: str) -> None:
    program = f"import sys, eventtrain.callbacks.{module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"torch", "mlflow", "wandb"} & set(done.stdout.split())


def test_it_does_not_wait_for_a_device_in_a_batch(learner: Learner, no_sync: Any) -> None:
    run = Runner(Told())
    run.on("begin_batch", lambda run: no_sync.__enter__(), priority=2000)
    run.on("after_batch", lambda run: no_sync.__exit__(), priority=-2000)
    assert run.fit(1, learner).outcome == "completed"
    events = {row.event for row in run.bus.explain() if row.handler == "told"}
    assert events == {"begin_fit", "begin_epoch", "after_epoch", "after_row", "after_fit"}
