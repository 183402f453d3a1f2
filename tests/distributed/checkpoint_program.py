"""Runs on real processes that save, end in the middle, and go on.

``checkpoint_program.py FOLDER NAME...`` forks the ranks of each scenario, one after the other, so
that torch is imported once, and writes what has come of each into FOLDER as JSON.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy.random
import torch
import torch._dynamo  # the ranks would import it, each for itself
from torch import nn
from torch.distributed import TCPStore
from torch.nn.functional import mse_loss

import eventtrain.plugins  # as well
from eventtrain import AvgStatsCallback, DataBunch, Distributed, Learner, Runner, TensorLoader
from eventtrain.callbacks import EMA, Checkpoint, GradientAccumulation
from eventtrain.checkpoints import folder as writers
from eventtrain.checkpoints.shards import write_shards
from eventtrain.distributed import patience
from eventtrain.distributed.groups import found_group

LIMIT = 60.0
EPOCHS, BATCHES, BATCH = 2, 6, 8
Deed = Callable[[Path], Any]
Told = list[Any]
"""What each rank tells."""


def learner(is_plain: bool = False) -> Learner:
    """Weights, running means, dropout, an optimizer with state; its data is one order for all."""
    rank = found_group().rank
    torch.manual_seed(0)
    x, y = torch.randn(BATCH * BATCHES, 5), torch.randn(BATCH * BATCHES, 2)
    layers = [nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2)]
    if is_plain:  # nothing in it hangs on how many ranks there are
        layers = [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)]
    model = nn.Sequential(*layers)
    torch.manual_seed(100 + rank)  # what is dropped out differs
    random.seed(rank)
    numpy.random.seed(rank)
    train = TensorLoader(x, y, bs=BATCH, shuffle=True, seed=3)
    data = DataBunch(train, TensorLoader(x[:10], y[:10], bs=BATCH))
    return Learner(model, lambda params: torch.optim.AdamW(params, lr=0.01), mse_loss, data)


def fit(
    folder: Path,
    strategy: Any,
    *more: Any,
    at_batch: Callable[[Any], object] = lambda run: None,
    resume: Any = None,
    is_plain: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train with checkpoints, and tell what has come of it."""
    learn = learner(is_plain)
    checkpoint = Checkpoint(folder, **{"every_steps": 1, **options})
    engine = Distributed(strategy, lost_after=2)
    run = Runner([engine, AvgStatsCallback(report=None), *more, checkpoint])
    run.on("after_batch", at_batch, priority=-2000, during="train")
    if resume is not None and any(folder.glob("checkpoint-*.pt")):
        torch.manual_seed(999)  # as in another process
    result = run.fit(EPOCHS, learn, resume=resume)
    tensors = learn.model.state_dict().values()
    whole = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in tensors]
    return {
        "weights": [float(n) for t in whole for n in t.flatten().tolist()],
        "numbers": [random.random(), float(numpy.random.rand()), torch.rand(1).item()],
        "history": result.history,
        "steps": result.steps,
        "outcome": result.outcome,
    }


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_ranks(folder: Path, size: int, deed: Deed) -> Told:
    """Fork the ranks, and return what each tells; text where it has failed, or was killed.

    When one was killed, the others get a moment, and are killed too, as ``torchrun`` does.
    """
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)  # as torchrun's agent has
    folder.mkdir(parents=True, exist_ok=True)
    children = []
    for rank in range(size):
        (folder / f"told{rank}").unlink(missing_ok=True)
        child = os.fork()
        if not child:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port))
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
            _be_rank(folder, rank, deed)
        children.append(child)
    end, left = time.monotonic() + LIMIT, set(children)
    while left:
        for child in list(left):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                left.remove(child)
                if os.WIFSIGNALED(status):
                    end = min(end, time.monotonic() + GRACE[0])
        if time.monotonic() > end:
            for child in left:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    files = [folder / f"told{rank}" for rank in range(size)]
    return [json.loads(file.read_text()) if file.exists() else "was killed" for file in files]


GRACE = [0.1]
"""Seconds that ranks have when another was killed."""


def _be_rank(folder: Path, rank: int, deed: Deed) -> None:
    told: Any = "nothing"
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            told = deed(folder)
        said = [str(each.message) for each in caught if each.category is RuntimeWarning]
        if said:
            (folder / f"warned{rank}").write_text("\n".join(said))
    except BaseException as error:
        told = f"{type(error).__name__}: {error}"
        (folder / f"trace{rank}").write_text(traceback.format_exc())
    (folder / f"told{rank}").write_text(json.dumps(told))
    os._exit(0)


