"""The parts of the gpu and scale suites: what they train, count and time."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import torch

from benchmarks import device_clock, gpu, scale
from benchmarks.device_clock import BURST, UNTIMED, CudaClock, HostClock, TimedBatches, timed
from benchmarks.environment import environment
from benchmarks.loops import EVENTS, idle_handlers, null_learner, subscribed, written_loop
from benchmarks.measure import Group, Options, Target
from benchmarks.plugin_packages import MODULE, installed
from benchmarks.steps import CASES, CapturedRunner, CapturedStep, Case, learner, perceptron
from benchmarks.syncs import count_syncs
from eventtrain import EVENTS as VOCABULARY, DataBunch, Learner, Runner
from eventtrain.plugins import installed_plugins

CPU, META = torch.device("cpu"), torch.device("meta")
CASE = CASES["cpu"][0]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def trained(way: Any, lr: float = 0.1) -> list[torch.Tensor]:
    """Return the weights after the batches of a case, trained by ``way``."""
    learn, batches = learner(CASE, CPU, seed=0)
    learn.opt.param_groups[0]["lr"] = lr
    learn.data = DataBunch(batches)
    way(learn)
    return [parameter.detach() for parameter in learn.model.parameters()]


def test_all_ways_train_alike() -> None:
    ways = gpu.ways((0, 10))
    first, *others = (trained(way) for way in ways.values())
    assert len(others) == 3
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_case_is_the_same_for_one_seed_only() -> None:
    weights = [next(learner(CASE, CPU, seed)[0].model.parameters()) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_hand_written_loop_calls_every_handler_once_a_batch() -> None:
    seen: list[str] = []
    handlers = {event: [lambda run, event=event: seen.append(event)] for event in EVENTS}
    for way in (written_loop(handlers), written_loop(handlers, in_a_for=True)):
        seen.clear()
        way(null_learner(2))
        assert seen == [*EVENTS] * 2


def test_those_events_are_all_that_a_training_batch_fires() -> None:
    of_a_batch = [e for e in VOCABULARY if e.scope in ("batch", "step")]
    assert [e.name for e in of_a_batch if e.only_after is None] == list(EVENTS)


def test_the_runner_fires_those_events_once_a_batch() -> None:
    seen: list[str] = []
    handlers = {event: [lambda run, event=event: seen.append(event)] for event in EVENTS}
    subscribed(handlers).fit(1, null_learner(2))
    assert seen == [*EVENTS] * 2


@pytest.mark.parametrize("case", CASES["cpu"][:4], ids=lambda case: case.name)
def test_a_case_trains_every_parameter_of_its_model(case: Case) -> None:
    learn, batches = learner(case, CPU, seed=0)
    learn.data = DataBunch(batches[:1])
    before = [parameter.detach().clone() for parameter in learn.model.parameters()]
    learn.opt.param_groups[0]["lr"] = 0.1
    Runner().fit(1, learn)
    assert learn.model(batches[0][0]).shape == (case.shape[0], case.classes)
    changed = [
        not torch.equal(*pair) for pair in zip(before, learn.model.parameters(), strict=True)
    ]
    assert all(changed)


# Waiting for the device


@pytest.mark.parametrize("device", [CPU, META], ids=str)
def test_the_runner_never_reads_from_the_device(device: torch.device) -> None:
    target = gpu._syncs(CASE, device, Options())
    assert isinstance(target, Target)
    assert target.value == 0


def test_a_handler_that_reads_the_loss_is_counted() -> None:
    learn, batches = learner(CASE, CPU, seed=0)
    learn.data, run = DataBunch(batches), Runner()
    run.on("after_loss", lambda run: run.loss.item() and None)
    assert count_syncs(lambda: run.fit(1, learn), CPU) == len(batches)


def test_on_meta_such_a_handler_cannot_run_at_all() -> None:
    learn, batches = learner(CASE, META, seed=0)
    learn.data, run = DataBunch(batches), Runner()
    run.on("after_loss", lambda run: run.loss.item() and None)
    with pytest.raises(RuntimeError, match="meta"):
        run.fit(1, learn)


def test_the_notice_that_cudas_debug_mode_is_a_prototype_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def set_mode(mode: str) -> None:
        warnings.warn(
            "Synchronization debug mode is a prototype feature and does not yet detect all "
            "synchronizing operations", UserWarning, stacklevel=1
        )  # fmt: skip

    def wait() -> None:
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    assert count_syncs(lambda: None, torch.device("cuda")) == 0
    assert count_syncs(wait, torch.device("cuda")) == 1


def test_where_a_read_is_not_told_of_none_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "learner", lambda case, device, seed: learner(case, CPU, seed))
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    assert "not told" in str(gpu._syncs(CASE, torch.device("cuda"), Options()))


@needs_cuda
def test_cuda_tells_of_a_handler_that_reads_the_loss() -> None:
    device = torch.device("cuda")
    learn, batches = learner(CASE, device, seed=0)
    learn.data, run = DataBunch(batches), Runner()
    assert count_syncs(lambda: run.fit(1, learn), device) == 0
    run.on("after_loss", lambda run: run.loss.item() and None)
    assert count_syncs(lambda: run.fit(1, learn), device) == len(batches)


# Clocks


def test_the_clock_starts_after_two_batches_and_stops_after_the_last() -> None:
    told: list[Any] = []

    class Clock(HostClock):
        def start(self) -> None:
            told.append("start")

        def stop(self) -> None:
            told.append("stop")

    for pair in TimedBatches([(1, 1), (2, 2)], 3, Clock()):
        told.append(pair)
    assert told == [(1, 1), (2, 2), "start", (1, 1), (2, 2), (1, 1), "stop"]


def test_the_host_clock_is_a_wall_clock() -> None:
    learn, batches = learner(CASE, CPU, seed=0)
    found = timed(written_loop({event: [] for event in EVENTS}), learn, batches, 3, CPU)()
    assert list(found) == ["wall"]
    assert found["wall"] > 0


@needs_cuda
def test_on_cuda_three_clocks_are_read() -> None:
    device = torch.device("cuda")
    learn, batches = learner(CASE, device, seed=0)
    found = timed(written_loop({event: [] for event in EVENTS}), learn, batches, 3, device)()
    assert set(found) == {"wall", "events", "host"}
    assert isinstance(TimedBatches(batches, 1, CudaClock()).clock, CudaClock)


class QueueClock(HostClock):
    """A device's clock without the device: the host is done when the work is half done."""

    def stop(self) -> None:
        super().stop()
        self.readings["host"] = self.readings["wall"] / 2


