"""Rows after a resume are those that would have come, whatever loads them, or it is refused."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from eventtrain import CheckpointError, DataBunch, Learner, Runner, TensorLoader
from eventtrain.callbacks import Checkpoint, LRFinder

# torch finds workers too many for a process that may use one core.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

ROWS, SIZE, EPOCHS = 24, 4, 3
BATCHES = ROWS // SIZE
X = torch.arange(float(ROWS)).unsqueeze(1)
DATA = TensorDataset(X)
Make = Callable[[], Any]


def own() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def loader(sampler: Any = None, data: Any = DATA, **options: Any) -> DataLoader[Any]:
    shuffle = sampler is None and not isinstance(data, IterableDataset)
    return DataLoader(
        data, options.pop("batch_size", SIZE), shuffle or None, sampler,
        collate_fn=first, **options,
    )  # fmt: skip


def first(rows: list[Any]) -> Tensor:
    return torch.stack([row[0] for row in rows])


class Buffered(IterableDataset[Any]):
    """Shuffles with a buffer, by a generator of its own that it keeps from epoch to epoch."""

    def __init__(self) -> None:
        self.chance = random.Random(0)

    def __iter__(self) -> Iterator[Any]:
        rows = list(X)
        self.chance.shuffle(rows)
        return ((row,) for row in rows)


class ByNumPy(Sampler[int]):
    def __init__(self) -> None:
        self.chance = numpy.random.default_rng(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.chance.permutation(ROWS).tolist())

    def __len__(self) -> int:
        return ROWS


class Turning(ByNumPy):
    def __init__(self) -> None:
        self.turn = 0

    def __iter__(self) -> Iterator[int]:
        self.turn += 5
        return iter([(index + self.turn) % ROWS for index in range(ROWS)])


class InBatches(BatchSampler):
    """A batch sampler of somebody's own, with a generator."""

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(super().__iter__())
        order = torch.randperm(len(batches), generator=self.generator)
        return iter([batches[index] for index in order])


def in_batches() -> DataLoader[Any]:
    sampler = InBatches(SequentialSampler(DATA), SIZE, False)
    sampler.generator = own()
    return DataLoader(DATA, batch_sampler=sampler, collate_fn=first)


WORKERS = {"num_workers": 1, "persistent_workers": True}
LOADERS: dict[str, Make] = {
    "tensors": lambda: TensorLoader(X, bs=SIZE, shuffle=True),
    "tensors, own": lambda: TensorLoader(X, bs=SIZE, shuffle=True, generator=own()),
    "list": lambda: list(X.split(SIZE)),
    "plain": lambda: loader(),
    "own": lambda: loader(generator=own()),
    "replacement": lambda: loader(RandomSampler(DATA, True, generator=own())),
    "replacement by seed": lambda: loader(RandomSampler(DATA, True)),
    "weighted": lambda: loader(WeightedRandomSampler([1.0] * ROWS, ROWS)),
    "weighted, own": lambda: loader(WeightedRandomSampler([1.0] * ROWS, ROWS, generator=own())),
    "subset": lambda: loader(SubsetRandomSampler(range(ROWS))),
    "numpy": lambda: loader(ByNumPy()),
    "counter": lambda: loader(Turning()),
    "batch sampler": in_batches,
    "stream": lambda: loader(data=Buffered()),
    "distributed": lambda: loader(DistributedSampler(DATA, num_replicas=1, rank=0)),
}
IN_WORKERS: dict[str, Make] = {
    "workers": lambda: loader(num_workers=2),
    "workers, own": lambda: loader(num_workers=1, generator=own()),
    "persistent": lambda: loader(num_workers=2, persistent_workers=True),
    "persistent, own": lambda: loader(**WORKERS, generator=own()),
    "persistent, replacement": lambda: loader(
        RandomSampler(DATA, True, generator=own()), **WORKERS
    ),
    "persistent, numpy": lambda: loader(ByNumPy(), **WORKERS),
}


class Killed(BaseException):
    """What ends a run as suddenly as can be done inside of a process."""


