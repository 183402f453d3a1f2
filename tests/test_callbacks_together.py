"""Every pair of the callbacks that ship works together, in any order of construction."""

from __future__ import annotations

import inspect
import random
import signal
import tempfile
import threading
from collections.abc import Callable as Function, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from host_sync import NoSync
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from eventtrain import (
    EVENTS,
    Callback,
    DataBunch,
    Learner,
    Runner,
    TensorLoader,
    accuracy,
    callbacks as kit,
    handler,
)
from eventtrain.bus.handlers import Handler, Options
from eventtrain.events import SCOPES
from eventtrain.handler_options import options_of
from eventtrain.priorities import BEFORE_EVERYONE

MAKE: dict[str, Function[[Path], Callback]] = {
    "ActivationCheckpointing": lambda _: kit.ActivationCheckpointing(["0"]),
    "ActivationStats": lambda _: kit.ActivationStats(),
    "AvgStatsCallback": lambda _: kit.AvgStatsCallback(accuracy, report=None),
    "BatchTransform": lambda _: kit.BatchTransform(x=lambda xb: xb * 1.0),
    "CSVLogger": lambda path: kit.CSVLogger(path / "log.csv"),
    "ChannelsLast": lambda _: kit.ChannelsLast(),
    "Checkpoint": lambda path: kit.Checkpoint(path / "checkpoints"),
    "Compile": lambda _: kit.Compile(backend="eager"),
    "CutMix": lambda _: kit.CutMix(),
    "DeviceStats": lambda _: kit.DeviceStats(every=1),
    "Distributed": lambda _: kit.Distributed(),
    "EMA": lambda _: kit.EMA(0.9),
    "EarlyStopping": lambda _: kit.EarlyStopping("score"),
    "EventLog": lambda path: kit.EventLog(path / "events.jsonl"),
    "Freeze": lambda _: kit.Freeze(["0"], until_epoch=1),
    "GradStats": lambda _: kit.GradStats(),
    "GradientAccumulation": lambda _: kit.GradientAccumulation(2),
    "GradientClip": lambda _: kit.GradientClip(norm=0.01),
    "History": lambda _: kit.History(batches=True),
    "JSONLLogger": lambda path: kit.JSONLLogger(path / "log.jsonl"),
    "LRFinder": lambda _: kit.LRFinder(steps=2, max_lr=0.1),
    "LRScheduler": lambda _: kit.LRScheduler(_decay),
    "LabelSmoothing": lambda _: kit.LabelSmoothing(0.2),
    "MaxSteps": lambda _: kit.MaxSteps(100),
    "MixedPrecision": lambda _: kit.MixedPrecision("bf16"),
    "MixedPrecision fp16": lambda _: kit.MixedPrecision(
        "fp16", torch.amp.GradScaler("cpu", init_scale=64.0)
    ),
    "Mixup": lambda _: kit.Mixup(),
    "OneCycle": lambda _: kit.OneCycle(0.05),
    "OptunaPruning": lambda _: kit.OptunaPruning(PatientTrial(), "score"),
    "ParamScheduler": lambda _: kit.ParamScheduler("weight_decay", kit.sched_lin(0.1, 0.01)),
    "Progress": lambda _: kit.Progress(disable=True),
    "Recorder": lambda _: kit.Recorder(),
    "ReduceLROnPlateau": lambda _: kit.ReduceLROnPlateau("score"),
    "SWA": lambda _: kit.SWA(start=0, lr=0.05),
    "Seed": lambda _: kit.Seed(7),
    "SplitOnOOM": lambda _: kit.SplitOnOOM(3),
    "StopFile": lambda path: kit.StopFile(path / "stop"),
    "TensorBoard": lambda path: kit.TensorBoard(path / "board"),
    "TerminateOnNaN": lambda _: kit.TerminateOnNaN(every=50),
    "Throughput": lambda _: kit.Throughput(),
    "TimeLimit": lambda _: kit.TimeLimit(3600),
    "Timing": lambda _: kit.Timing(),
    "ToDevice": lambda _: kit.ToDevice(),
}
NEEDS = {"TensorBoard": "tensorboard", "Progress": "tqdm"}
SET_THE_RATE = {"LRScheduler", "OneCycle", "ReduceLROnPlateau"}
READ_ONCE_A_STEP = {"MixedPrecision fp16", "Compile"}  # nor can a compiler be watched
BATCHES = 3