@pytest.mark.parametrize(("count", "fits"), [(BURST, 1), (BURST + 1, 2)])
def test_the_host_is_timed_in_a_fit_of_its_own_only_where_the_queue_might_fill(
    count: int, fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_clock, "clock_for", lambda device: QueueClock())
    learn, batches = learner(CASE, CPU, seed=0)
    lengths: list[int] = []

    def way(learn: Learner) -> None:
        lengths.append(len(list(learn.data.train_dl)))

    found = timed(way, learn, batches, count, CPU)()
    assert lengths == [count + UNTIMED, BURST + UNTIMED][:fits]
    assert set(found) == {"wall", "host"}
    assert fits == 2 or found["host"] == pytest.approx(found["wall"] / 2)


def test_the_hidden_share_is_what_the_host_spends_and_the_step_does_not() -> None:
    names = [gpu.HAND, *map(gpu.runner, gpu.COUNTS)]
    wall = Group("wall", "us", {name: [10e-6 + 1e-6 * (name != gpu.HAND)] for name in names})
    host = Group("host", "us", {name: [5e-6 + 4e-6 * (name != gpu.HAND)] for name in names})
    (note,) = gpu._hidden({"wall": wall, "host": host})
    assert note.count("75%") == len(gpu.COUNTS)
    assert gpu._hidden({"wall": wall}) == []


def test_dispatch_that_the_noise_hides_is_not_called_hidden_by_kernels() -> None:
    names = [gpu.HAND, *map(gpu.runner, gpu.COUNTS)]
    same = Group("a", "us", {name: [10e-6] for name in names})
    (note,) = gpu._hidden({"wall": same, "host": same})
    assert note.count("below the noise") == len(gpu.COUNTS)
    assert "%" not in note


def test_targets_are_set_for_launch_bound_and_compute_bound_steps_alone() -> None:
    rounds = {gpu.HAND: [1.0], gpu.SAME: [1.0], gpu.runner(10): [1.02]}
    for bound, passed in (("launch", True), ("compute", False)):
        targets = gpu._targets(perceptron((2, 2), 1, bound), Group("a", "s", rounds), CPU)
        assert [target.passed for target in targets] == [passed] * 2
    assert gpu._targets(perceptron((2, 2), 1, "between"), Group("a", "s", rounds), CPU) == []


def test_the_hidden_share_is_told_of_those_that_were_measured() -> None:
    names = [gpu.HAND, gpu.runner(10)]
    clocks = {clock: Group(clock, "us", {name: [1.0] for name in names}) for clock in gpu.CLOCKS}
    (note,) = gpu._hidden(clocks)
    assert "10 handlers" in note
    assert "100 handlers" not in note


def test_a_case_that_does_not_fit_into_memory_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = [True]

    def made(case: Case, device: torch.device, seed: int) -> Any:
        if full and full.pop():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return learner(case, device, seed)

    monkeypatch.setattr(gpu, "learner", made)
    suite = gpu.run(Options(quick=True, device="cpu"))
    assert suite.groups == []
    assert any("out of memory" in note and CASE.name in note for note in suite.notes)
    assert [target.value for target in suite.targets] == [0]  # what comes after it is measured


def test_a_long_step_is_timed_in_fewer_rounds() -> None:
    learn, batches = learner(CASE, CPU, seed=0)
    ways = gpu.ways((0,))

    def slow(learn: Learner) -> None:
        clock = learn.data.train_dl.clock
        clock.readings = {"wall": 100.0 * len(learn.data.train_dl)}

    found = gpu._measure("slow", dict.fromkeys(ways, slow), learn, batches, CPU, Options())
    assert len(found["wall"].rounds[gpu.HAND]) == 7