def learner(make: Make) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))  # it draws, too
    valid = loader(num_workers=0, generator=own())
    opt = torch.optim.SGD(model.parameters(), lr=1e-4)
    return Learner(model, opt, lambda pred, y: pred.mean(), DataBunch(make(), valid))


def rows_of(
    learn: Learner, folder: Path, *, kill_after: int | None = None, resume: bool = False
) -> list[tuple[str, float]]:
    """Train, and return the rows in the order in which they came."""
    seen: list[tuple[str, float]] = []
    left = [kill_after]
    run = Runner(Checkpoint(folder, every_steps=1))
    run.on("begin_batch", lambda run: seen.extend((run.phase, x) for x in run.xb[:, 0].tolist()))

    @run.on("begin_epoch")
    def set_epoch(run: Runner) -> None:
        sampler = getattr(run.data.train_dl, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(run.epoch)

    @run.on(["after_batch"], during="train", priority=-2000)
    def count(run: Runner) -> None:
        if kill_after is not None and run.n_iter == kill_after and run.outcome == "completed":
            raise Killed

    @run.on("after_epoch", priority=-2000)
    def at_the_end(run: Runner) -> None:
        if kill_after is not None and run.n_iter == -left[0]:  # type: ignore[operator]
            raise Killed

    if kill_after is not None:
        with pytest.raises(Killed):
            run.fit(EPOCHS, learn)
    else:
        run.fit(EPOCHS, learn, resume="auto" if resume else None)
    return seen


# In the first epoch, in the second, at the end of the first, of the second.
KILLS = [2, BATCHES + 3, -BATCHES, -2 * BATCHES]


def assert_goes_on(make: Make, kill: int, folder: Path) -> None:
    whole = rows_of(learner(make), folder / "whole")
    before = rows_of(learner(make), folder / "lost", kill_after=kill)
    learn = learner(make)
    torch.manual_seed(1)
    after = rows_of(learn, folder / "lost", resume=True)
    assert before + after == whole


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_the_rows_are_those_of_the_run_that_was_not_interrupted(
    make: Make, kill: int, tmp_path: Path
) -> None:
    assert_goes_on(make, kill, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [BATCHES + 3, -BATCHES])
@pytest.mark.parametrize("make", IN_WORKERS.values(), ids=IN_WORKERS)
def test_so_they_are_with_workers(make: Make, kill: int, tmp_path: Path) -> None:
    assert_goes_on(make, kill, tmp_path)


@pytest.mark.slow
def test_so_they_are_where_workers_are_spawned(tmp_path: Path) -> None:
    def make() -> Any:
        return loader(**WORKERS, multiprocessing_context="spawn")

    assert_goes_on(make, BATCHES + 3, tmp_path)


def peek(learn: Learner) -> None:
    next(iter(learn.data.train_dl))


def validate(learn: Learner) -> None:
    Runner().validate(learn)


def fit(learn: Learner) -> None:
    Runner().fit(1, learn)


def find_a_rate(learn: Learner) -> None:
    Runner(LRFinder(steps=5)).fit(1, learn)


USES = [peek, validate, fit, find_a_rate]
USED = {
    name: (LOADERS | IN_WORKERS)[name]
    for name in ("own", "persistent", "persistent, own", "numpy", "tensors")
}


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("make", USED.values(), ids=USED)
def test_a_loader_that_was_used_before_goes_on_as_it_was(
    make: Make, use: Callable[[Learner], None], tmp_path: Path
) -> None:
    def used() -> Learner:
        learn = learner(make)
        use(learn)
        return learn

    kill = BATCHES + 3
    whole = rows_of(used(), tmp_path / "whole")
    before = rows_of(used(), tmp_path / "lost", kill_after=kill)
    # Both a program that did the same before, and one that did not.
    for index, again in enumerate((used, lambda: learner(make))):
        folder = shutil.copytree(tmp_path / "lost", tmp_path / str(index))
        learn = again()
        learn.opt.param_groups[0]["lr"] = 1e-4
        assert before + rows_of(learn, folder, resume=True) == whole


@pytest.mark.parametrize("make", USED.values(), ids=USED)
def test_a_loader_that_was_used_gives_a_resumed_run_the_rows_of_one_that_was_not(
    make: Make, tmp_path: Path
) -> None:
    whole = rows_of(learner(make), tmp_path / "whole")
    before = rows_of(learner(make), tmp_path / "lost", kill_after=BATCHES + 3)
    learn = learner(make)
    peek(learn)
    validate(learn)
    assert before + rows_of(learn, tmp_path / "lost", resume=True) == whole


@pytest.mark.parametrize("make", USED.values(), ids=USED)
def test_a_range_test_before_changes_no_rows(make: Make, tmp_path: Path) -> None:
    learn = learner(make)
    find_a_rate(learn)
    assert rows_of(learn, tmp_path / "a") == rows_of(learner(make), tmp_path / "b")


# Refused


class Rows(Dataset[Any]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        return (X[index % ROWS],)


class Stream(IterableDataset[Any]):
    def __init__(self, n: int, first: int = 0) -> None:
        self.n, self.first = n, first

    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.tensor([float(i)]),) for i in range(self.first, self.n)])


