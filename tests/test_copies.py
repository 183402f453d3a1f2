"""What can be copied and pickled, and what says why it cannot."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import eventtrain.callbacks as stock
from eventtrain import (
    Callback,
    CancellationToken,
    DataBunch,
    DataError,
    FitResult,
    Learner,
    PluginError,
    Runner,
    TensorLoader,
    UnknownEventError,
    accuracy,
)
from eventtrain.cancellation import Scope
from eventtrain.errors import CallbackError, CheckpointError, EmptyLoaderError, OrderError

Copy = Callable[[Any], Any]
COPIES: dict[str, Copy] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


@pytest.fixture(params=COPIES)
def copied(request: pytest.FixtureRequest) -> Copy:
    return COPIES[request.param]


def negated(xb: Any) -> Any:
    return -xb


MAKE: dict[str, Callable[[], Callback]] = {
    "ActivationCheckpointing": lambda: stock.ActivationCheckpointing("0"),
    "ActivationStats": stock.ActivationStats,
    "AvgStatsCallback": lambda: stock.AvgStatsCallback(accuracy, report=None),
    "BatchTransform": lambda: stock.BatchTransform(x=negated),
    "CSVLogger": lambda: stock.CSVLogger("log.csv"),
    "ChannelsLast": stock.ChannelsLast,
    "Checkpoint": lambda: stock.Checkpoint("checkpoints"),
    "Compile": lambda: stock.Compile(backend="eager"),
    "CutMix": stock.CutMix,
    "DeviceStats": stock.DeviceStats,
    "EMA": stock.EMA,
    "EarlyStopping": stock.EarlyStopping,
    "EventLog": lambda: stock.EventLog("events.jsonl"),
    "Freeze": lambda: stock.Freeze("0"),
    "GradStats": stock.GradStats,
    "GradientAccumulation": lambda: stock.GradientAccumulation(2),
    "GradientClip": lambda: stock.GradientClip(norm=1.0),
    "History": stock.History,
    "JSONLLogger": lambda: stock.JSONLLogger("log.jsonl"),
    "LRFinder": stock.LRFinder,
    "LRScheduler": lambda: stock.LRScheduler(partial(torch.optim.lr_scheduler.StepLR, step_size=1)),
    "LabelSmoothing": stock.LabelSmoothing,
    "MaxSteps": lambda: stock.MaxSteps(5),
    "MixedPrecision": lambda: stock.MixedPrecision("bf16"),
    "Mixup": stock.Mixup,
    "OneCycle": lambda: stock.OneCycle(0.1),
    "ParamScheduler": lambda: stock.ParamScheduler(
        "lr",
        stock.combine_scheds(
            [0.2, 0.3, 0.1, 0.4],
            [
                stock.sched_none(0.1),
                stock.sched_lin(0.1, 0.2),
                stock.sched_cos(0.2, 0.1),
                stock.sched_exp(0.1, 0.3),
            ],
        ),
    ),
    "Progress": stock.Progress,
    "Recorder": stock.Recorder,
    "ReduceLROnPlateau": stock.ReduceLROnPlateau,
    "SWA": stock.SWA,
    "Seed": lambda: stock.Seed(1),
    "StopFile": lambda: stock.StopFile("stop"),
    "TensorBoard": lambda: stock.TensorBoard("board"),
    "TerminateOnNaN": stock.TerminateOnNaN,
    "Throughput": stock.Throughput,
    "TimeLimit": lambda: stock.TimeLimit(1000),
    "Timing": stock.Timing,
    "ToDevice": lambda: stock.ToDevice("cpu"),
}
NOT_FITTED_HERE = ("CutMix", "LRFinder", "ActivationCheckpointing", "Freeze")
"""Those that need other data or another model than the learner's here."""


