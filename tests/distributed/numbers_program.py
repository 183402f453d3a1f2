"""What a rank does in the tests of numbers: ``numbers_program.py DEED``, under torchrun.

Each prints one line of JSON, or the text of its error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import sharded_deeds
import torch
from torch import Tensor, distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel

from eventtrain import (
    AvgStatsCallback,
    Callback,
    DataBunch,
    Distributed,
    Learner,
    Runner,
    TensorLoader,
)
from eventtrain.callbacks import (
    GradientAccumulation,
    LRFinder,
    OverAll,
    Seed,
    TerminateOnNaN,
    Throughput,
)
from eventtrain.distributed.reductions import World


def runner(cbs: list[Callback]) -> Runner:
    """One that trains with all ranks, where there are several."""
    return Runner([Distributed(), *cbs] if dist.is_initialized() else cbs)


def data(rows: int = 23, bs: int = 7, shuffle: bool = True) -> DataBunch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    train = TensorLoader(x, y, bs=bs, shuffle=shuffle, seed=3)
    return DataBunch(train, TensorLoader(x, y, bs=bs + 1))


def learner(weight: Any = None, **options: Any) -> Learner:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    opt = torch.optim.SGD(model.parameters(), lr=0.3)
    loss = weighted_loss if weight else nn.functional.mse_loss
    return Learner(model, opt, loss, data(**options), weight=weight)


def count_large(batch: Any) -> Tensor:
    """Rows that count, on the device; in some shares there is none."""
    return (batch[0][:, 0] > 0.2).sum()


def weighted_loss(pred: Tensor, yb: Tensor) -> Tensor:
    return pred_loss[0](pred, yb)


pred_loss: list[Callable[[Tensor, Tensor], Tensor]] = [nn.functional.mse_loss]


def of_large(run: Runner) -> None:
    counted = run.xb[:, 0] > 0.2
    pred_loss[0] = lambda pred, yb: ((pred - yb).square()[:, 0] * counted).sum() / counted.sum()


def fit(cbs: list[Callback], learn: Learner, epochs: int = 2) -> Runner:
    run = runner(cbs)
    run.on("begin_batch", of_large)
    run.fit(epochs, learn)
    return run


def outcome_of(run: Runner, learn: Learner) -> dict[str, Any]:
    weights = torch.cat([parameter.detach().flatten() for parameter in learn.model.parameters()])
    rows = [{k: v for k, v in row.items() if "second" not in k} for row in run.history]
    return {"weights": weights.tolist(), "history": rows}


def mean_abs(pred: Tensor, yb: Tensor) -> Tensor:
    return (pred - yb).abs().mean()


def trains(weight: Any = None, n: int = 1, **options: Any) -> dict[str, Any]:
    learn = learner(weight, **options)
    cbs: list[Callback] = [AvgStatsCallback(None if weight else mean_abs, report=None)]
    run = fit([*cbs, GradientAccumulation(n)] if n > 1 else cbs, learn)
    return outcome_of(run, learn)


def logs(weight: Any = None) -> dict[str, Any]:
    """Also a name that the last rank alone knows."""
    learn = learner(weight)
    run = runner([])
    run.on("begin_batch", of_large)
    run.on("after_loss", lambda run: run.log("own_loss", run.loss))

    def log_on_last(run: Runner) -> None:
        if run.world.rank == run.world.size - 1:
            run.log("index", run.batch_index, weight=run.batch_index)

    run.on("after_batch", log_on_last)
    run.fit(2, learn)
    return outcome_of(run, learn)


def validates_on_several() -> dict[str, Any]:
    """Two loaders that share out their batches; of one the last is a row for one rank alone."""
    learn = learner()
    valid = learn.data.valid_dl
    learn.data.valid_dl = {
        "all": valid,
        "few": TensorLoader(valid.dataset.x[:3], valid.dataset.y[:3], 2),
    }
    run = runner([AvgStatsCallback(mean_abs, report=None)])
    run.on("after_loss", lambda run: run.log("own", run.loss), during="validate")
    run.fit(2, learn)
    assert learn.data.valid_dl["all"] is valid
    return outcome_of(run, learn)


def has_parts() -> dict[str, Any]:
    """One rank has another order of names; one name is of some batches, one of one rank."""
    learn = learner()
    run = runner([AvgStatsCallback(report=None)])

    def loss_func(pred: Tensor, yb: Tensor) -> dict[str, Tensor]:
        loss, is_last = nn.functional.mse_loss(pred, yb), run.world.rank == run.world.size - 1
        parts = {"half": loss / 2, "tenth": loss / 10}
        if run.batch_index == 1:
            parts["second"] = loss
        if is_last:
            parts = {"constant": loss.detach() * 0 + 5, **dict(reversed(parts.items()))}
        return {"loss": loss, **parts}

    learn.loss_func = loss_func
    run.fit(2, learn)
    assert set(run.avg_stats.train_stats.names) >= {"half", "tenth", "second", "constant"}
    return outcome_of(run, learn)


def computes_metrics() -> dict[str, Any]:
    from torchmetrics.regression import MeanAbsoluteError, SpearmanCorrCoef

    learn = learner(rows=23, bs=7)
    metrics = [mean_abs, MeanAbsoluteError(), SpearmanCorrCoef()]
    return outcome_of(fit([AvgStatsCallback(metrics, report=None)], learn, 1), learn)


def computes_over_all() -> dict[str, Any]:
    learn = learner(rows=22, bs=7)
    metrics = OverAll(correlation, "correlation")
    target = {"target": lambda run: {"y": run.yb}}
    return outcome_of(fit([AvgStatsCallback(metrics, None, **target)], learn, 2), learn)


def correlation(pred: Tensor, target: dict[str, Tensor]) -> float:
    return float(torch.corrcoef(torch.cat([pred, target["y"]], 1).T)[0, 1])


def is_cut_short() -> dict[str, Any]:
    """The last batch, in which the gradients of its group would be shared, has no backward pass."""
    learn = learner()
    run = runner([GradientAccumulation(3)])
    learn.data.train_dl.batch_size = 5
    run.on("after_loss", cut_last, during="train")
    run.fit(2, learn)
    return outcome_of(run, learn)


def cut_last(run: Runner) -> None:
    if run.iters == (run.batch_index or 0) + 1:
        run.token.cancel("batch")


def finds_rates() -> dict[str, Any]:
    finder = LRFinder(1e-3, 100.0, steps=12, check_every=5)
    fit([finder], learner(), 3)
    return {"lrs": finder.lrs, "losses": finder.losses}


def meets_nan() -> dict[str, Any]:
    learn = learner()
    run = runner([TerminateOnNaN(every=2)])

    def spoil(run: Runner) -> None:
        if run.world.rank == run.world.size - 1 and run.n_iter == 2:
            run.loss = run.loss * float("nan")

    run.on("after_loss", spoil, priority=60, during="train")
    result = run.fit(3, learn)
    return {"reason": result.reason, "steps": result.steps}


def draws_random_numbers() -> dict[str, Any]:
    drawn: list[Any] = []
    rows: list[Any] = []
    learn = learner(bs=8, rows=16)
    learn.data.train_dl.seed = None
    run = runner([Seed(4)])
    run.on("begin_train", lambda run: drawn.append(torch.rand(()).item()))
    run.on("after_batch", lambda run: rows.extend(run.xb[:, 0].tolist()), during="train")
    run.fit(1, learn)
    found = World().gather([*drawn, *rows])
    return {"streams": len({r[0] for r in found}), "rows": len({x for r in found for x in r[1:]})}


def differs_in_length() -> dict[str, Any]:
    learn = learner(rows=23 + 7 * dist.get_rank())
    fit([], learn)
    return {}


def has_a_metric_of_its_own() -> dict[str, Any]:
    class Last:
        def reset(self) -> None:
            self.value = 0.0

        def update(self, pred: Tensor, yb: Tensor) -> None:
            self.value = yb.sum().item()

        def compute(self) -> float:
            return self.value

        def to(self, device: torch.device) -> None:
            pass

        __call__ = update

    fit([AvgStatsCallback(Last(), report=None)], learner(), 1)
    return {}


def measures_speed() -> dict[str, Any]:
    learn = learner()
    if dist.is_initialized() and dist.get_rank() == 1:
        learn.model.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    run = runner([Throughput()])
    run.fit(1, learn)
    row = run.history[0]
    return {
        "row": row,
        "samples": row["train_samples_per_second"] / row["train_batches_per_second"],
    }


def predicts() -> dict[str, Any]:
    """Predictions of several forms, of 15 rows in batches of 7: the last has one row alone."""
    learn = learner()
    run = Runner()
    if dist.is_initialized():
        run.world = World()
    x = torch.arange(45, dtype=torch.float64).view(15, 3) / 45
    plain = learn.model
    loader = TensorLoader(x, torch.arange(15), bs=7)
    found, targets = run.predict(learn, loader, with_targets=True)
    learn.model = lambda xb: {"a": (xb.sum(1).float(), xb > 0.5), "none": None}
    nested = run.predict(learn, loader)
    learn.model = lambda xb: [{"boxes": row[: int(row[0] * 3)], "id": "b"} for row in xb]
    boxes = [box["boxes"].tolist() for box in run.predict(learn, loader)]
    learn.model = plain
    left = (loader.share.world_size, loader.seed)
    own = run.predict(learn, [x[:2], x[2:4]]).flatten().tolist()
    parts = [nested["a"][0].tolist(), nested["a"][1].tolist(), nested["none"], boxes, left, own]
    return {"found": json.loads(json.dumps([found.flatten().tolist(), targets.tolist(), *parts]))}


def predicts_means() -> dict[str, Any]:
    learn = learner()
    run = Runner()
    run.world = World()
    learn.model = lambda xb: xb.mean()
    run.predict(learn, TensorLoader(torch.ones(8, 3), bs=4))
    return {}


DEEDS: dict[str, Callable[[], dict[str, Any]]] = {
    "trains": trains,
    "trains with a last batch of one row": lambda: trains(rows=22),
    "trains with a weight": lambda: trains(count_large),
    "accumulates": lambda: trains(n=3),
    "accumulates with a weight": lambda: trains(count_large, n=3),
    "logs": logs,
    "logs with a weight": lambda: logs(count_large),
    "validates on several": validates_on_several,
    "has parts": has_parts,
    "computes metrics": computes_metrics,
    "computes over all": computes_over_all,
    "trains sharded": lambda: sharded_deeds.trains(fit, data(), 1),
    "accumulates sharded": lambda: sharded_deeds.trains(fit, data(), 3),
    "overflows sharded": lambda: sharded_deeds.overflows(fit, sharded_deeds.learner(data())),
    "is cut short": is_cut_short,
    "finds rates": finds_rates,
    "meets nan": meets_nan,
    "predicts": predicts,
    "predicts means": predicts_means,
    "measures speed": measures_speed,
    "draws random numbers": draws_random_numbers,
    "differs in length": differs_in_length,
    "has a metric of its own": has_a_metric_of_its_own,
}


def main(deeds: list[str]) -> None:
    dist.init_process_group("gloo")
    for deed in deeds:
        try:
            told = json.dumps({"deed": deed, "rank": dist.get_rank(), **DEEDS[deed]()})
        except Exception as error:
            told = json.dumps({"deed": deed, "rank": dist.get_rank(), "error": repr(error)})
        # In one piece: the others write into the same pipe.
        os.write(sys.stdout.fileno(), f"{told}\n".encode())
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
