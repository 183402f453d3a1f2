"""What a seed fixes, what it leaves alone, and that observers draw no random numbers."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from eventtrain import (
    Callback,
    DataBunch,
    Learner,
    Runner,
    TensorLoader,
    accuracy,
    callbacks as stock,
)
from eventtrain.callbacks import Checkpoint, Seed
from eventtrain.priorities import BEFORE_EVERYONE

Numbers = tuple[float, float, float]
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def draw() -> Numbers:
    """One number from each generator."""
    return random.random(), float(numpy.random.rand()), float(torch.rand(()))


def seeded(seed: int) -> Numbers:
    """What ``draw`` gives after everything was seeded by hand."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    return draw()


def states() -> tuple[int, ...]:
    """Hashes of the states of all generators, to compare."""
    _, keys, *rest = numpy.random.get_state()
    return (
        hash(random.getstate()),
        hash((keys.tobytes(), *rest)),
        hash(torch.get_rng_state().numpy().tobytes()),
    )


def random_learner() -> Learner:
    """A learner whose weights depend on every random number: shuffled, with dropout."""
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    x, y = torch.randn(24, 5), torch.randint(0, 3, (24,))
    data = DataBunch(TensorLoader(x[:16], y[:16], bs=4, shuffle=True), TensorLoader(x[16:], y[16:]))
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return Learner(model, opt, nn.functional.cross_entropy, data)


def same_weights(one: Learner, other: Learner) -> bool:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# Seeding


def test_all_generators_are_seeded_before_others_begin(learner: Learner) -> None:
    run = Runner(cbs=Seed(7))
    seen: list[Numbers] = []
    run.on("begin_fit", lambda run: seen.append(draw()), priority=BEFORE_EVERYONE)
    run.fit(1, learner)
    assert seen == [seeded(7)]


def test_another_seed_gives_other_numbers(learner: Learner) -> None:
    seen: list[Numbers] = []
    for seed in (1, 2):
        run = Runner(cbs=Seed(seed))
        run.on("begin_fit", lambda run: seen.append(draw()))
        run.fit(0, learner)
    assert len({number for numbers in seen for number in numbers}) == 6


def test_every_fit_is_seeded_anew() -> None:
    first, second = random_learner(), random_learner()
    run = Runner(cbs=Seed(7))
    run.fit(2, first)
    draw()
    run.fit(2, second)
    assert same_weights(first, second)


def test_weights_are_those_of_a_fit_that_was_seeded_by_hand() -> None:
    learner, by_hand = random_learner(), random_learner()
    Runner(cbs=Seed(7)).fit(2, learner)
    torch.manual_seed(7)
    Runner().fit(2, by_hand)
    assert same_weights(learner, by_hand)


def test_validation_and_prediction_alone_are_not_seeded() -> None:
    learner = random_learner()
    run = Runner(cbs=Seed(7, deterministic=True))
    before = states()
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    assert states() == before


@pytest.mark.parametrize("after", [2, 4, 6])
def test_a_resumed_fit_ends_like_one_that_was_never_interrupted(after: int, tmp_path: Path) -> None:
    whole, second = random_learner(), random_learner()
    Runner(cbs=Seed(7)).fit(3, whole)
    run = Runner(cbs=[Seed(7), Checkpoint(tmp_path)])
    stop = {"when": lambda run: run.in_train and run.n_iter == after}
    run.on("after_batch", lambda run: run.token.cancel("fit"), **stop)
    run.fit(3, random_learner())
    draw()
    Runner(cbs=[Seed(7), Checkpoint(tmp_path)]).fit(3, second, resume=tmp_path)
    assert same_weights(second, whole)


@pytest.mark.parametrize(
    ("seed", "error"),
    [(-1, ValueError), (2**32, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError)],
)
def test_bad_arguments_are_refused(seed: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="seed"):
        Seed(seed)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_smallest_and_the_largest_seed_are_taken_by_all(learner: Learner, seed: int) -> None:
    assert Runner(cbs=Seed(seed)).fit(1, learner).outcome == "completed"


def test_nothing_is_read_from_the_device(learner: Learner, no_sync: Any) -> None:
    run = Runner(cbs=Seed(1, deterministic=True))
    with no_sync:
        assert run.fit(1, learner).outcome == "completed"


# Deterministic algorithms


def settings() -> dict[str, Any]:
    return {
        "mode": torch.get_deterministic_debug_mode(),
        "deterministic": torch.backends.cudnn.deterministic,
        "benchmark": torch.backends.cudnn.benchmark,
        "workspace": os.environ.get(CUBLAS),
    }


STRICT = {"mode": 2, "deterministic": True, "benchmark": False, "workspace": ":4096:8"}


