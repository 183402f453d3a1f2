"""Fits with each callback of the kit, by its name."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kit_fits import LOSS, Net, Told, fit, learner, texts, weights
from torch import distributed as dist

from eventtrain import Distributed, Runner, accuracy, callbacks as kit, load_checkpoint
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
    told = fit(s, kit.TensorBoard(folder / "board", every=1))
    fit(s, kit.TensorBoard(folder / "live", every=1, live=True))
    if SIZE > 1:
        dist.barrier()
    at_once = scalars(folder / "live")["batch/loss"]
    return {**told, "scalars": scalars(folder / "board"), "live": at_once, "files": texts(folder)}


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
    stopping = kit.EarlyStopping(patience=1)
    return fit(s, stopping, epochs=9, on={"begin_epoch": spoil}, numbers=lambda run: stopping.best)


def spoil(run: Any) -> None:
    """From the third epoch on nothing gets better."""
    if run.epoch == 2:
        run.opt.param_groups[0]["lr"] = -0.02


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
def OptunaPruning(s: Any, folder: Path) -> Told:
    """Of several ranks the first alone has a trial, which is pruned after its second epoch."""
    pruning = kit.OptunaPruning(Trial() if Runner().is_zero else None)
    return fit(s, pruning, epochs=9, numbers=lambda run: len(run.history))


class Trial:
    """Has what is asked of one of Optuna's."""

    def report(self, value: float, step: int) -> None:
        self.step = step

    def should_prune(self) -> bool:
        return self.step == 1


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

    return fit(s, kit.TerminateOnNaN(every=1), Spoiler(break_loss))


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

    learn = learner()
    fit(s, kit.ChannelsLast(), learn=learn)  # a second fit finds what the first has left
    cb = kit.ChannelsLast()
    return fit(s, cb, learn=learn, on={"after_pred": look}, numbers=lambda run: all(formats))


@case
def Compile(s: Any, folder: Path) -> Told:
    return fit(s, kit.Compile(backend="aot_eager"))


@case
def GradientAccumulation(s: Any, folder: Path) -> Told:
    counted = {name: shared_in_fit(s, n) for name, n in (("each", 1), ("third", 3))}
    return {**fit(s, kit.GradientAccumulation(3)), "shared": counted}


SHARING = ("c10d::allreduce_", "c10d::_reduce_scatter_base_")


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
            counts.append(sum(name in SHARING for name in names))

    fit(s, kit.GradientAccumulation(n), Profile(), epochs=1)
    return sum(count > 0 for count in counts)


CASES["SplitOnOOM"] = plainly(kit.SplitOnOOM)


@case
def GradientClip(s: Any, folder: Path) -> Told:
    by_norm, by_value = kit.GradientClip(norm=0.1), kit.GradientClip(value=0.02)
    told = fit(s, by_norm, numbers=lambda run: float(by_norm.total_norm))  # type: ignore[arg-type]
    other = fit(s, by_value)
    return {**told, "weights": told["weights"] + other["weights"]}


@case
def MixedPrecision(s: Any, folder: Path) -> Told:
    told = fit(s, kit.MixedPrecision("bf16"))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    half = fit(s, kit.MixedPrecision("fp16", scaler), on={"after_backward": overflow})
    return {**told, "fp16": half["weights"], "fp16 steps": half["steps"]}


def overflow(run: Any) -> None:
    """With FSDP2 in the part of one rank alone; with DDP all have the same gradients."""
    gradient = run.model.blocks[0].weight.grad
    if run.n_iter == 2:
        part = gradient.to_local() if hasattr(gradient, "to_local") else gradient
        if part is gradient or RANK == SIZE - 1:
            part.fill_(math.inf)


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
    told = fit(s, kit.SWA(1, lr=0.05), epochs=3)
    learn = learner(model=Net(norm=True))
    fit(s, kit.SWA(1), learn=learn, epochs=3)
    norm: Any = learn.model.norm
    found = torch.stack([norm.running_mean, norm.running_var])
    plain = Net()
    with torch.no_grad():
        for own, value in zip(plain.conv.parameters(), learn.model.conv.parameters(), strict=True):
            own.copy_(value.full_tensor() if hasattr(value, "full_tensor") else value)
        return {**told, "statistics": torch.allclose(found, statistics(plain, learn), atol=1e-5)}


def statistics(plain: Net, learn: Any) -> Any:
    """Of what the convolution returns, the mean over the shares of all batches."""
    shares = [x[rank::SIZE] for x, _ in learn.data.train_dl for rank in range(SIZE)]
    found = [plain.conv(share).transpose(0, 1).flatten(1) for share in shares if len(share)]
    return torch.stack([torch.stack([each.mean(1), each.var(1)]) for each in found]).mean(0)


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


def refused(s: Any) -> dict[str, str]:
    """What a handler of rank 0 alone is told that calls what all must do together."""
    found: dict[str, str] = {}
    calls: dict[str, Callable[[Any], object]] = {
        "sums": lambda run: run.world.sums([1.0]),
        "gather": lambda run: run.world.gather([1.0]),
        "average": lambda run: run.world.average([torch.ones(2)], 1.0),
        "whole_weight_of": lambda run: run.world.whole_weight_of(run),
        "predict": lambda run: Runner(Distributed(s)).predict(run.learn, run.data.valid_dl),
    }
    for name, call in calls.items():
        learn = learner()
        learn.weight = lambda batch: len(batch[0])
        run = Runner(Distributed(s, lost_after=20))
        # In a validation, where the other rank waits for nobody before its next batch.
        options: dict[str, Any] = {"ranks": "zero", "name": "alone", "during": "validate"}
        run.on("after_batch", lambda run, call=call: call(run) and None, **options)
        # It hears of the failure at its next batch, and not in what ends the phase: to be freed
        # from that would cost the group, which the next call needs.
        run.on("after_batch", lambda run: time.sleep(0.5 * RANK), during="validate", name="slow")
        try:
            run.fit(1, learn)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


@case
def Checkpoint(s: Any, folder: Path) -> Told:
    told = fit(s, kit.Checkpoint(folder, every_steps=3, keep_last=1, monitor="valid_loss"))
    best = load_checkpoint(folder)["model"]
    whole = [float(v) for name, _ in Net().named_parameters() for v in best[name].flatten()]
    return {**told, "files": texts(folder), "read back": whole}


CASES.update(
    BatchTransform=plainly(lambda: kit.BatchTransform(x=double, during=None)),
    Distributed=lambda s, folder: fit(s),
    LabelSmoothing=plainly(lambda: kit.LabelSmoothing()),
)