# Runs that are lost, and go on


def goes_on(
    folder: Path,
    strategy: Any,
    more: Callable[[], list[Any]] = list,
    sizes: Iterable[int] = (2, 2),
    **options: Any,
) -> list[Told]:
    """What ranks tell of a whole run, and of one that all were lost in and that went on."""
    first, *then = sizes

    def lose(run: Any) -> None:
        if run.n_iter == 9:
            die()

    def run(name: str, size: int, **more_options: Any) -> Told:
        def deed(folder: Path) -> Any:
            return fit(folder, strategy, *more(), **options, **more_options)

        return run_ranks(folder / name, size, deed)

    whole = run("whole", first)
    run("lost", first, at_batch=lose)
    told = [whole]
    for size in then:
        shutil.copytree(folder / "lost", folder / f"on {size}")
        told.append(run(f"on {size}", size, resume="auto"))
    return told


def is_cancelled(folder: Path, strategy: Any) -> list[Any]:
    """A fit that rank 1 cancels in a batch, what it leaves, and how that goes on."""

    def cancel(run: Any) -> None:
        if run.n_iter == 8 and run.rank == 1:
            run.token.cancel("fit", "enough")

    options = {"every_steps": None, "every_epochs": 10}
    whole = run_ranks(folder / "whole", 2, lambda folder: fit(folder, strategy, **options))
    deed = partial(fit, strategy=strategy, at_batch=cancel, **options)
    cut = run_ranks(folder / "cut", 2, deed)
    records = [json.loads(f.read_text()) for f in (folder / "cut").glob("*.json")]
    left = [record["steps"] for record in records]
    deed = partial(fit, strategy=strategy, resume="auto", **options)
    return [whole, cut, left, run_ranks(folder / "cut", 2, deed)]


# A rank that is killed at each point around a save


def is_killed_everywhere(folder: Path, strategy: Any, asynchronous: bool) -> list[Any]:
    """What a run comes to whose rank was killed before a change to the folder, of each kind."""
    fit_it = partial(fit, strategy=strategy, asynchronous=asynchronous, every_steps=3)
    whole = run_ranks(folder / "whole", 2, partial(changing, fit_it=fit_it, at=None))
    found = {}
    for rank in range(2):
        changes = Counter(json.loads((folder / "whole" / f"changes{rank}").read_text()))
        for kind, times in changes.items():
            # The second one, where there is one: then there is a checkpoint to go on from.
            at = rank, kind, min(times, 2)
            place = folder / f"{rank} {kind}"
            lost = run_ranks(place, 2, partial(changing, fit_it=fit_it, at=at))
            resumed = run_ranks(place, 2, partial(fit_it, resume="auto"))
            found[place.name] = ["was killed" in lost, resumed == whole]
    return [[each["outcome"] for each in whole], found]