OTHERS: dict[str, tuple[Make, Make, str]] = {
    "bs": (
        LOADERS["tensors"], lambda: TensorLoader(X, bs=8, shuffle=True),
        "batch_size: 4 in the checkpoint, 8 here",
    ),
    "batch_size": (
        lambda: loader(), lambda: loader(batch_size=8), "batch_size: 4 in the checkpoint, 8 here",
    ),
    "shuffle": (
        LOADERS["tensors"], lambda: TensorLoader(X, bs=SIZE), "shuffle: True in the .* False here",
    ),
    "sampler": (
        lambda: loader(), lambda: loader(SequentialSampler(DATA)),
        "kind of .*sampler: 'RandomSampler' in the checkpoint, 'SequentialSampler' here",
    ),
    "rows": (
        lambda: loader(data=Rows(24)), lambda: loader(data=Rows(23)),
        "length of dataset: 24 in the checkpoint, 23 here",
    ),
    "drop_last": (
        lambda: loader(data=Rows(26)), lambda: loader(data=Rows(26), drop_last=True),
        "drop_last: False in the checkpoint, True here",
    ),
    "draws": (
        lambda: loader(RandomSampler(DATA, num_samples=24)),
        lambda: loader(RandomSampler(DATA, num_samples=20)),
        "num_samples: 24 in the checkpoint, 20 here",
    ),
    "replacement": (
        lambda: loader(RandomSampler(DATA)), lambda: loader(RandomSampler(DATA, True)),
        "replacement: False in the checkpoint, True here",
    ),
    "persistent": (
        IN_WORKERS["workers"], IN_WORKERS["persistent"], "persistent_workers: False .* True here",
    ),
    "generator": (
        LOADERS["own"], LOADERS["plain"], "generator: 'its own' in the checkpoint, None here",
    ),
    "kind": (
        LOADERS["tensors"], LOADERS["list"], "kind: 'TensorLoader' in the checkpoint, 'list' here",
    ),
    "sizes": (
        LOADERS["list"], lambda: list(X.split([4, 3, 5, 4, 4, 4])),
        "rows of batch 1: 4 in the checkpoint, 3 here",
    ),
    "fewer": (
        LOADERS["list"], lambda: list(X.split(SIZE))[:5], "batches: 6 in the checkpoint, 5 here",
    ),
    "stream's workers": (
        lambda: loader(data=Stream(24)), lambda: loader(data=Stream(24), num_workers=1),
        "num_workers: 0 in the checkpoint, 1 here",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kill", [2, -BATCHES])
@pytest.mark.parametrize(("saved", "other", "text"), OTHERS.values(), ids=OTHERS)
def test_another_loader_is_refused_before_anything_is_changed(
    saved: Make, other: Make, text: str, kill: int, tmp_path: Path
) -> None:
    n = kill if kill > 0 else -len(list(learner(saved).data.train_dl))
    rows_of(learner(saved), tmp_path, kill_after=n)
    learn = learner(other)
    before = torch.get_rng_state()
    with pytest.raises(CheckpointError, match=f"another train loader.*{text}.*Resume with the"):
        rows_of(learn, tmp_path, resume=True)
    assert torch.equal(torch.get_rng_state(), before)
    for one, same in zip(learn.model.parameters(), learner(other).model.parameters(), strict=True):
        assert torch.equal(one, same)


OTHER_DATA: dict[str, tuple[Make, Make]] = {
    "tensors": (LOADERS["tensors"], lambda: TensorLoader(X + 1, bs=SIZE, shuffle=True)),
    "list": (LOADERS["list"], lambda: [batch + 1 for batch in X.split(SIZE)]),
    "stream": (
        lambda: loader(data=Stream(24)), lambda: loader(data=Stream(28, 4)),
    ),
    "hidden": (lambda: Hidden(0), lambda: Hidden(1)),
}  # fmt: skip


class Hidden:
    """Its length is unknown, and so is its order."""

    def __init__(self, seed: int) -> None:
        self.rows = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(X[self.rows].split(SIZE))


@pytest.mark.parametrize(("saved", "other"), OTHER_DATA.values(), ids=OTHER_DATA)
def test_other_rows_in_the_place_of_those_that_were_done_are_refused(
    saved: Make, other: Make, tmp_path: Path
) -> None:
    rows_of(learner(saved), tmp_path, kill_after=2)
    learn = learner(other)
    with pytest.raises(CheckpointError, match=r"after 2 batches .* is now another batch"):
        rows_of(learn, tmp_path, resume=True)


def test_batches_in_the_order_of_who_is_faster_are_refused_within_an_epoch(tmp_path: Path) -> None:
    def make() -> Any:
        return loader(num_workers=2, in_order=False)

    rows_of(learner(make), tmp_path / "a", kill_after=2)
    with pytest.raises(CheckpointError, match="in_order=False"):
        rows_of(learner(make), tmp_path / "a", resume=True)
    rows_of(learner(make), tmp_path / "b", kill_after=-BATCHES)
    assert len(rows_of(learner(make), tmp_path / "b", resume=True)) == 2 * 2 * ROWS


def test_the_validation_loader_may_be_another(tmp_path: Path) -> None:
    rows_of(learner(LOADERS["own"]), tmp_path, kill_after=2)
    learn = learner(LOADERS["own"])
    learn.data.valid_dl = TensorLoader(X, bs=8)
    rows_of(learn, tmp_path, resume=True)


@pytest.mark.parametrize("other", [lambda: None, lambda: TensorLoader(X, bs=8)])
def test_it_may_not_in_the_middle_of_a_validation(other: Make, tmp_path: Path) -> None:
    def in_validation(run: Runner) -> None:
        if run.phase == "validate":
            run.token.cancel("fit", "away")

    run = Runner(Checkpoint(tmp_path))
    run.on("after_batch", in_validation)
    run.fit(EPOCHS, learner(LOADERS["own"]))
    learn = learner(LOADERS["own"])
    learn.data.valid_dl = other()
    with pytest.raises(CheckpointError, match="validat"):
        rows_of(learn, tmp_path, resume=True)


def test_rows_that_are_changed_in_place_are_no_other_rows(tmp_path: Path) -> None:
    def change(run: Runner) -> None:
        run.xb.mul_(0.5)

    for resume, epochs in ((None, 1), ("auto", 2)):
        learn = learner(LOADERS["plain"])
        run = Runner(Checkpoint(tmp_path))
        run.on("begin_batch", change)
        if resume is None:
            run.on("after_batch", lambda run: run.token.cancel("fit", "away"), once=True)
        run.fit(epochs, learn, resume=resume)
    assert run.result is not None and run.result.outcome == "completed"


class Noise:
    """Draws for every batch, in the process that trains."""

    def __init__(self, labels: bool) -> None:
        self.labels = labels

    def __call__(self, rows: list[Any]) -> Any:
        x = torch.stack([row[0] for row in rows])
        noisy = x + torch.rand(())
        return (noisy, x) if self.labels else noisy


def noisy(labels: bool) -> Make:
    return lambda: DataLoader(DATA, SIZE, shuffle=True, collate_fn=Noise(labels))


@pytest.mark.parametrize("labels", [True, False])
def test_noise_of_this_process_is_no_sign_of_other_rows(labels: bool, tmp_path: Path) -> None:
    assert_goes_on(noisy(labels), 3, tmp_path)


class NoisyStream(IterableDataset[Any]):
    def __init__(self, labels: bool) -> None:
        self.labels = labels

    def __iter__(self) -> Iterator[Any]:
        for row in X:
            yield (row + torch.rand(()), row) if self.labels else row + torch.rand(())


def test_labels_tell_that_rows_are_the_same(tmp_path: Path) -> None:
    assert_goes_on(lambda: DataLoader(NoisyStream(labels=True), SIZE), 3, tmp_path)


class Lazy(Sampler[int]):
    """Draws each row when it is asked for it, from the generator that the model draws from."""

    def __iter__(self) -> Iterator[int]:
        left = list(range(ROWS))
        while left:
            yield left.pop(int(torch.randint(len(left), ())))

    def __len__(self) -> int:
        return ROWS


@pytest.mark.parametrize(
    "make", [lambda: DataLoader(NoisyStream(labels=False), SIZE), lambda: loader(Lazy())]
)
def test_what_cannot_be_told_from_other_rows_is_refused(make: Make, tmp_path: Path) -> None:
    rows_of(learner(make), tmp_path, kill_after=3)
    with pytest.raises(CheckpointError, match=r"another batch.*draw them from a generator"):
        rows_of(learner(make), tmp_path, resume=True)


class NoisyRows(Dataset[Any]):
    """Draws for every row, where it is made."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> Any:
        return (X[index] + torch.rand(1),)


@pytest.mark.parametrize("kill", [3, -BATCHES])
def test_noise_of_workers_goes_on(kill: int, tmp_path: Path) -> None:
    assert_goes_on(lambda: loader(data=NoisyRows(), num_workers=1), kill, tmp_path)


def test_noise_of_workers_that_ran_before_the_epoch_is_refused_in_the_middle_of_it(
    tmp_path: Path,
) -> None:
    def make() -> Any:
        return loader(data=NoisyRows(), **WORKERS)

    rows_of(learner(make), tmp_path, kill_after=BATCHES + 3)
    with pytest.raises(CheckpointError, match=r"another batch.*in workers that are not persistent"):
        rows_of(learner(make), tmp_path, resume=True)


def test_the_number_of_workers_may_change_where_rows_do_not_hang_on_it(tmp_path: Path) -> None:
    whole = rows_of(learner(LOADERS["plain"]), tmp_path / "whole")
    before = rows_of(learner(LOADERS["plain"]), tmp_path / "lost", kill_after=BATCHES + 3)
    after = rows_of(learner(lambda: loader(num_workers=2)), tmp_path / "lost", resume=True)
    assert before + after == whole


class Wrapped:
    """What a handler puts in the place of a loader for a phase."""

    def __init__(self, loader: Any) -> None:
        self.inside = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.inside)


def test_a_loader_that_handlers_wrap_is_the_one_that_it_was_before(tmp_path: Path) -> None:
    def fit(epochs: int, resume: str | None) -> None:
        run, learn = Runner(Checkpoint(tmp_path)), learner(LOADERS["own"])

        @run.on("begin_train")
        def wrap(run: Runner) -> None:
            run.data.train_dl = Wrapped(run.data.train_dl)

        @run.on("after_train")
        def unwrap(run: Runner) -> None:
            run.data.train_dl = run.data.train_dl.inside

        if resume is None:
            run.on("after_batch", lambda run: run.token.cancel("fit", "away"),
                   when=lambda run: run.n_iter == 2)  # fmt: skip
        run.fit(epochs, learn, resume=resume)

    fit(2, None)
    fit(2, "auto")
    fit(3, "auto")