@pytest.fixture(params=MAKE)
def callback(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> Callback:
    monkeypatch.chdir(tmp_path)
    if request.param == "TensorBoard":
        pytest.importorskip("tensorboard")
    return MAKE[request.param]()


def fit(callback: Callback, learner: Learner, *others: Callback) -> FitResult:
    if type(callback).__name__ in NOT_FITTED_HERE:
        pytest.skip("it needs other data or another model")
    stats = stock.AvgStatsCallback(accuracy, report=None)
    cbs = [*([] if callback.name == stats.name else [stats]), callback, *others]
    return Runner(cbs).fit(1, learner)


def test_the_table_has_every_callback_that_ships() -> None:
    exported = (getattr(stock, name) for name in stock.__all__)
    shipped = {c.__name__ for c in exported if isinstance(c, type) and issubclass(c, Callback)}
    assert set(MAKE) == shipped


def test_a_new_callback_can_be_copied(callback: Callback, copied: Copy) -> None:
    ours = copied(callback)
    assert type(ours) is type(callback)
    assert ours.name == callback.name
    assert [h.describe() for h in ours.handlers()] == [h.describe() for h in callback.handlers()]


def test_a_copy_can_be_fitted_and_leaves_the_original_new(
    callback: Callback, copied: Copy, learner: Learner
) -> None:
    if copied is copy.copy:
        pytest.skip("a shallow copy shares its lists with the original, as Python's do")
    before = pickle.dumps(callback.__getstate__())
    ours = copied(callback)
    assert fit(ours, learner).outcome == "completed"
    assert pickle.dumps(callback.__getstate__()) == before
    assert callback.run is None


def test_a_callback_that_was_fitted_can_be_copied(
    callback: Callback, copied: Copy, learner: Learner
) -> None:
    fit(callback, learner)
    assert copied(callback).run is None


def test_in_a_run_it_can_be_copied_or_says_when_it_can(
    callback: Callback, copied: Copy, learner: Learner
) -> None:
    refused: list[str] = []

    class InTheMiddle(Callback):
        def after_backward(self, run: Any) -> None:
            try:
                assert copied(callback).run is None
            except TypeError as error:
                refused.append(str(error))

    fit(callback, learner, InTheMiddle())
    assert all("while a run uses it" in text for text in refused)
    assert all("do it before the fit, or after it" in text for text in refused)


def test_the_copy_of_a_schedule_is_the_same_schedule(copied: Copy) -> None:
    ours, theirs = copied(MAKE["ParamScheduler"]()), MAKE["ParamScheduler"]()
    positions = [i / 20 for i in range(21)]
    assert [ours.sched_funcs[0](p) for p in positions] == [
        theirs.sched_funcs[0](p) for p in positions
    ]


def test_a_runner_says_what_to_do_instead(copied: Copy, learner: Learner) -> None:
    class MyRunner(Runner): ...

    run = Runner()
    run.fit(1, learner)
    for each, name in ((run, "Runner"), (MyRunner(), "MyRunner")):
        with pytest.raises(TypeError, match=rf"^a {name} cannot be copied.* another with {name}"):
            copied(each)


def test_the_data_and_what_is_trained_can_be_copied(copied: Copy, learner: Learner) -> None:
    ours = copied(learner)
    assert isinstance(ours.data, DataBunch)
    assert isinstance(ours.data.train_dl, TensorLoader)
    assert [x.tolist() for x, _ in ours.data.train_dl] == [
        x.tolist() for x, _ in learner.data.train_dl
    ]
    assert Runner().fit(1, ours).outcome == "completed"


def test_a_deep_copy_of_a_learner_is_trained_alone(learner: Learner) -> None:
    before = [parameter.clone() for parameter in learner.model.parameters()]
    ours = copy.deepcopy(learner)
    Runner().fit(1, ours)
    for parameter, was, trained in zip(
        learner.model.parameters(), before, ours.model.parameters(), strict=True
    ):
        assert torch.equal(parameter, was)
        assert not torch.equal(trained, was)


def test_a_result_and_its_cancellations_are_equal_to_their_copies(
    copied: Copy, learner: Learner
) -> None:
    run = Runner()
    run.on("after_loss", lambda run: run.token.cancel("fit", "why"))
    result = run.fit(1, learner)
    assert result.cancellations
    assert copied(result) == result
    assert copied(result.cancellations[0]) == result.cancellations[0]


ERRORS = [
    UnknownEventError("text"),
    OrderError("text", missing="x"),
    CallbackError("text"),
    DataError("text"),
    EmptyLoaderError("text"),
    CheckpointError("text"),
    PluginError("text", plugin="p", distribution="d", version="1", entry_point="m:o", reason="why"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_exceptions_keep_text_attributes_and_notes(copied: Copy, error: Exception) -> None:
    error.add_note("a note")
    ours = copied(error)
    assert type(ours) is type(error)
    assert (str(ours), ours.args, vars(ours)) == (str(error), error.args, vars(error))


def test_a_token_and_a_scope_say_what_to_do_instead(copied: Copy) -> None:
    token = CancellationToken()
    with pytest.raises(TypeError, match=r"CancellationToken cannot be copied.*linked\(token\)"):
        copied(token)
    with pytest.raises(TypeError, match=r"Scope cannot be copied.*Scope\(token, name\)"):
        copied(Scope(token, "fit"))
