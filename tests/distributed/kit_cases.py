"""Fits with each callback of the kit, by its name."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kit_fits import LOSS, Net, Told, fit, learner, sgd, texts, weights
from torch import distributed as dist, nn

from eventtrain import Distributed, Learner, Runner, accuracy, callbacks as kit
from eventtrain.discriminative import discriminative_groups

RANK, SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
Case = Callable[[Any, Path], Told]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def plainly(make: Callable[[], Any], numbers: Callable[[Any], Any] = lambda run: None) -> Case:
    """A fit with the callback alone."""
    return lambda s, folder: fit(s, make(), numbers=numbers)


def whole(tensor: Any) -> list[float]:
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return tensor.detach().flatten().tolist()  # type: ignore[no-any-return]


# Observers


@case
def ActivationStats(s: Any, folder: Path) -> Told:
    stats = kit.ActivationStats(["conv", "out"], bins=4)

    def numbers(run: Any) -> Any:
        found = [stats.values(name, stat) for name in stats.names for stat in ("mean", "std")]
        counts = [stats.histogram(name).tolist() for name in stats.names]
        return [found, [stats.values(name, "zeros") for name in stats.names], counts]

    return fit(s, stats, numbers=numbers)


@case
def AvgStatsCallback(s: Any, folder: Path) -> Told:
    from torchmetrics.classification import MulticlassAUROC, MulticlassF1Score

    return fit(s, metrics=[accuracy, MulticlassF1Score(3), MulticlassAUROC(3)])


@case
def CSVLogger(s: Any, folder: Path) -> Told:
    return {**fit(s, kit.CSVLogger(folder / "log.csv")), "files": texts(folder)}


@case
def DeviceStats(s: Any, folder: Path) -> Told:
    keys: list[Any] = []
    told = fit(s, kit.DeviceStats(history=True), on={"after_fit": lambda r: note(keys, r)})
    return {**told, "rows": keys}


def note(rows: list[Any], run: Any) -> None:
    rows += [dict(row) for row in run.history]


@case
def EventLog(s: Any, folder: Path) -> Told:
    return {**fit(s, kit.EventLog(folder / "events.jsonl")), "files": texts(folder)}


@case
def GradStats(s: Any, folder: Path) -> Told:
    stats = kit.GradStats(history=True)
    return fit(s, stats, numbers=lambda run: [list(row.values()) for row in stats.to_dicts()])


@case
def History(s: Any, folder: Path) -> Told:
    history = kit.History(batches=True)
    return fit(s, history, numbers=lambda run: [r["loss"] for r in history.to_dicts("batches")])


@case
def JSONLLogger(s: Any, folder: Path) -> Told:
    return {**fit(s, kit.JSONLLogger(folder / "log.jsonl")), "files": texts(folder)}


@case
def Progress(s: Any, folder: Path) -> Told:
    file = io.StringIO()
    told = fit(s, kit.Progress(file=file, disable=False, loss=True))
    return {**told, "drawn": len(file.getvalue())}


@case
def Recorder(s: Any, folder: Path) -> Told:
    recorder = kit.Recorder()
    told = fit(s, recorder, numbers=lambda run: [recorder.losses, recorder.lrs])
    recorder.save_plots(folder)
    return {**told, "files": texts(folder)}


@case
def TensorBoard(s: Any, folder: Path) -> Told:
    told = fit(s, kit.TensorBoard(folder / "board", every=1, live=False))
    if SIZE > 1:
        dist.barrier()
    return {**told, "scalars": scalars(folder / "board"), "files": len(texts(folder))}


def scalars(folder: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in found.Tags()["scalars"] if "second" not in tag]
    return {tag: [event.value for event in found.Scalars(tag)] for tag in tags}


@case
def Throughput(s: Any, folder: Path) -> Told:
    rows: list[Any] = []
    told = fit(s, kit.Throughput(), on={"after_fit": lambda run: note(rows, run)})
    return {**told, "rows": rows}


@case
def Timing(s: Any, folder: Path) -> Told:
    rows: list[Any] = []
    told = fit(s, kit.Timing(history=True), on={"after_fit": lambda run: note(rows, run)})
    return {**told, "rows": rows}


# Steering


@case
def EarlyStopping(s: Any, folder: Path) -> Told:
    stopping = kit.EarlyStopping(patience=2)
    return fit(s, stopping, epochs=9, on={"begin_epoch": spoil}, numbers=lambda run: stopping.best)


def spoil(run: Any) -> None:
    """From the third epoch on nothing gets better."""
    if run.epoch == 2:
        run.opt.param_groups[0]["lr"] = 20.0


@case
def LRFinder(s: Any, folder: Path) -> Told:
    finder = kit.LRFinder(1e-3, 10.0, steps=10, check_every=4)
    learn = learner()
    before = weights(learn.model)
    told = fit(s, finder, epochs=3, learn=learn)
    return {**told, "numbers": [finder.lrs, finder.losses], "restored": before == told["weights"]}


@case
def MaxSteps(s: Any, folder: Path) -> Told:
    return fit(s, kit.MaxSteps(6))


@case
def StopFile(s: Any, folder: Path) -> Told:
    """Only the last rank sees the file, as on a machine of its own."""
    path = folder / f"stop.{RANK}"

    def leave(run: Any) -> None:
        if RANK == SIZE - 1 and run.n_iter == 1:
            path.touch()

    return fit(s, kit.StopFile(path, every_seconds=0), epochs=99, on={"after_batch": leave})


@case
def TerminateOnNaN(s: Any, folder: Path) -> Told:
    def break_loss(run: Any) -> None:
        if RANK == SIZE - 1 and run.n_iter == 5 and run.in_train:
            run.loss = run.loss * float("nan")

    run_on = {"after_pred": lambda run: None}
    learn = learner()
    told = fit(s, kit.TerminateOnNaN(every=1), Spoiler(break_loss), learn=learn, on=run_on)
    return told


class Spoiler(kit.BatchTransform):
    """Does something to the loss before anybody sees it."""

    priority = 60

    def __init__(self, deed: Callable[[Any], None]) -> None:
        super().__init__(x=lambda xb: xb)
        self.deed = deed

    def after_loss(self, run: Any) -> None:
        self.deed(run)


@case
def TimeLimit(s: Any, folder: Path) -> Told:
    """The time of the last rank is up long before that of the others."""
    limit = kit.TimeLimit(0.4 if RANK == SIZE - 1 else 60.0)
    return fit(s, limit, epochs=9999, on={"after_batch": lambda run: time.sleep(0.01)})


# Hyperparameters


def rates(run: Any) -> Any:
    return [run.recorder.lrs, run.recorder.values("momentum")]


@case
def LRScheduler(s: Any, folder: Path) -> Told:
    make = kit.LRScheduler(lambda opt: torch.optim.lr_scheduler.StepLR(opt, 3))
    return fit(s, make, kit.Recorder(), numbers=rates)


@case
def OneCycle(s: Any, folder: Path) -> Told:
    return fit(s, kit.OneCycle(0.4), kit.GradientAccumulation(2), kit.Recorder(), numbers=rates)


@case
def ParamScheduler(s: Any, folder: Path) -> Told:
    """With groups of their own rates, which a factory makes of a model."""
    learn = learner()
    blocks = {"conv": 0.05, "blocks": 0.1, "out": 0.2}
    learn.opt = lambda params: torch.optim.SGD(
        discriminative_groups(learn.model, blocks), lr=0.1, momentum=0.9
    )
    return fit(
        s,
        kit.ParamScheduler("momentum", kit.sched_cos(0.5, 0.9)),
        kit.Recorder(),
        learn=learn,
        numbers=lambda run: [rates(run), run.recorder.values("lr", None)],
    )


@case
def ReduceLROnPlateau(s: Any, folder: Path) -> Told:
    plateau = kit.ReduceLROnPlateau(mode="max", patience=0, factor=0.5)
    return fit(s, plateau, kit.Recorder(), epochs=4, numbers=rates)


# Precision, memory, speed


@case
def ActivationCheckpointing(s: Any, folder: Path) -> Told:
    return fit(s, kit.ActivationCheckpointing(["conv", "blocks.0", "blocks.1"]))


@case
def ChannelsLast(s: Any, folder: Path) -> Told:
    formats: list[bool] = []

    def look(run: Any) -> None:
        formats.append(run.xb.is_contiguous(memory_format=torch.channels_last))

    return fit(s, kit.ChannelsLast(), on={"after_pred": look}, numbers=lambda run: all(formats))


@case
def Compile(s: Any, folder: Path) -> Told:
    return fit(s, kit.Compile(backend="aot_eager"))


@case
def GradientAccumulation(s: Any, folder: Path) -> Told:
    counted = {name: shared_in_fit(s, n) for name, n in (("each", 1), ("third", 3))}
    return {**fit(s, kit.GradientAccumulation(3)), "shared": counted}


def shared_in_fit(s: Any, n: int) -> int:
    """How often gradients were put on the way in an epoch of 4 batches."""
    counts: list[int] = []

    class Profile(kit.BatchTransform):
        def __init__(self) -> None:
            super().__init__(x=lambda xb: xb)

        def after_loss(self, run: Any) -> None:
            if run.in_train:
                self.profile = torch.profiler.profile()
                self.profile.__enter__()

        def after_backward(self, run: Any) -> None:
            self.profile.__exit__(None, None, None)
            names = [event.name for event in self.profile.events()]
            counts.append(sum("all_reduce" in n or "reduce_scatter" in n for n in names))

    fit(s, kit.GradientAccumulation(n), Profile(), epochs=1)
    return sum(count > 0 for count in counts)


@case
def GradientClip(s: Any, folder: Path) -> Told:
    by_norm, by_value = kit.GradientClip(norm=0.1), kit.GradientClip(value=0.02)
    told = fit(s, by_norm, numbers=lambda run: float(by_norm.total_norm))  # type: ignore[arg-type]
    other = fit(s, by_value)
    return {**told, "weights": told["weights"] + other["weights"]}


@case
def MixedPrecision(s: Any, folder: Path) -> Told:
    told = fit(s, kit.MixedPrecision("bf16"))
    half = fit(s, kit.MixedPrecision("fp16"), kit.GradientClip(norm=1.0))
    return {**told, "fp16": half["weights"], "fp16 steps": half["steps"]}


@case
def ToDevice(s: Any, folder: Path) -> Told:
    return fit(s, kit.ToDevice())


# Weights


@case
def EMA(s: Any, folder: Path) -> Told:
    ema, learn = kit.EMA(decay=0.5), learner()
    told = fit(s, ema, kit.EarlyStopping(patience=1), learn=learn, epochs=3)
    distributed = [Distributed(s)] if s else []
    run = Runner([*distributed, kit.AvgStatsCallback(accuracy, report=None), ema])
    run.validate(learn)  # not with the averages: the best ones were put into the model
    with torch.no_grad():
        ema.copy_to(learn.model)
    return {**told, "numbers": [weights(learn.model), run.history[0]["valid_loss"]]}


@case
def Freeze(s: Any, folder: Path) -> Told:
    before: list[Any] = []

    def look(run: Any) -> None:
        before.append([p.requires_grad for p in run.model.parameters()])

    parts = kit.Freeze({1: "conv", 2: ["blocks.0"]})
    return fit(s, parts, epochs=3, on={"after_train": look}, numbers=lambda run: before)


@case
def SWA(s: Any, folder: Path) -> Told:
    learn = learner(model=Net(norm=True), rows=24)
    told = fit(s, kit.SWA(1, lr=0.05), learn=learn, epochs=3)
    norm: Any = learn.model.norm
    return {**told, "statistics": [norm.running_mean.tolist(), norm.running_var.tolist()]}


# Batches


@case
def CutMix(s: Any, folder: Path) -> Told:
    return mixes(s, kit.CutMix())


@case
def Mixup(s: Any, folder: Path) -> Told:
    return mixes(s, kit.Mixup(generator=torch.Generator().manual_seed(5)))


def mixes(s: Any, mixing: Any) -> Told:
    shares: list[float] = []
    wrong: list[int] = []

    def look(run: Any) -> None:
        if run.in_train:
            shares.append(mixing.lam)
            own, other = LOSS(run.pred, run.yb), LOSS(run.pred, run.yb[mixing.permutation])
            if not torch.allclose(run.loss, mixing.lam * own + (1 - mixing.lam) * other):
                wrong.append(run.n_iter)

    told = fit(s, kit.Seed(3), mixing, on={"after_loss": look})
    return {**told, "shares": shares, "wrong": wrong}


@case
def Seed(s: Any, folder: Path) -> Told:
    drawn: list[float] = []
    first: list[Any] = []

    def draw(run: Any) -> None:
        drawn.append(torch.rand(()).item())
        first.append(weights(run.model))

    learn = learner(model=Net(dropout=0.5))
    told = fit(s, kit.Seed(3), learn=learn, on={"begin_train": draw})
    return {**told, "drawn": drawn, "first": first[0]}


def double(xb: Any) -> Any:
    return 2 * xb


CASES.update(
    BatchTransform=plainly(lambda: kit.BatchTransform(x=double, during=None)),
    Checkpoint=lambda s, folder: fit(s, kit.Checkpoint(folder)),
    Distributed=lambda s, folder: fit(s),
    LabelSmoothing=plainly(lambda: kit.LabelSmoothing()),
)
