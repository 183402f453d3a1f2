"""What can be copied and pickled, and what says why it cannot."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import eventtrain
import eventtrain.callbacks as stock
from eventtrain import (
    Callback,
    CancellationToken,
    DataBunch,
    DataError,
    Dataset,
    EventBus,
    FitResult,
    Learner,
    PluginError,
    Runner,
    Signal,
    TensorLoader,
    TrainEvalCallback,
    UncountableError,
    UnknownEventError,
    accuracy,
    get_dls,
    get_model,
)
from eventtrain.cancellation import Scope
from eventtrain.errors import (
    CallbackError,
    CheckpointError,
    DesyncError,
    EmptyLoaderError,
    OrderError,
    RemoteError,
)

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
    "Distributed": stock.Distributed,
    "EMA": stock.EMA,
    "EarlyStopping": stock.EarlyStopping,
    "EventLog": lambda: stock.EventLog("events.jsonl"),
    "Freeze": lambda: stock.Freeze("0"),
    "GradStats": stock.GradStats,
    "GradientAccumulation": lambda: stock.GradientAccumulation(2),
    "GradientClip": lambda: stock.GradientClip(norm=1.0),
    "History": stock.History,
    "JSONLLogger": lambda: stock.JSONLLogger("log.jsonl"),
    "LRFinder": lambda: stock.LRFinder(1e-4, 1e-3, steps=4),
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
    "OptunaPruning": lambda: stock.OptunaPruning(PatientTrial()),
    "Progress": stock.Progress,
    "Recorder": stock.Recorder,
    "ReduceLROnPlateau": stock.ReduceLROnPlateau,
    "SWA": stock.SWA,
    "Seed": lambda: stock.Seed(1),
    "SplitOnOOM": stock.SplitOnOOM,
    "StopFile": lambda: stock.StopFile("stop"),
    "TensorBoard": lambda: stock.TensorBoard("board"),
    "TerminateOnNaN": stock.TerminateOnNaN,
    "Throughput": stock.Throughput,
    "TimeLimit": lambda: stock.TimeLimit(1000),
    "Timing": stock.Timing,
    "ToDevice": lambda: stock.ToDevice("cpu"),
    "TrainEvalCallback": TrainEvalCallback,
}


class PatientTrial:
    """Has what is asked of one of Optuna's, and is never pruned."""

    def report(self, value: float, step: int) -> None:
        pass

    def should_prune(self) -> bool:
        return False


ELSEWHERE = ("MLflow", "WandB")
"""Those that need a tracker's package: tests/trackers/test_trackers_together.py copies them."""

ON_IMAGES = ("CutMix", "LRFinder", "ActivationCheckpointing", "Freeze")
"""Those that need other data or another model than the linear one here."""


@pytest.fixture(params=MAKE)
def callback(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> Callback:
    monkeypatch.chdir(tmp_path)
    if request.param == "TensorBoard":
        pytest.importorskip("tensorboard")
    return MAKE[request.param]()


def image_learner() -> Learner:
    x, y = torch.randn(24, 1, 8, 8), torch.randint(0, 3, (24,))
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(144, 3)),
    )
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    data = DataBunch(TensorLoader(x, y, bs=4), TensorLoader(x, y, bs=4), c=3)
    return Learner(model, opt, nn.functional.cross_entropy, data)


def fit(callback: Callback, learner: Learner, *others: Callback) -> FitResult:
    stats = stock.AvgStatsCallback(accuracy, report=None)
    cbs = [*([] if callback.name == stats.name else [stats]), callback, *others]
    if isinstance(callback, TrainEvalCallback):
        callback.name = "another_train_eval"  # beside the runner's own
    if type(callback).__name__ in ON_IMAGES:
        learner = image_learner()
    return Runner(cbs).fit(1, learner)


