"""What ranks do together in one process group, many fits one after the other: see ``DEEDS``."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forked_ranks import serve, tell

SEEDS = {2: range(100), 4: range(1000, 1030)}


def all_of(own: Any) -> list[Any]:
    """What each rank has found; a check as well that they can go on together."""
    from torch import distributed as dist

    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def left_open() -> tuple[int, list[str]]:
    names = sorted(thread.name.rstrip("0123456789") for thread in threading.enumerate())
    return len(os.listdir("/proc/self/fd")), names


def random_fits(folder: Path) -> dict[str, Any]:
    """Fits by all seeds; tells of those that differ between ranks, and of what is left open."""
    import random_fits as fits
    from torch import distributed as dist

    found: dict[str, Any] = {"differ": {}, "outcomes": Counter(), "origins": Counter()}
    before, seconds = None, []
    seeds = SEEDS[dist.get_world_size()]
    for seed in seeds:
        tell(folder, f"{dist.get_rank()}.seed", str(seed))
        if seed == seeds[3]:  # torch has what it keeps for good
            before = left_open()
        start = time.monotonic()
        try:
            own = fits.fit(seed)
        except Exception as error:
            own = [repr(error)]
        seconds.append(round(time.monotonic() - start, 2))
        told = all_of(own)
        found["outcomes"][str(own[0])] += 1
        if len(own) > 6:
            found["origins"].update(f"{r[1]}".partition(" ")[0] for r in own[5])
        if any(each != told[0] for each in told) or len(own) == 1:
            found["differ"][seed] = told
    end = time.monotonic() + 20
    while left_open() != before and time.monotonic() < end:
        time.sleep(0.01)  # the server closes its ends when it notices
    return {**found, "before": before, "after": left_open(), "seconds": seconds}


def cancels_in_each_event(strategy: str) -> dict[str, Any]:
    """Rank 1 cancels the fit in each event; all scopes are cancelled before that, once."""
    import random_fits as fits
    from torch import distributed as dist

    from eventtrain import EVENTS, Distributed, Runner

    told: dict[str, Any] = {}
    for name in (event.name for event in EVENTS if event.scope != "predict"):
        run, where = Runner(Distributed(strategy)), []  # type: ignore[arg-type]

        def cancel_all_scopes(run: Any) -> None:
            if run.in_train and run.epoch == 0:
                if run.batch_index < 2:  # alike on all ranks
                    run.token.cancel("batch", "alike")
            elif run.in_train and run.batch_index == 0 and dist.get_rank() == 0:
                run.token.cancel("train", "of rank 0")
            elif not run.in_train and dist.get_rank() == 0:
                run.token.cancel("validate" if run.epoch == 0 else "epoch", "of rank 0")
            else:
                time.sleep(0.01)  # or it may be over before rank 0 has asked

        def cancel_step(run: Any) -> None:
            if run.epoch == 0 and run.batch_index == 2:
                run.token.cancel("step", "alike")

        def cancel_fit(run: Any, name: str = name, where: list[Any] = where) -> None:
            if dist.get_rank() == 1 and "fit" in run.token.open_scopes and not where:
                where.append((run.epoch, run.batch_index))
                run.token.cancel("fit", name)

        run.on("after_loss", cancel_all_scopes)
        run.on("begin_step", cancel_step)
        run.on(name, cancel_fit)
        last_epoch: list[Any] = []
        run.on("after_fit", lambda run, last=last_epoch: last.append(run.epoch))
        learn = fits.learner(valid=6)
        run.fit(3, learn)
        *rest, records, weights = fits.outcome_of(run, learn)
        last = [record for record in records if record[0] == "fit"]
        told[name] = {"rest": [*rest, last, weights], "where": where}
        told[name]["epochs"] = [*last_epoch, len(run.history), run.result.epochs]
        dist.barrier()
    return told


def events(folder: Path) -> dict[str, Any]:
    return {strategy: cancels_in_each_event(strategy) for strategy in ("ddp", "fsdp2")}


def held(folder: Path) -> dict[str, Any]:
    """The token of rank 1 alone is cancelled before the fit, or a signal comes before it."""
    import random_fits as fits
    import torch
    from torch import distributed as dist

    from eventtrain import CancellationToken, Distributed, Runner

    told: dict[str, Any] = {}
    for use in ("fit", "validate"):
        token, run, fired = CancellationToken(), Runner(Distributed()), []
        if dist.get_rank() == 1:
            token.cancel("fit", "too early")
        for event in ("begin_fit", "begin_validate", "after_fit", "after_validate"):
            run.on(event, lambda run, event=event, fired=fired: fired.append(event))
        learn = fits.learner()
        if use == "fit":
            result = run.fit(1, learn, token=token)
        else:
            result = run.validate(learn, token=token)
        records = [(each.reason, each.rank) for each in result.cancellations]
        told[use] = [result.outcome, result.reason, records, list(fired)]
        told["is a factory still"] = not isinstance(learn.opt, torch.optim.Optimizer)
        told["again"] = run.fit(1, learn, token=token).outcome
    return told


def in_a_thread(folder: Path) -> dict[str, Any]:
    """A fit in a thread other than the main one, which rank 1 cancels."""
    import random_fits as fits
    from torch import distributed as dist

    from eventtrain import Distributed, Runner

    run, learn = Runner(Distributed()), fits.learner()
    run.on(
        "after_loss", lambda run: (dist.get_rank() and run.token.cancel("fit", "enough")) or None
    )
    thread = threading.Thread(target=run.fit, args=(1, learn))
    thread.start()
    thread.join()
    return {"told": fits.outcome_of(run, learn)}


def counts(folder: Path) -> dict[str, Any]:
    """What ordinary batches call, between the beginning of one and that of another."""
    import random_fits as fits
    from torch import distributed as dist
    from torch.utils._python_dispatch import TorchDispatchMode

    from eventtrain import Distributed, Runner
    from eventtrain.distributed.groups import Group

    called: Counter[str] = Counter()
    is_counting = [False]

    def counted(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            called[what if is_counting[0] else "around"] += 1
            return function(*args, **options)

        return call

    class CountedStore:
        def __init__(self, store: Any) -> None:
            self.store = store

        def __getattr__(self, name: str) -> Any:
            value = getattr(self.store, name)
            if not callable(value) or name == "set_timeout":  # nothing is sent
                return value
            return counted(f"store.{name}", value)

    class Reading(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            name = str(function)
            if any(sign in name for sign in ("_local_scalar_dense", "equal.default", "nonzero")):
                called[name if is_counting[0] else "read around"] += 1
            return function(*args, **(kwargs or {}))

    def switch(run: Any) -> None:
        if run.in_train and run.batch_index in (3, 13):
            is_counting[0] = run.batch_index == 3

    connect = Group.connect
    Group.connect = lambda self: CountedStore(connect(self))  # type: ignore[method-assign]
    names = [name for name in dir(dist) if name.startswith(("all_", "broadcast", "barrier"))]
    names += ["reduce", "reduce_scatter", "gather", "gather_object", "scatter", "send", "recv"]
    kept = {name: getattr(dist, name) for name in names}
    for name, function in kept.items():
        setattr(dist, name, counted(f"dist.{name}", function))
    try:
        run = Runner(Distributed())
        run.on("begin_batch", switch)
        with Reading():
            run.fit(1, fits.learner(16))
    finally:
        Group.connect = connect  # type: ignore[method-assign]
        for name, function in kept.items():
            setattr(dist, name, function)
    return {"called": called}


def numbers(folder: Path) -> dict[str, Any]:
    """An epoch on 71 samples, with what is printed and written, and the same by hand."""
    import contextlib
    import io

    import torch
    from torch import distributed as dist, nn

    from eventtrain import AvgStatsCallback, DataBunch, Distributed, Learner, Runner, TensorLoader
    from eventtrain.callbacks import CSVLogger

    torch.manual_seed(0)
    x, y = torch.randn(71, 3), torch.randn(71, 1)

    def error(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (pred - target).abs().mean()

    file, said = folder / f"{dist.get_rank()}.csv", io.StringIO()
    run = Runner([Distributed(), AvgStatsCallback(error), CSVLogger(file)])
    model = nn.Linear(3, 1)
    data = DataBunch(TensorLoader(x, y, bs=16), TensorLoader(x, y, bs=16))
    opt = torch.optim.SGD(model.parameters(), lr=0.0)  # all batches see the same weights
    with contextlib.redirect_stdout(said):
        run.fit(2, Learner(model, opt, nn.functional.mse_loss, data))
    with torch.no_grad():
        pred = model(x)
        direct = [nn.functional.mse_loss(pred, y).item(), error(pred, y).item()]
    row = {name: value for name, value in run.history[0].items() if name != "epoch"}
    rows = file.read_text().splitlines() if file.exists() else []
    lines = [line for line in said.getvalue().splitlines() if line]
    return {"row": row, "direct": direct, "lines": lines, "csv": rows}


def closing(folder: Path) -> dict[str, Any]:
    """A closing event fails on rank 1 alone, in a batch that both have cancelled."""
    import random_fits as fits
    from torch import distributed as dist

    from eventtrain import Distributed, Runner

    run, learn = Runner(Distributed()), fits.learner()
    run.on("after_loss", lambda run: run.token.cancel("batch") if run.in_train else None)

    def boom(run: Any) -> None:
        if dist.get_rank() == 1:
            raise ValueError("no luck")
        time.sleep(0.5)  # rank 1 must not wait for this one, and hear of itself

    run.on("after_batch", boom)
    error = ""
    try:
        run.fit(1, learn)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    return {"error": error}


DEEDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "events": events,
    "held": held,
    "in a thread": in_a_thread,
    "counts": counts,
    "numbers": numbers,
    "random fits": random_fits,
    "closing": closing,
}


def together(folder: Path) -> dict[str, Any]:
    from eventtrain.distributed.groups import joined_group

    faulthandler.dump_traceback_later(52)
    rank = joined_group().rank
    told = {}
    for name in DEEDS:
        start = time.monotonic()
        told[name] = DEEDS[name](folder)
        all_of(rank)
        told[name]["took"] = time.monotonic() - start
    return told


def only_random_fits(folder: Path) -> dict[str, Any]:
    from eventtrain.distributed.groups import joined_group

    faulthandler.dump_traceback_later(52)
    joined_group()
    return random_fits(folder)


def deeds() -> Mapping[str, Callable[[Path], object]]:
    return {"together": together, "random fits": only_random_fits}


if __name__ == "__main__":
    serve(deeds)