def _decay(opt: Any) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)


class PatientTrial:
    """Has what is asked of one of Optuna's, and is never pruned."""

    def report(self, value: float, step: int) -> None:
        pass

    def should_prune(self) -> bool:
        return False


class CountingSGD(torch.optim.SGD):
    """Counts, and compares the gradients that it is stepped with to those that are due."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.05, momentum=0.9)
        self.steps = self.zeroed = 0
        self.due: list[tuple[list[Tensor], int]] = []
        self.seen: list[tuple[Tensor, Tensor]] = []

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        if not self.due:  # nobody is comparing
            return super().step(closure)
        found = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        samples = sum(n for _, n in self.due)
        weighted = [[each * (n / samples) for each in gradient] for gradient, n in self.due]
        due = [sum(parts) for parts in zip(*weighted, strict=True)]
        self.seen.append((_flat(found), _flat(due)))
        self.due.clear()
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.zeroed += 1
        super().zero_grad(set_to_none)


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors])


class Witness(Callback):
    """Sees the run as user code would, between those who measure and those who decide."""

    def __init__(self, no_sync: Any) -> None:
        self.no_sync = no_sync
        self.is_watching = False
        self.trace: list[str] = []

    def handlers(self, plugin: str | None = None) -> list[Any]:
        options = Options(priority=BEFORE_EVERYONE + 100, name="trace")
        noting = [Handler(event.name, self.note(event.name), options) for event in EVENTS]
        return [*super().handlers(plugin), *noting]

    def note(self, event: str) -> Function[[Runner], None]:
        def note(run: Runner) -> None:
            self.trace.append(event)
            if event == "begin_batch" and self.no_sync is not None:
                self.is_watching = True
                self.no_sync.__enter__()
            elif event == "after_batch" and self.is_watching:
                self.is_watching = False
                self.no_sync.__exit__()

        return note

    @handler(during="train")
    def after_loss(self, run: Runner) -> None:
        """Work out the batch's gradient, from the loss as everybody sees it."""
        assert not torch.is_autocast_enabled("cpu")
        parameters = [p for p in run.model.parameters() if p.requires_grad]
        gradient = torch.autograd.grad(run.loss, parameters, retain_graph=True)
        run.opt.due.append((list(gradient), len(run.xb)))


def make_learner(device: str = "cpu") -> Learner:
    torch.manual_seed(0)
    x, y = torch.randn(15, 1, 6, 6).to(device), torch.randint(0, 3, (15,)).to(device)
    data = DataBunch(TensorLoader(x[:11], y[:11], bs=4, shuffle=True), TensorLoader(x[11:], y[11:]))
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(64, 3)).to(device)
    return Learner(model, CountingSGD(model), nn.functional.cross_entropy, data)