def test_the_table_has_every_callback_that_ships() -> None:
    exported = (getattr(stock, name) for name in stock.__all__)
    shipped = {c.__name__ for c in exported if isinstance(c, type) and issubclass(c, Callback)}
    assert {*MAKE, *ELSEWHERE} == shipped | {"TrainEvalCallback"}


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
    ended = "cancelled" if isinstance(ours, stock.LRFinder) else "completed"  # by its last step
    assert fit(ours, learner).outcome == ended
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
    eventtrain.ScopeNotOpenError("fit", ["epoch"]),
    OrderError("text", missing="x"),
    CallbackError("text"),
    DataError("text"),
    UncountableError("text"),
    EmptyLoaderError("text"),
    CheckpointError("text"),
    RemoteError("text", ranks=(1,)),
    DesyncError("text", ranks=(1,)),
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


def handle(run: Any) -> None: ...


def a_bus() -> EventBus:
    bus = EventBus()
    bus.on("after_loss", handle, every=2)
    return bus


def a_signal() -> Signal:
    signal = Signal()
    signal.connect(handle, weak=False)
    return signal


def some_data() -> DataBunch:
    x, y = torch.zeros(8, 5), torch.zeros(8, dtype=torch.long)
    return DataBunch(*get_dls(Dataset(x, y), Dataset(x, y), 4), c=3)


def a_learner() -> Learner:
    return Learner(*get_model(some_data(), lr=0.1), torch.nn.functional.cross_entropy, some_data())


def a_run() -> Runner:
    run = Runner()
    run.on("after_loss", lambda run: run.token.cancel("fit", "why"), once=True)
    run.fit(1, a_learner())
    return run


def a_profile() -> Any:
    with EventBus().profile() as profile:
        return profile


def bound(index: int) -> Any:
    return EventBus().bind(object(), CancellationToken())[index]


PUBLIC: dict[str, Callable[[], Any]] = {
    "EVENTS": lambda: eventtrain.EVENTS,
    "AvgStats": lambda: stock.AvgStats(accuracy, True),
    "OverAll": lambda: stock.OverAll(accuracy),
    "Callback": Callback,
    "Cancellation": lambda: a_run().result.cancellations[0],
    "DataBunch": some_data,
    "Dataset": lambda: Dataset(torch.zeros(2), torch.zeros(2)),
    "Event": lambda: eventtrain.EVENTS[0],
    "EventBus": a_bus,
    "FitResult": lambda: a_run().result,
    "GlobalBatchSampler": lambda: eventtrain.GlobalBatchSampler(8, 4, seed=1),
    "Learner": a_learner,
    "EventTrainError": lambda: eventtrain.EventTrainError("text"),
    "Signal": a_signal,
    "TensorLoader": lambda: TensorLoader(torch.zeros(4), torch.zeros(4), bs=2, shuffle=True),
    "the order": lambda: a_bus().explain(),
    "the vocabulary": lambda: a_bus().vocabulary,
    **{type(error).__name__: lambda error=error: error for error in ERRORS},
    **MAKE,
}
REFUSED: dict[str, Callable[[], Any]] = {
    "CancellationToken": CancellationToken,
    "Runner": a_run,
    "Scope": lambda: Scope(CancellationToken(), "fit"),
    "Subscription": lambda: a_bus().on("after_loss", handle, name="another"),
    "a handler": lambda: a_bus()["after_loss"].handlers[0],
    "an emitter": lambda: bound(0),
    "scopes": lambda: bound(1),
    "a profile": a_profile,
}


def test_the_tables_have_every_public_name() -> None:
    names = {*eventtrain.__all__, *stock.__all__}
    functions = {n for n in names if inspect.isfunction(getattr(eventtrain, n, None))}
    functions |= {n for n in stock.__all__ if inspect.isfunction(getattr(stock, n))}
    assert names - functions - {*PUBLIC, *REFUSED, *ELSEWHERE} == set()


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_can_be_copied(name: str, copied: Copy) -> None:
    value = PUBLIC[name]()
    ours = copied(value)
    assert type(ours) is type(value)
    assert dir(ours) == dir(value)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_copied_says_what_to_do(name: str, copied: Copy) -> None:
    with pytest.raises(TypeError, match=r"cannot be copied or pickled: .*(Make|Take|Copy|Subscr)"):
        copied(REFUSED[name]())


