"""A loader goes on behind the batches that were done, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset as TorchDataset, DistributedSampler, TensorDataset

from eventtrain import (
    CancellationToken,
    CheckpointError,
    DataBunch,
    Distributed,
    Learner,
    Runner,
    TensorLoader,
    load_checkpoint,
)
from eventtrain.callbacks import Checkpoint
from eventtrain.checkpoints.loader_form import common_form, form_differences, loader_form
from eventtrain.checkpoints.loader_place import Place, is_made_of_rows_alone, rest_of_loader
from eventtrain.checkpoints.loader_state import loader_state, set_loader_state
from eventtrain.data.global_order import GlobalBatchSampler
from eventtrain.data.sharding import set_epoch, shard_data, shares_of
from eventtrain.resuming import Resumption


def own() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def of_kind(kind: str, n: int, bs: int, shuffle: bool, drop_last: bool) -> Any:
    rows = torch.arange(n)
    if kind == "tensors":
        return TensorLoader(rows, bs=bs, shuffle=shuffle, drop_last=drop_last)
    if kind == "tensors, seed":
        return TensorLoader(rows, bs=bs, shuffle=shuffle, drop_last=drop_last, seed=5)
    if kind == "tensors, generator":
        return TensorLoader(rows, bs=bs, shuffle=shuffle, drop_last=drop_last, generator=own())
    data = TensorDataset(rows)
    if kind == "sampler":
        sampler = GlobalBatchSampler(data, bs, shuffle=shuffle, seed=5, drop_last=drop_last)
        return DataLoader(data, batch_sampler=sampler)
    drawn = own() if kind == "DataLoader, generator" else None
    return DataLoader(data, bs, shuffle=shuffle, drop_last=drop_last, generator=drawn)


KINDS = (
    *("tensors", "tensors, seed", "tensors, generator"),
    *("sampler", "DataLoader", "DataLoader, generator"),
)


def cut(make: Callable[[], Any], world: int, seed: int) -> list[Any]:
    """The loaders of all ranks of a run."""
    bunches = [DataBunch(make()) for _ in range(world)]
    for rank, data in enumerate(bunches):
        shard_data(data, rank, world, seed)
    return [data.train_dl for data in bunches]


def own_rows(batches: Iterator[Any], shares: Any, first: int) -> Iterator[list[int]]:
    for index, batch in enumerate(batches, first):
        rows = batch[0] if isinstance(batch, list) else batch
        yield rows.tolist() if shares.rows_of_share(index) else []


def whole(parts: list[list[int]]) -> list[int]:
    """A batch over all ranks, in the one order."""
    rows = [-1] * sum(map(len, parts))
    for rank, part in enumerate(parts):
        rows[rank :: len(parts)] = part
    return rows


def place(batch: int, order: Any, worlds: tuple[int, int], begun_at: int = 0) -> Place:
    return Place("train", batch, begun_at, order, None, worlds, "a checkpoint")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(
    n=st.integers(1, 30),
    bs=st.integers(1, 12),
    worlds=st.lists(st.sampled_from([1, 2, 3, 4]), min_size=2, max_size=4),
    cuts=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    epoch=st.integers(0, 2),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_each_sample_comes_once_in_one_order_however_often_the_number_of_processes_changes(
    kind: str,
    n: int,
    bs: int,
    worlds: list[int],
    cuts: list[int],
    epoch: int,
    shuffle: bool,
    drop_last: bool,
) -> None:
    if drop_last and n < bs:
        return

    def make() -> Any:
        return of_kind(kind, n, bs, shuffle, drop_last)

    (alone,) = cut(make, 1, seed=7)
    set_epoch(alone, epoch)
    expected = list(own_rows(iter(alone), shares_of(alone), 0))

    done: list[list[int]] = []
    start: dict[str, Any] | None = None
    before = 1
    for index, world in enumerate(worlds):
        # Its own seed is another one in each process: the checkpoint has that of the run.
        loaders = cut(make, world, seed=7 if start is None else 100 + index)
        parts = []
        for loader in loaders:
            set_epoch(loader, epoch)
            if start is None:
                state, rest = loader_state(loader), iter(loader)
            else:
                set_loader_state(loader, start)
                state, there = start, place(len(done), start["order"], (before, world))
                rest = rest_of_loader(loader, CancellationToken(), there)
            parts.append(own_rows(rest, shares_of(loader), len(done)))
        start, before = state, world
        for _, shares in zip(range(cuts[index]), zip(*parts, strict=True), strict=False):
            done.append(whole(list(shares)))
    assert done == expected[: len(done)]
    assert len(done) == min(len(expected), sum(cuts[: len(worlds)]))


@pytest.mark.parametrize("kind", KINDS)
def test_its_form_is_the_same_on_any_number_of_processes(kind: str) -> None:
    def make() -> Any:
        return of_kind(kind, 10, 4, True, False)

    forms = [loader_form(dl) for world in (1, 2, 4) for dl in cut(make, world, seed=world)]
    assert all(form == loader_form(make()) for form in forms)


@pytest.mark.parametrize(
    ("name", "value"), [("n", 11), ("bs", 5), ("shuffle", 0), ("drop_last", 1)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_another_loader_has_another_form_there_too(kind: str, name: str, value: int) -> None:
    options: dict[str, Any] = {"n": 10, "bs": 4, "shuffle": True, "drop_last": False}
    (one,) = cut(lambda: of_kind(kind, **options), 1, 7)
    options[name] = type(options[name])(value)
    other, _ = cut(lambda: of_kind(kind, **options), 2, 7)
    assert form_differences(loader_form(one), loader_form(other))


def test_what_cuts_for_itself_has_in_common_what_does_not_hang_on_the_rank() -> None:
    data = TensorDataset(torch.arange(10))

    def form(rank: int, world: int, **options: Any) -> Any:
        sampler = DistributedSampler(data, num_replicas=world, rank=rank, **options)
        return loader_form(DataLoader(data, 4 // world, sampler=sampler))

    one, other, alone = form(0, 2), form(1, 2), form(0, 1)
    assert common_form(one, is_same_world=True) == common_form(other, is_same_world=True)
    assert common_form(one, is_same_world=False) == common_form(alone, is_same_world=False)
    assert common_form(one, is_same_world=True) != common_form(alone, is_same_world=True)
    unshuffled = form(1, 2, shuffle=False)
    assert common_form(one, is_same_world=True) != common_form(unshuffled, is_same_world=True)


# On another number of processes


def test_a_loader_that_cuts_for_itself_is_refused_on_another_number() -> None:
    with pytest.raises(CheckpointError, match=r"2 processes.*one of one process.*cuts for itself"):
        rest_of_loader([1, 2], CancellationToken(), place(1, None, (2, 1)))


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 6), ("epoch", 2), ("samples", 11), ("batch_size", 3)]
)
def test_another_order_is_refused(name: str, value: int) -> None:
    loader = TensorLoader(torch.arange(10), bs=4, shuffle=True, seed=5)
    order = {**loader.order_form(), name: value}
    with pytest.raises(CheckpointError, match=rf"another order: {name}: {value} in the checkpoint"):
        rest_of_loader(loader, CancellationToken(), place(1, order, (2, 1)))
    assert loader.take_start() == 0


def test_another_state_of_a_generator_is_another_order() -> None:
    loader = TensorLoader(torch.arange(10), bs=4, shuffle=True, generator=own())
    order = loader.order_form()
    list(loader)
    with pytest.raises(CheckpointError, match="another order: generator"):
        rest_of_loader(loader, CancellationToken(), place(1, order, (2, 1)))


def test_an_order_that_nobody_noted_is_refused() -> None:
    loader = TensorLoader(torch.arange(10), bs=4)
    with pytest.raises(CheckpointError, match="an order of another kind"):
        rest_of_loader(loader, CancellationToken(), place(1, None, (2, 1)))


class Early:
    """Begins before it is iterated."""

    def __init__(self) -> None:
        self.inside = TensorLoader(torch.arange(12), bs=4)
        self.begun = iter(self.inside)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)

    def __iter__(self) -> Iterator[Any]:
        return self.begun


def test_a_wrapper_that_does_not_begin_where_it_is_told_is_refused() -> None:
    loader = Early()
    there = place(2, loader.order_form(), (2, 1))
    with pytest.raises(CheckpointError, match="began before it was asked"):
        rest_of_loader(loader, CancellationToken(), there)
    assert loader.inside.take_start() == 0


# What is loaded


class Counted(TorchDataset[Any]):
    """Rows with noise, and how many of them were loaded."""

    def __init__(self, n: int = 40) -> None:
        self.n, self.loaded = n, list[int]()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        self.loaded.append(index)
        return float(index) + torch.rand(())


def global_loader(data: Any, **options: Any) -> Any:
    return DataLoader(data, batch_sampler=GlobalBatchSampler(data, 4, seed=1), **options)


@pytest.mark.parametrize(("worlds", "rows"), [((2, 1), 4), ((1, 1), 36)])
def test_rows_that_may_draw_are_loaded_again_on_the_same_number_alone(
    worlds: tuple[int, int], rows: int
) -> None:
    data = Counted()
    loader = global_loader(data)
    order = loader_state(loader)["order"]
    rest = rest_of_loader(loader, CancellationToken(), place(9, order, worlds))
    assert len(data.loaded) == rows
    assert len(list(rest)) == 1


def test_it_is_known_of_plain_rows_that_nothing_is_drawn_for_them() -> None:
    rows = torch.arange(8)
    assert is_made_of_rows_alone(TensorLoader(rows))
    assert is_made_of_rows_alone(global_loader(TensorDataset(rows)))
    assert not is_made_of_rows_alone(global_loader(Counted(8)))
    assert not is_made_of_rows_alone(global_loader(TensorDataset(rows), collate_fn=list))
    assert not is_made_of_rows_alone(DataLoader(TensorDataset(rows), 4))
    assert not is_made_of_rows_alone([rows])


# In a run

ROWS, SIZE = 40, 4
X = torch.arange(float(ROWS)).unsqueeze(1)


class Noisy(Counted):
    def __getitem__(self, index: int) -> Any:
        return X[index] + torch.rand(1)


def noisy_in_workers() -> Any:
    return DataLoader(Noisy(ROWS), SIZE, shuffle=True, num_workers=1)


MAKES: dict[str, Callable[[], Any]] = {
    "tensors": lambda: TensorLoader(X, bs=SIZE, shuffle=True),
    "DataLoader": lambda: DataLoader(X, SIZE, shuffle=True),
    "noise": lambda: DataLoader(Noisy(ROWS), SIZE, shuffle=True),
    "noise in workers": noisy_in_workers,
}


def learner(make: Callable[[], Any]) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    opt = torch.optim.SGD(model.parameters(), lr=1e-3)
    valid = DataLoader(X, SIZE)
    return Learner(model, opt, lambda pred, y: pred.mean(), DataBunch(make(), valid))


def trained(
    learn: Learner, folder: Path, *, stop: tuple[str, int] | None = None, resume: Any = None
) -> list[float]:
    """Fit two epochs with ``Distributed``, or until so many batches of a phase are done."""
    seen: list[float] = []
    run = Runner([Distributed(), Checkpoint(folder)])

    @run.on("after_batch")
    def note(run: Runner) -> None:
        seen.extend(run.xb[:, 0].tolist())
        if (run.phase, run.batch_index) == stop:
            run.token.cancel("fit", "away")

    if isinstance(resume, Resumption):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("eventtrain.runner.find_start", lambda *arguments: resume)
            run.fit(2, learn, resume=folder)
    else:
        run.fit(2, learn, resume=resume)
    return seen


@pytest.mark.parametrize("stop", [("train", 3), ("validate", 3)])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_a_run_alone_goes_on_bit_for_bit_with_the_seed_of_the_run_that_was_interrupted(
    make: Callable[[], Any], stop: tuple[str, int], tmp_path: Path
) -> None:
    done = learner(make)
    rows = trained(done, tmp_path / "whole")
    before = trained(learner(make), tmp_path / "cut", stop=stop)
    learn = learner(make)
    torch.manual_seed(9)
    assert before + trained(learn, tmp_path / "cut", resume="auto") == rows
    for one, other in zip(done.model.parameters(), learn.model.parameters(), strict=True):
        assert torch.equal(one, other)


def as_of(world_size: int, folder: Path) -> Resumption:
    """A run to go on with, as if so many processes had saved it."""
    return Resumption({**load_checkpoint(folder), "world_size": world_size}, "a checkpoint")


@pytest.mark.parametrize("stop", [("train", 3), ("validate", 3)])
@pytest.mark.parametrize("kind", ["tensors", "DataLoader"])
def test_a_run_of_more_processes_goes_on_with_the_rows_that_are_left(
    kind: str, stop: tuple[str, int], tmp_path: Path
) -> None:
    make = MAKES[kind]
    rows = trained(learner(make), tmp_path / "whole")
    before = trained(learner(make), tmp_path / "cut", stop=stop)
    learn = learner(make)
    torch.manual_seed(9)
    assert before + trained(learn, tmp_path / "c", resume=as_of(2, tmp_path / "cut")) == rows


def test_noise_of_a_phase_that_went_on_elsewhere_is_made_again(tmp_path: Path) -> None:
    trained(learner(noisy_in_workers), tmp_path, stop=("train", 2))
    start, other = as_of(2, tmp_path), learner(noisy_in_workers)
    rows = trained(other, tmp_path / "whole", resume=start)
    before = trained(
        learner(noisy_in_workers), tmp_path / "cut", stop=("train", 6), resume=as_of(2, tmp_path)
    )
    after = trained(learner(noisy_in_workers), tmp_path / "cut", resume="auto")
    assert before + after == rows


@pytest.mark.parametrize("kind", MAKES)
def test_a_run_without_distributed_is_another_one_in_the_middle_of_a_phase(
    kind: str, tmp_path: Path
) -> None:
    trained(learner(MAKES[kind]), tmp_path, stop=("train", 3))
    run = Runner(Checkpoint(tmp_path))
    with pytest.raises(CheckpointError, match=r"another order: seed|order of another kind"):
        run.fit(2, learner(MAKES[kind]), resume="auto")


@pytest.mark.parametrize("kind", MAKES)
def test_so_is_a_run_with_it_after_one_without(kind: str, tmp_path: Path) -> None:
    run = Runner(Checkpoint(tmp_path))
    run.on("after_batch", lambda run: run.token.cancel("fit"), when=lambda run: run.n_iter == 4)
    run.fit(2, learner(MAKES[kind]))
    with pytest.raises(CheckpointError, match=r"another order: seed|order of another kind"):
        trained(learner(MAKES[kind]), tmp_path, resume="auto")


def test_rows_in_sequence_are_the_same_with_it_and_without(tmp_path: Path) -> None:
    def make() -> Any:
        return DataLoader(X, SIZE)

    before = trained(learner(make), tmp_path, stop=("train", 3))
    seen: list[float] = []
    run = Runner(Checkpoint(tmp_path))
    run.on("after_batch", lambda run: seen.extend(run.xb[:, 0].tolist()), during="train")
    run.fit(1, learner(make), resume="auto")
    assert before + seen == X[:, 0].tolist()


def test_between_epochs_a_loader_that_cuts_for_itself_goes_on_too(tmp_path: Path) -> None:
    def make() -> Any:
        return list(X.split(SIZE))

    trained(learner(make), tmp_path, stop=("train", 3))
    with pytest.raises(CheckpointError, match="cuts for itself"):
        trained(learner(make), tmp_path / "a", resume=as_of(2, tmp_path))
    run = Runner(Checkpoint(tmp_path / "b"))
    run.fit(1, learner(make))
    learn = learner(lambda: list(X.split(2 * SIZE)))
    assert len(trained(learn, tmp_path / "c", resume=as_of(2, tmp_path / "b"))) == 2 * ROWS
