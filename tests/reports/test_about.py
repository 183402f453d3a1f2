"""What a log tells of a run besides its events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import eventtrain
from eventtrain import Callback, EventLog, Learner, Runner
from eventtrain.callbacks import Checkpoint, EarlyStopping, OneCycle
from eventtrain.reports.about import about_failure, about_row
from eventtrain.reports.about_run import rates_of


def first_line(learner: Learner, *callbacks: Callback, **fit: Any) -> dict[str, Any]:
    log = EventLog()
    Runner([*callbacks, log]).fit(**(fit or {"epochs": 1}), learn=learner)
    json.dumps(log.records, allow_nan=False)  # all of it can be written down
    found: dict[str, Any] = log.records[0]["run"]
    return found


def test_the_first_line_of_a_run_alone_tells_of_it(learner: Learner) -> None:
    log = EventLog()
    run = Runner(log)
    run.fit(2, learner)
    run.validate(learner)
    told = [record["event"] for record in log.records if "run" in record]
    assert told == ["begin_fit", "begin_validate"]


def test_versions_machine_and_device_are_told(learner: Learner) -> None:
    told = first_line(learner)["environment"]
    assert told["eventtrain"] == eventtrain.__version__
    assert told["torch"] == torch.__version__
    assert (told["device"], told["rank"], told["world_size"]) == ("cpu", 0, 1)


def test_model_optimizer_and_length_are_told(learner: Learner) -> None:
    told = first_line(learner, steps=4, validate_every=2)["configuration"]
    assert (told["model"], told["parameters"], told["loss"]) == ("Linear", 18, "cross_entropy")
    assert (told["opt"]["class"], told["opt"]["lr"]) == ("SGD", 0.1)
    assert (told["epochs"], told["steps"], told["validate_every"]) == (None, 4, 2)
    assert told["training batches"] == 3


def test_the_options_of_callbacks_are_told(learner: Learner, tmp_path: Path) -> None:
    callbacks = first_line(learner, OneCycle(0.1), Checkpoint(tmp_path, every_steps=3))
    told = callbacks["configuration"]["callbacks"]
    assert told["checkpoint"]["class"] == "Checkpoint"
    assert (told["checkpoint"]["every_steps"], told["checkpoint"]["keep_last"]) == (3, 2)


def test_options_that_are_called_like_secrets_are_not_told(learner: Learner) -> None:
    class Sending(Callback):
        def __init__(self, api_key: str, password: str | None = None, every: int = 3) -> None:
            self.api_key, self.password, self.every = api_key, password, every

    told = first_line(learner, Sending("hunter2"))["configuration"]["callbacks"]["sending"]
    assert told["api_key"] == "(not shown)"
    assert (told["password"], told["every"]) == (None, 3)


def test_what_has_no_plain_form_is_told_by_its_name(learner: Learner) -> None:
    class Loud:
        def __repr__(self) -> str:
            raise AssertionError("nobody asks a stranger")

    class Holding(Callback):
        def __init__(self, thing: Any, several: Any) -> None:
            self.thing, self.several = thing, several

    told = first_line(learner, Holding(Loud(), (torch.zeros(3), print)))
    options = told["configuration"]["callbacks"]["holding"]
    assert options["thing"].endswith("Loud")
    assert options["several"] == ["Tensor", "print"]


def test_a_run_that_goes_on_tells_from_where(make_learner: Any, tmp_path: Path) -> None:
    Runner(Checkpoint(tmp_path)).fit(2, make_learner())
    log = EventLog()
    Runner([Checkpoint(tmp_path), log]).fit(3, make_learner(), resume="auto")
    told = log.records[0]["run"]["resumed"]
    assert (told["epoch"], told["phase"], told["batch"], told["steps"]) == (2, None, 0, 6)
    assert str(tmp_path) in told["from"]


def test_a_run_that_was_not_to_go_on_tells_nothing_of_it(learner: Learner) -> None:
    assert first_line(learner)["resumed"] is None


def test_a_run_that_found_nothing_to_go_on_from_tells_so(learner: Learner, tmp_path: Path) -> None:
    told = first_line(learner, Checkpoint(tmp_path), epochs=1, resume="auto")["resumed"]
    assert told == {"from": None, "epoch": 0, "phase": None, "batch": 0, "steps": 0}


def test_rates_are_told_where_they_change(learner: Learner) -> None:
    log = EventLog()
    run = Runner(log)
    run.on("after_step", lambda run: run.opt.param_groups[0].update(lr=0.05), once=True)
    run.fit(2, learner)
    told = [(record["steps"], record["rates"]) for record in log.records if "rates" in record]
    assert told == [(0, {"lr": 0.1}), (1, {"lr": 0.05})]


def test_rates_are_named_by_optimizer_and_group_and_tensors_are_left_out() -> None:
    one, two = nn.Linear(1, 1), nn.Linear(1, 1)
    groups = [{"params": [one.weight]}, {"params": [one.bias], "lr": 0.2}]
    opts = {
        "g": torch.optim.SGD(groups, lr=0.1),
        "d": torch.optim.SGD(two.parameters(), lr=torch.tensor(0.3)),
    }
    assert rates_of(opts) == {"g lr 0": 0.1, "g lr 1": 0.2}


def test_a_row_is_told_behind_the_line_of_after_row(learner: Learner) -> None:
    log = EventLog()
    run = Runner([EarlyStopping("train_loss", patience=9), log])
    run.on("after_train", lambda run: run.history[-1].update(train_loss=1.5))
    result = run.fit(2, learner)
    assert [record["row"] for record in log.records if "row" in record] == result.history
    places = [i for i, record in enumerate(log.records) if "row" in record]
    assert {log.records[i - 1]["event"] for i in places} == {"after_row"}


def test_what_is_on_a_device_is_left_out_of_a_row() -> None:
    assert about_row({"epoch": 0, "loss": torch.tensor(1.0), "name": "x"}) == {
        "epoch": 0, "name": "x"
    }  # fmt: skip


def test_an_exception_that_cannot_speak_is_told_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    error = Mute()
    error.__notes__ = 3  # type: ignore[assignment]
    error.__context__ = error.__cause__ = Mute()
    told = about_failure(error)
    assert told["type"] == "Mute"
    assert told["notes"] == []
    assert len(told["because"]) == 1


def test_causes_that_go_in_a_circle_come_to_an_end() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__context__, two.__context__ = two, one
    assert about_failure(one)["because"] == ["ValueError: two"]