FUNCTIONS_INSIDE: dict[str, Callable[[], Any]] = {
    "BatchTransform": lambda: stock.BatchTransform(x=lambda xb: xb),
    "LRScheduler": lambda: stock.LRScheduler(lambda opt: None),
    "ParamScheduler": lambda: stock.ParamScheduler("lr", lambda position: 0.1),
    "AvgStatsCallback": lambda: stock.AvgStatsCallback(lambda pred, target: pred.mean()),
    "Freeze": lambda: stock.Freeze(lambda name, module: True),
}


@pytest.mark.parametrize("name", FUNCTIONS_INSIDE)
def test_a_callback_with_a_lambda_is_copied_and_says_why_it_is_not_pickled(name: str) -> None:
    callback = FUNCTIONS_INSIDE[name]()
    assert copy.copy(callback).name == copy.deepcopy(callback).name == callback.name
    with pytest.raises(TypeError, match=rf"{name} .*cannot be pickled: .*the top of a module"):
        pickle.dumps(callback)


def test_a_bus_with_a_lambda_is_copied_and_says_why_it_is_not_pickled() -> None:
    for options in ({}, {"when": lambda run: True}):
        bus = EventBus()
        bus.on("after_loss", handle if options else lambda run: None, name="mine", **options)
        assert copy.copy(bus)["after_loss"].handlers[0].name == "mine"
        with pytest.raises(TypeError, match=r"pickled: 'mine': .*the top of a module"):
            pickle.dumps(bus)


def test_a_callback_that_holds_its_runner_passes_on_what_that_says() -> None:
    callback = stock.BatchTransform(x=negated)
    callback.mine = Runner()
    with pytest.raises(TypeError, match=r"pickled: mine: TypeError: a Runner cannot be copied"):
        pickle.dumps(callback)


def test_what_a_callback_holds_weakly_is_empty_in_a_copy(copied: Copy) -> None:
    kept, callback = Dataset(torch.zeros(1), torch.zeros(1)), Callback()
    callback.seen = weakref.WeakSet([kept])
    callback.last = weakref.ref(kept)
    ours = copied(callback)
    assert (list(ours.seen), ours.last) == ([], None)
    ours.seen.add(kept)
    assert list(callback.seen) == [kept]


class Slotted(Callback):
    """Keeps what it has in slots, one of a private name, and besides."""

    __slots__ = ("__mine", "seen")

    def __init__(self) -> None:
        self.seen, self.besides, self.__mine = [1], 2, 3

    @property
    def all_of_it(self) -> tuple[Any, ...]:
        return self.seen, self.besides, self.__mine


def test_what_a_callback_keeps_in_slots_is_in_a_copy(copied: Copy) -> None:
    callback = Slotted()
    ours = copied(callback)
    assert ours.all_of_it == ([1], 2, 3)
    assert (ours.seen is callback.seen) == (copied is copy.copy)


class KnowingItself(Callback):
    """Holds itself, and a method of its own."""

    def __init__(self) -> None:
        self.me, self.calls = self, [self.after_loss]

    def after_loss(self) -> None: ...


def test_what_refers_to_a_callback_refers_to_its_copy() -> None:
    for copied in (copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        ours = copied(KnowingItself())
        assert ours.me is ours
        assert ours.calls[0].__self__ is ours


def test_a_deep_copy_names_what_cannot_be_copied() -> None:
    callback = Callback()
    callback.guard = threading.Lock()
    with pytest.raises(TypeError, match=r"<Callback 'callback'> cannot be copied: guard: .*lock"):
        copy.deepcopy(callback)


class Noting(torch.utils.data.Dataset):
    """A dataset that holds what workers are sent."""

    def __init__(self, *held: Any) -> None:
        self.held = held

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        self.held[0].emit("after_loss", self)
        return index


def test_workers_that_are_spawned_get_a_bus_and_callbacks_that_work() -> None:
    dataset = Noting(a_bus(), stock.EMA(), some_data())
    loader = DataLoader(dataset, num_workers=1, multiprocessing_context="spawn", timeout=100)
    assert [batch.tolist() for batch in loader] == [[0], [1]]


@pytest.mark.filterwarnings("ignore:Got pickle error")  # torch says so too
def test_workers_are_not_spawned_with_a_runner_and_the_error_says_what_to_do() -> None:
    loader = DataLoader(Noting(Runner()), num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(TypeError, match="a Runner cannot be copied or pickled"):
        next(iter(loader))