def test_what_needs_a_gpu_is_left_out_with_a_reason() -> None:
    assert "needs a CUDA device" in str(gpu._captured(CASE, CPU, Options()))
    assert "quick" in str(gpu._compiled(CASE, CPU, Options(quick=True)))


@pytest.mark.parametrize("text", ["", "\nof the capture\nand more"])
def test_a_capture_that_fails_is_left_out_with_the_reason(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(learn: Learner, batches: Any) -> CapturedStep:
        raise RuntimeError(text)

    monkeypatch.setattr(gpu, "learner", lambda case, device, seed: learner(case, CPU, seed))
    monkeypatch.setattr(CapturedStep, "on_cuda", fail)
    note = gpu._captured(CASE, torch.device("cuda"), Options())
    reason = "RuntimeError: of the capture" if text else "RuntimeError"
    assert note == f"the step captured in a CUDA graph left out: {reason}"


def test_a_compiler_that_fails_without_a_word_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert gpu._compiled(CASE, CPU, Options()) == "torch.compile left out: AssertionError"


def test_the_gpu_that_was_asked_for_is_the_one_that_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {device}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert environment(Options(device="cuda:1"))["device"].startswith("GPU cuda:1, sm_90")
    assert environment(Options(device="cpu"))["device"].startswith("GPU None, sm_90")


# The captured step


class Replayed:
    """Stands in for a CUDA graph: does the step again on the tensors that it was made with."""

    def __init__(self, learn: Learner, batches: Any) -> None:
        x, y = batches[0][0].clone(), batches[0][1].clone()
        pred = learn.model(x).detach().clone()
        self.step = CapturedStep(x, y, pred, pred.sum(), self.replay)
        self.learn = learn

    def replay(self) -> None:
        self.learn.opt.zero_grad(set_to_none=True)
        pred = self.learn.model(self.step.x)
        self.learn.loss_func(pred, self.step.y).backward()
        self.learn.opt.step()
        self.step.pred.copy_(pred.detach())


def test_a_captured_step_trains_like_the_plain_loop() -> None:
    def replayed(learn: Learner) -> None:
        step = Replayed(learn, learn.data.train_dl).step
        CapturedRunner(step).fit(1, learn)

    def by_hand(learn: Learner) -> None:
        Replayed(learn, learn.data.train_dl).step.written_loop()(learn)

    expected = trained(gpu.ways((0,))[gpu.HAND])
    for way in (replayed, by_hand):
        assert all(torch.equal(a, b) for a, b in zip(expected, trained(way), strict=True))


def test_a_captured_step_fires_every_event_of_a_batch() -> None:
    learn, batches = learner(CASE, CPU, seed=0)
    learn.data, run = DataBunch(batches), CapturedRunner(Replayed(learn, batches).step)
    seen: list[str] = []
    for event in EVENTS:
        run.on(event, lambda run, event=event: seen.append(event))
    run.fit(1, learn)
    assert seen == [*EVENTS] * len(batches)
    assert run.result.steps == len(batches)


@needs_cuda
def test_a_step_captured_in_a_cuda_graph_trains_like_the_plain_loop() -> None:
    device, found = torch.device("cuda"), []
    for captured in (False, True):
        learn, batches = learner(CASE, device, seed=0)
        learn.opt.param_groups[0]["lr"] = 0.1
        learn.data, step = DataBunch(batches), CapturedStep.on_cuda(learn, batches)
        if not captured:
            learn.opt.zero_grad()  # capturing leaves gradients that were never computed
        (step.written_loop() if captured else written_loop(idle_handlers(0)))(learn)
        found.append(next(learn.model.parameters()).detach().clone())
    assert torch.allclose(*found)


# Scale


def test_the_plugins_of_a_package_are_there_while_it_is_installed() -> None:
    before = [plugin.name for plugin in installed_plugins()]
    with installed(3) as names:
        run = Runner(plugins=names)
        assert [plugin.name for plugin in run.plugins] == names
        assert len(run.bus.signal("after_loss").handlers) == 3
    assert [plugin.name for plugin in installed_plugins()] == before
    assert MODULE not in sys.modules


def test_every_batch_of_a_long_fit_is_seen() -> None:
    beside = []
    chunks = scale._InChunks(2 * scale.CHUNKS, beside.append)
    run = Runner()
    run.fit(1, Learner(*[null_learner(1).model] * 3, DataBunch(chunks)))
    assert run.result.steps == 2 * scale.CHUNKS
    assert len(beside) == scale.CHUNKS
    assert all(seconds > 0 for seconds in chunks.fitted)


def test_a_drift_of_both_loops_is_none() -> None:
    slow = {f"{name}, {which} tenth": [time * factor]
            for name, time in (("hand-written loop", 1.0), ("Runner", 5.0))
            for which, factor in (("first", 1), ("last", 2))}  # fmt: skip
    assert scale._drift(Group("a", "s", slow)) == pytest.approx(1)
    slow["Runner, last tenth"] = [15.0]
    assert scale._drift(Group("a", "s", slow)) == pytest.approx(1.5)