def train(names: Sequence[str], folder: Path, no_sync: Any, epochs: int = 1) -> Learner:
    """Train three batches an epoch, look at everything on the way, and return the learner."""
    for name in names:
        if name in NEEDS:
            pytest.importorskip(NEEDS[name], reason=f"{name} needs it (extra 'watch')")
    learn = make_learner()
    # Where the finder ends the fit within a batch, that is where a checkpoint is saved.
    may_read = READ_ONCE_A_STEP & set(names) or {"Checkpoint", "LRFinder"} <= set(names)
    witness = Witness(None if may_read else no_sync)
    run = Runner([*(MAKE[name](folder) for name in names), witness])
    run.on("after_epoch", lambda run: run.history[-1].update(score=1.0 / (run.epoch + 1)))
    loss_func, data = learn.loss_func, (learn.data.train_dl, learn.data.valid_dl)
    sigterm, before = signal.getsignal(signal.SIGTERM), set(threading.enumerate())

    result = run.fit(epochs, learn)

    assert result.outcome == ("cancelled" if "LRFinder" in names else "completed")
    _check_trace(witness.trace)
    assert learn.opt.steps == result.steps == learn.opt.zeroed == len(learn.opt.seen)
    assert not learn.opt.due or "LRFinder" in names  # which may end in the middle of a group
    for found, due in learn.opt.seen:
        assert found.isfinite().all()
        if "GradientClip" in names:
            assert found.norm() < 0.01 * 1.001
            found = found / found.norm() * due.norm()
        assert (found - due).norm() <= 0.03 * due.norm()
    assert learn.loss_func is loss_func
    assert (learn.data.train_dl, learn.data.valid_dl) == data
    assert all(p.requires_grad and p.grad is None for p in learn.model.parameters())
    for module in learn.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert "forward" not in vars(module) and module._compiled_call_impl is None
    assert all(w.is_contiguous() for w in learn.model.state_dict().values())
    assert not torch.is_autocast_enabled("cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    assert signal.getsignal(signal.SIGTERM) is sigterm
    started = set(threading.enumerate()) - before
    for thread in started:
        if type(thread).__name__ != "TMonitor":  # tqdm's own
            thread.join(5)
            assert not thread.is_alive()
    return learn


def _check_trace(trace: Sequence[str]) -> None:
    """Every scope that was begun is closed once, in reverse order."""
    open_scopes: list[str] = []
    for event in trace:
        kind, _, scope = event.partition("_")
        if scope in SCOPES and scope != "step":
            if kind == "begin":
                open_scopes.append(scope)
            else:
                assert open_scopes.pop() == scope
    assert open_scopes == []


def weights(learn: Learner) -> dict[str, Tensor]:
    state: dict[str, Tensor] = learn.model.state_dict()
    return state


def assert_equal(one: Learner, other: Learner) -> None:
    first, second = weights(one), weights(other)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_every_callback_that_ships_is_among_them() -> None:
    shipped = {
        name
        for name in kit.__all__
        if isinstance(getattr(kit, name), type) and issubclass(getattr(kit, name), Callback)
    }
    assert {name.partition(" ")[0] for name in MAKE} == shipped


@pytest.mark.parametrize("first", MAKE)
def test_it_works_with_each_of_the_others_in_both_orders(
    first: str, tmp_path: Path, no_sync: Any
) -> None:
    later = list(MAKE)[list(MAKE).index(first) :]
    for number, second in enumerate(later):
        if second.partition(" ")[0] == first.partition(" ")[0] and second != first:
            continue  # the two precisions
        names = [first] if second == first else [first, second]
        if second in NEEDS and find_spec(NEEDS[second]) is None and second != first:
            continue
        runs = []
        for order, each in enumerate((names, names[::-1])):
            folder = tmp_path / f"{number}-{order}"
            folder.mkdir()
            try:
                runs.append(train(each, folder, no_sync))
            except Exception as error:
                error.add_note(f"callbacks: {each}")
                raise
        if not set(names) <= SET_THE_RATE or first == second:
            try:
                assert_equal(*runs)
            except AssertionError as error:
                error.add_note(f"callbacks: {names}, in the two orders")
                raise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", MAKE)
def test_each_works_on_a_gpu_without_making_the_host_wait_in_a_batch(
    name: str, tmp_path: Path, sync_debug_mode: Function[[str], None]
) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{name} needs it (extra 'watch')")
    half = name == "MixedPrecision fp16"  # of which the one above is for the CPU
    run = Runner(kit.MixedPrecision("fp16") if half else MAKE[name](tmp_path))
    run.on("after_epoch", lambda run: run.history[-1].update(score=1.0 / (run.epoch + 1)))
    if name not in READ_ONCE_A_STEP:
        for event, mode in {"begin_batch": "error", "after_batch": "default"}.items():
            set_mode = partial(lambda run, mode: sync_debug_mode(mode), mode=mode)
            run.on(event, set_mode, priority=BEFORE_EVERYONE + 100, name="mode")
    learn = make_learner("cuda")
    result = run.fit(2, learn)
    assert result.outcome == ("cancelled" if name == "LRFinder" else "completed")
    assert all(w.is_cuda and w.isfinite().all() for w in weights(learn).values())


OBSERVERS = [
    "ActivationStats", "AvgStatsCallback", "CSVLogger", "Checkpoint", "DeviceStats", "Distributed",
    "EventLog", "GradStats", "History", "JSONLLogger", "MaxSteps", "Recorder", "StopFile",
    "TerminateOnNaN", "Throughput", "TimeLimit", "Timing", "ToDevice",
]  # fmt: skip


def test_all_observers_together_change_nothing(tmp_path: Path, no_sync: Any) -> None:
    # With Distributed, a loader that shuffles has the order that it has on several processes.
    alone = train(["Distributed"], tmp_path, no_sync, 2)
    assert_equal(train(OBSERVERS, tmp_path, no_sync, 2), alone)


@settings(max_examples=40)
@given(st.data())
def test_any_of_them_work_together_in_any_order(data: Any) -> None:
    possible = [n for n in MAKE if n not in NEEDS and n not in ("LRFinder", "MixedPrecision fp16")]
    names = data.draw(st.lists(st.sampled_from(possible), unique=True, min_size=3, max_size=12))
    other = data.draw(st.permutations(names))
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        runs = train(names, Path(one), NoSync(), 2), train(other, Path(two), NoSync(), 2)
    if len(SET_THE_RATE & set(names)) < 2:  # the last one made has the last word
        assert_equal(*runs)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_any_of_them_resume_bit_for_bit(data: Any) -> None:
    possible = [
        n for n in MAKE if n not in NEEDS and n not in ("LRFinder", "Checkpoint", "TimeLimit")
    ]
    names = data.draw(st.lists(st.sampled_from(possible), unique=True, min_size=1, max_size=6))
    if {"MixedPrecision", "MixedPrecision fp16"} <= set(names):
        names.remove("MixedPrecision")
    first = data.draw(st.integers(1, 2 * (BATCHES + 1)))
    others = data.draw(st.lists(st.integers(1, BATCHES), max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        whole = resumable(names, Path(folder) / "whole", None)
        for after in (first, *others):
            resumable(names, Path(folder) / "broken", after)
        again = resumable(names, Path(folder) / "broken", None)
    assert_equal(again[0], whole[0])
    assert torch.equal(again[1], whole[1])


def resumable(names: Sequence[str], folder: Path, after: int | None) -> tuple[Learner, Tensor]:
    """Train two epochs, or go on with them; everything is lost after so many batches.

    Returns the learner and what the run predicts in the end, with averaged weights, say.
    """
    learn = make_learner()
    if folder.exists():  # another process would have drawn other numbers by now
        torch.manual_seed(1)
        random.seed(1)
    folder.mkdir(exist_ok=True)
    saving = kit.Checkpoint(folder / "saved", every_steps=1, every_seconds=1e-9)
    run = Runner([*(MAKE[name](folder) for name in names), saving])
    run.on("after_epoch", lambda run: run.history[-1].update(score=1.0 / (run.epoch + 1)))
    left = [after]

    def lose(run: Runner) -> None:
        if left[0] is not None and run.phase != "predict":
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

    run.on("after_batch", lose, priority=-2000)
    try:
        run.fit(2, learn, resume="auto")
    except KeyboardInterrupt:
        assert after is not None
    return learn, run.predict(learn, learn.data.valid_dl)


def _overridden(kind: type[Callback]) -> type[Callback]:
    """A subclass of that name that overrides every method of a handler, and calls it."""

    def override(name: str) -> Any:
        def method(self: Any, *run: Any) -> Any:
            return getattr(super(made, self), name)(*run)

        wanted = inspect.signature(getattr(kind, name)).parameters
        if len(wanted) == 1:
            return lambda self: method(self)
        return lambda self, run: method(self, run)

    names = {name for name in dir(kind) if options_of(kind, name) is not None}
    names |= {event.name for event in EVENTS if callable(getattr(kind, event.name, None))}
    made = type(kind.__name__, (kind,), {name: override(name) for name in names})
    return made


@pytest.mark.parametrize("name", sorted(MAKE.keys() - NEEDS.keys()))
def test_a_subclass_that_overrides_every_handler_stands_where_its_base_does(
    name: str, tmp_path: Path
) -> None:
    def rows(callback: Callback) -> list[tuple[Any, ...]]:
        run = Runner(callback)  # kept: a bus forgets the handlers of a run that is gone
        return [(r.event, r.position, r.handler, r.priority, r.constraints, r.filter, r.on_error)
                for r in run.bus.explain()]  # fmt: skip

    plain, other = MAKE[name](tmp_path), MAKE[name](tmp_path)
    other.__class__ = _overridden(type(other))
    assert rows(other) == rows(plain)