@pytest.fixture(params=["fresh", "warn only"])
def before(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings before the fit, put back after the test."""
    monkeypatch.delenv(CUBLAS, raising=False)
    kept = settings()
    if request.param == "warn only":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = True
        monkeypatch.setenv(CUBLAS, ":16:8")
    yield settings()
    torch.set_deterministic_debug_mode(kept["mode"])
    torch.backends.cudnn.deterministic = kept["deterministic"]
    torch.backends.cudnn.benchmark = kept["benchmark"]


def test_algorithms_are_deterministic_during_the_fit_only(learner: Learner, before: Any) -> None:
    run = Runner(cbs=Seed(1, deterministic=True))
    seen: list[dict[str, Any]] = []
    run.on(["begin_fit", "after_epoch"], lambda run: seen.append(settings()))
    run.fit(1, learner)
    assert seen == [{**STRICT, "workspace": before["workspace"] or ":4096:8"}] * 2
    assert settings() == before


@pytest.mark.parametrize("how", ["cancel", "raise"])
@pytest.mark.parametrize("event", ["begin_fit", "after_backward"])
def test_settings_are_put_back_whatever_happens(
    how: str, event: str, learner: Learner, before: Any
) -> None:
    run = Runner(cbs=Seed(1, deterministic=True))

    @run.on(event)
    def spoil(run: Runner) -> None:
        if how == "raise":
            raise ArithmeticError
        run.token.cancel("fit")

    if how == "raise":
        with pytest.raises(ArithmeticError):
            run.fit(1, learner)
    else:
        run.fit(1, learner)
    assert settings() == before


def test_settings_stay_when_the_fit_ends_before_its_turn(learner: Learner, before: Any) -> None:
    class First(Callback):
        priority = 2 * BEFORE_EVERYONE

        def begin_fit(self, run: Runner) -> None:
            run.token.cancel("fit")

    Runner(cbs=[Seed(1, deterministic=True), First()]).fit(1, learner)
    assert settings() == before


def test_an_operation_that_has_no_deterministic_form_is_refused(learner: Learner) -> None:
    def unordered(run: Runner) -> None:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))

    strict, loose = Runner(cbs=Seed(1, deterministic=True)), Runner(cbs=Seed(1))
    for run in (strict, loose):
        run.on("after_loss", unordered)
    assert loose.fit(1, learner).outcome == "completed"
    with pytest.raises(RuntimeError, match="deterministic"):
        strict.fit(1, learner)


# Observers

OBSERVERS: dict[str, Callable[[Path], Callback]] = {
    "AvgStatsCallback": lambda path: stock.AvgStatsCallback(accuracy, report=None),
    "EventLog": lambda path: stock.EventLog(),
    "History": lambda path: stock.History(batches=True),
    "Recorder": lambda path: stock.Recorder(),
    "Progress": lambda path: stock.Progress(loss=True, disable=False, file=io.StringIO()),
    "Timing": lambda path: stock.Timing(),
    "Throughput": lambda path: stock.Throughput(),
    "CSVLogger": lambda path: stock.CSVLogger(path / "log.csv"),
    "JSONLLogger": lambda path: stock.JSONLLogger(path / "log.jsonl"),
    "TensorBoard": lambda path: stock.TensorBoard(path / "tb"),
    "DeviceStats": lambda path: stock.DeviceStats(),
    "GradStats": lambda path: stock.GradStats(),
    "ActivationStats": lambda path: stock.ActivationStats(bins=8),
    "Checkpoint": lambda path: stock.Checkpoint(path / "checkpoints", every_steps=1),
    "TerminateOnNaN": lambda path: stock.TerminateOnNaN(every=1),
    "TimeLimit": lambda path: stock.TimeLimit(3600),
    "StopFile": lambda path: stock.StopFile(path / "stop"),
    "EMA": lambda path: stock.EMA(),
    "Freeze": lambda path: stock.Freeze({}),
    "LabelSmoothing": lambda path: stock.LabelSmoothing(0.0),
    "BatchTransform": lambda path: stock.BatchTransform(x=lambda xb: xb, during=None),
    "ParamScheduler": lambda path: stock.ParamScheduler("lr", stock.sched_none(0.1)),
}


def watch_a_run(callbacks: list[Callback]) -> tuple[Learner, list[tuple[int, ...]]]:
    """Fit, validate and predict; return the learner and all states on the way."""
    learner = random_learner()
    stream: list[tuple[int, ...]] = []
    run = Runner(cbs=callbacks)
    events = ["begin_batch", "after_loss", "after_epoch", "after_fit"]
    run.on(events, lambda run: stream.append(states()), priority=-9000)
    run.fit(2, learner)
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    return learner, stream


@pytest.mark.parametrize("name", OBSERVERS)
def test_observers_change_no_random_stream_and_no_weight(name: str, tmp_path: Path) -> None:
    if name == "TensorBoard":
        pytest.importorskip("tensorboard", reason="needs tensorboard (extra 'watch')")
    if name == "Progress":
        pytest.importorskip("tqdm", reason="needs tqdm (extra 'watch')")
    plain, expected = watch_a_run([])
    watched, stream = watch_a_run([OBSERVERS[name](tmp_path)])
    assert stream == expected
    assert same_weights(plain, watched)


@pytest.mark.parametrize("generator", [random.random, numpy.random.rand, lambda: torch.rand(())])
def test_an_observer_that_draws_a_number_would_be_noticed(generator: Any) -> None:
    class Noisy(Callback):
        def after_validate(self) -> None:
            generator()

    assert watch_a_run([Noisy()])[1] != watch_a_run([])[1]