def changing(folder: Path, fit_it: Any, at: tuple[int, str, int] | None) -> Any:
    """Train, note each change to the folder, and be killed before the n-th of a kind."""
    changes: list[str] = []
    rank = found_group().rank

    def noted(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(path: Any, *others: Any, **options: Any) -> Any:
            is_moved = change.__name__ in ("replace", "rename")
            target = Path(others[0] if is_moved else path)
            is_made = is_moved or change.__name__ == "mkdir"
            inside = folder in (target.parent, target.parent.parent)
            if inside and (is_made or target.exists()):
                kind = "".join(target.suffixes) or target.name  # .metadata has none
                changes.append(f"{change.__name__} {kind}")
                if at is not None and at == (rank, changes[-1], changes.count(changes[-1])):
                    die()
            return change(path, *others, **options)

        return changed

    for module, name in ((os, "replace"), (os, "rename"), (os, "mkdir"), (Path, "unlink"),
                         (shutil, "rmtree")):  # fmt: skip
        setattr(module, name, noted(getattr(module, name)))
    told = fit_it(folder)
    (folder / f"changes{rank}").write_text(json.dumps(changes))
    return told


def is_noticed(folder: Path) -> list[Any]:
    """What the other rank does, and how soon, when one is killed in a save."""
    patience.SOON = 0.5
    GRACE[0] = 30.0

    def deed(folder: Path) -> Any:
        start = time.monotonic()
        try:
            at = 1, "replace .rank0001.pt", 2
            return changing(folder, partial(fit, strategy="ddp"), at)
        except Exception as error:
            return [f"{type(error).__name__}: {error}", time.monotonic() - start]

    try:
        return run_ranks(folder, 2, deed)
    finally:
        GRACE[0] = 0.1


# Ranks that cannot write or read


def cannot_write(
    folder: Path, strategy: Any, rank: int, asynchronous: bool, only_shards: bool = False
) -> list[Any]:
    """What all tell when one rank cannot write any more, and what is in the folder then.

    ``only_shards``: of what it writes, that is what does not find room.
    """

    def fill_the_disk(run: Any) -> None:
        if run.n_iter == 4 and run.rank == rank:
            if only_shards:
                writers.write_shards = with_full_disk
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

    def with_full_disk(*arguments: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        write_shards(*arguments)

    def deed(folder: Path) -> Any:
        try:
            return fit(folder, strategy, at_batch=fill_the_disk, asynchronous=asynchronous)
        except Exception as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            return f"{type(error).__name__}: {error}"

    told = run_ranks(folder, 2, deed)
    left = sorted(path.name for path in folder.glob("checkpoint-*"))
    return [told, left, run_ranks(folder, 2, lambda folder: begins_at(folder, strategy))]


def begins_at(folder: Path, strategy: Any) -> int:
    """With how many steps a fit goes on from a folder."""
    steps: list[int] = []

    def look(run: Any) -> None:
        steps.append(run.steps)
        run.token.cancel("fit", "seen")

    run = Runner([Distributed(strategy), AvgStatsCallback(report=None), Checkpoint(folder)])
    run.on("begin_batch", look, once=True)
    run.fit(EPOCHS, learner(), resume="auto")
    return steps[0]


def have_other_folders(folder: Path) -> Told:
    """Each rank saves where another one does not look."""
    return run_ranks(folder, 2, lambda folder: fit(folder / str(found_group().rank), "ddp"))


def find_a_damaged_part(folder: Path) -> list[Any]:
    """What all do when the newest checkpoint lacks a part of rank 1: from its folder, by name."""
    run_ranks(folder, 2, partial(fit, strategy="ddp"))
    newest = sorted(folder.glob("*.rank0001.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    epochs = partial(fit, strategy="ddp", resume="auto")
    from_folder = run_ranks(folder, 2, epochs)
    warned = [(folder / f"warned{rank}").exists() for rank in range(2)]
    file = folder / newest.name.replace("rank0001.", "")
    shutil.copy(newest, folder / "kept")
    by_name = run_ranks(folder, 2, partial(fit, strategy="ddp", resume=file))
    return [from_folder, warned, by_name]


def groups() -> list[Any]:
    return [GradientAccumulation(2)]


EACH_BATCH = {"every_steps": None, "every_seconds": 1e-9}
SCENARIOS: dict[str, Callable[[Path], Any]] = {
    "ddp": lambda folder: goes_on(folder, "ddp"),
    "ddp, groups": lambda folder: goes_on(folder, "ddp", groups, asynchronous=True, **EACH_BATCH),
    "fsdp2": lambda folder: goes_on(folder, "fsdp2", lambda: [EMA(0.9)], every_steps=2),
    "fsdp2, groups": lambda folder: goes_on(
        folder, "fsdp2", groups, asynchronous=True, **EACH_BATCH
    ),
    "ddp elsewhere": lambda folder: goes_on(folder, "ddp", sizes=(2, 1, 4), is_plain=True),
    "fsdp2 elsewhere": lambda folder: goes_on(folder, "fsdp2", sizes=(2, 1, 4), is_plain=True),
    "alone": lambda folder: goes_on(folder, "fsdp2", sizes=(1, 2), is_plain=True),
    "ddp cancelled": lambda folder: is_cancelled(folder, "ddp"),
    "fsdp2 cancelled": lambda folder: is_cancelled(folder, "fsdp2"),
    "ddp killed": lambda folder: is_killed_everywhere(folder, "ddp", False),
    "fsdp2 killed": lambda folder: is_killed_everywhere(folder, "fsdp2", True),
    "noticed": is_noticed,
    "ddp cannot": lambda folder: cannot_write(folder, "ddp", 1, True),
    "fsdp2 cannot": lambda folder: cannot_write(folder, "fsdp2", 1, False),
    "shards cannot": lambda folder: cannot_write(folder, "fsdp2", 1, False, only_shards=True),
    "zero cannot": lambda folder: cannot_write(folder, "ddp", 0, False),
    "other folders": have_other_folders,
    "damaged": find_a_damaged_part,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    assert eventtrain.plugins
    assert torch._dynamo
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or SCENARIOS:
        start = time.monotonic()
        told = SCENARIOS[name](folder / name)
        (folder / f"{name}.json").write_text(json.dumps(told))
        print(name, f"{time.monotonic() - start:.1f} s", flush=True)
