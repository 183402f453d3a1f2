"""Loaders in front of loaders: the same batches, the same length, and put back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from eventtrain import DataBunch, DataError, EmptyLoaderError, Learner, Runner, TensorLoader
from eventtrain.callbacks import Checkpoint, ToDevice
from eventtrain.callbacks.to_device import _pinned

Make = Callable[..., Learner]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Watched:
    """A loader of unknown length that tells when its iterators are closed."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.closed = 0

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.batches
        finally:
            self.closed += 1


def test_the_run_gets_the_same_batches(learner: Learner) -> None:
    expected = [*learner.data.train_dl, *learner.data.valid_dl]
    run = Runner(ToDevice())
    seen: list[Any] = []
    run.on("begin_batch", lambda run: seen.append((run.xb, run.yb)))
    run.fit(1, learner)
    assert len(seen) == len(expected) == 5
    for (xb, yb), (x, y) in zip(seen, expected, strict=True):
        assert torch.equal(xb, x) and torch.equal(yb, y)


def test_the_weights_are_those_of_a_fit_without_it(make_learner: Make) -> None:
    plain, ahead = make_learner(), make_learner()
    Runner().fit(2, plain)
    Runner(ToDevice()).fit(2, ahead)
    assert torch.equal(plain.model.weight, ahead.model.weight)


def test_loaders_are_replaced_for_their_phase_only(learner: Learner) -> None:
    data = learner.data
    originals = data.train_dl, data.valid_dl
    run = Runner(ToDevice())
    replaced: list[tuple[str, bool, bool]] = []
    for event in ("begin_epoch", "begin_batch", "after_train", "after_validate"):

        def look(run: Runner, event: str = event) -> None:
            now = data.train_dl is not originals[0], data.valid_dl is not originals[1]
            replaced.append((event if event != "begin_batch" else str(run.phase), *now))

        run.on(event, look)
    run.fit(1, learner)
    assert set(replaced) == {
        ("begin_epoch", False, False),
        ("train", True, False),
        ("after_train", False, False),
        ("validate", False, True),
        ("after_validate", False, False),
    }


@pytest.mark.parametrize("phase", ["train", "validate"])
@pytest.mark.parametrize("ending", ["cancel", "fail"])
def test_loaders_come_back_and_are_closed_however_the_phase_ends(
    learner: Learner, phase: str, ending: str
) -> None:
    train, valid = Watched(list(learner.data.train_dl)), Watched(list(learner.data.valid_dl))
    learner.data = DataBunch(train, valid)
    run = Runner(ToDevice())
    closed: list[int] = []
    run.on(
        f"after_{phase}",
        lambda run: closed.append({"train": train, "validate": valid}[phase].closed),
    )

    @run.on("after_pred", during=phase)
    def end(run: Runner) -> None:
        if ending == "fail":
            raise OSError("disk")
        run.token.cancel(phase)

    if ending == "fail":
        with pytest.raises(OSError, match="disk"):
            run.fit(1, learner)
    else:
        run.fit(1, learner)
    assert (learner.data.train_dl, learner.data.valid_dl) == (train, valid)
    assert closed == [1]


def test_a_loader_that_is_set_during_a_phase_stays(make_learner: Make) -> None:
    learner, later = make_learner(), list(make_learner(train=5).data.train_dl)
    first = learner.data.train_dl = Watched(list(learner.data.train_dl))
    run = Runner(ToDevice())
    run.on("after_batch", lambda run: setattr(run.data, "train_dl", later), during="train")
    assert run.fit(2, learner).steps == 3 + 5
    assert learner.data.train_dl is later
    assert first.closed == 1


def test_the_length_is_kept_where_there_is_one(learner: Learner) -> None:
    run = Runner(ToDevice())
    lengths: list[int | None] = []
    run.on("begin_batch", lambda run: lengths.append(run.iters))
    run.on("begin_batch", lambda run: lengths.append(len(run.data.train_dl)), during="train")
    run.fit(1, learner)
    assert lengths == [3, 3] * 3 + [2, 2]


def test_a_loader_of_unknown_length_stays_one(learner: Learner) -> None:
    learner.data.train_dl = Watched(list(learner.data.train_dl))
    run = Runner(ToDevice())
    sized: list[bool] = []
    run.on("begin_batch", lambda run: sized.append(hasattr(run.data.train_dl, "__len__")))
    assert run.fit(1, learner).steps == 3
    assert not any(sized)


def test_what_the_loader_has_can_be_reached(learner: Learner) -> None:
    run = Runner(ToDevice())
    sets: list[Any] = []
    run.on("begin_batch", lambda run: sets.append(run.data.train_ds), during="train")
    run.fit(1, learner)
    assert sets[0] is learner.data.train_ds


def test_the_order_of_a_shuffled_loader_is_the_same(make_learner: Make) -> None:
    def shuffled(cbs: list[Any]) -> torch.Tensor:
        learner = make_learner()
        ds = learner.data.train_ds
        learner.data.train_dl = DataLoader(TensorDataset(ds.x, ds.y), batch_size=4, shuffle=True)
        torch.manual_seed(3)
        Runner(cbs).fit(2, learner)
        return learner.model.weight

    assert torch.equal(shuffled([]), shuffled([ToDevice()]))


def test_worker_processes_are_fine(make_learner: Make) -> None:
    learner = make_learner()
    ds = learner.data.train_ds
    learner.data.train_dl = DataLoader(TensorDataset(ds.x, ds.y), batch_size=4, num_workers=1)
    assert Runner(ToDevice()).fit(1, learner).steps == 3


def test_an_empty_loader_is_still_an_error(learner: Learner) -> None:
    learner.data.train_dl = []
    with pytest.raises(EmptyLoaderError):
        Runner(ToDevice()).fit(1, learner)
    assert learner.data.train_dl == []


def test_a_loader_that_ends_before_its_length_is_still_an_error(learner: Learner) -> None:
    class Broken(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            if index == 6:
                raise StopIteration
            return super().__getitem__(index)

    ds = learner.data.train_ds
    learner.data.train_dl = DataLoader(Broken(ds.x, ds.y), batch_size=4)
    with pytest.raises(DataError, match="ended after 1 of 3 batches"):
        Runner(ToDevice()).fit(1, learner)


def test_a_fit_can_be_resumed_in_the_middle_of_an_epoch(make_learner: Make, tmp_path: Path) -> None:
    def shuffled() -> Learner:
        learner = make_learner()
        ds, generator = learner.data.train_ds, torch.Generator().manual_seed(5)
        learner.data.train_dl = TensorLoader(ds.x, ds.y, 4, shuffle=True, generator=generator)
        return learner

    whole = shuffled()
    Runner(ToDevice()).fit(2, whole)
    first = Runner([ToDevice(), Checkpoint(tmp_path)])
    first.on("after_batch", lambda run: run.token.cancel("fit") if run.n_iter == 4 else None)
    first.fit(2, shuffled())
    learner = shuffled()
    Runner([ToDevice(), Checkpoint(tmp_path)]).fit(2, learner, resume="auto")
    assert torch.equal(learner.model.weight, whole.model.weight)


def test_validation_prediction_and_no_epochs_are_fine(make_learner: Make) -> None:
    run, learner = Runner(ToDevice()), make_learner(valid=0)
    assert run.fit(0, learner).outcome == "completed"
    assert run.fit(1, learner).outcome == "completed"
    assert run.validate(make_learner()).outcome == "completed"
    assert len(run.predict(learner, learner.data.train_dl)) == 12


@pytest.mark.parametrize(("prefetch", "error"), [(0, ValueError), (1.5, TypeError)])
def test_bad_arguments_are_refused(prefetch: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="prefetch"):
        ToDevice(prefetch=prefetch)


@CUDA
@pytest.mark.parametrize("prefetch", [1, 2, 9])
def test_on_cuda_the_same_batches_arrive_on_the_device(make_learner: Make, prefetch: int) -> None:
    learner = make_learner(train=7)
    learner.model.cuda()
    expected = list(learner.data.train_dl)
    run = Runner(ToDevice(prefetch=prefetch))
    seen: list[Any] = []
    run.on("begin_batch", lambda run: seen.append((run.xb, run.yb)), during="train")
    run.fit(1, learner)
    assert len(seen) == 7
    for (xb, yb), (x, y) in zip(seen, expected, strict=True):
        assert xb.is_cuda and torch.equal(xb.cpu(), x) and torch.equal(yb.cpu(), y)


@CUDA
def test_on_cuda_the_loader_is_closed_after_a_cancellation(learner: Learner) -> None:
    learner.model.cuda()
    train = learner.data.train_dl = Watched(list(learner.data.train_dl))
    run = Runner(ToDevice())
    run.on("after_pred", lambda run: run.token.cancel("train"), during="train")
    run.fit(1, learner)
    assert learner.data.train_dl is train
    assert train.closed == 1


class Streams:
    """Stands in for CUDA: two streams that only write down what is queued on them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queued: list[str] = []
        self.name = "compute"
        self.made = 0
        fakes = {"Stream": self.make, "stream": self.on}
        fakes["current_stream"] = lambda device: Stream(self, self.name)
        for name, fake in fakes.items():
            monkeypatch.setattr(f"torch.cuda.{name}", fake)
        module = "eventtrain.callbacks.to_device"
        monkeypatch.setattr(f"{module}._pinned", lambda batch: batch)
        monkeypatch.setattr(f"{module}.model_device", lambda model: torch.device("cuda"))
        monkeypatch.setattr(f"{module}.move_to", self.copy)

    def make(self, device: torch.device) -> Stream:
        self.made += 1
        return Stream(self, "side")

    def copy(self, batch: Any, device: torch.device) -> Any:
        copies = sum(line.startswith("side copies") for line in self.queued)
        self.queued.append(f"{self.name} copies {copies}")
        return batch

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        self.name = stream.name
        yield
        self.name = "compute"


class Stream:
    """Writes down what is queued on it; an event is the number of lines before it."""

    def __init__(self, streams: Streams, name: str) -> None:
        self.streams, self.name = streams, name

    def wait_stream(self, other: Stream) -> None:
        self.streams.queued.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> str:
        return self.streams.queued[-1]

    def wait_event(self, event: str) -> None:
        self.streams.queued.append(f"{self.name} waits until {event}")


def test_a_copy_waits_for_what_used_its_memory_and_a_batch_for_its_copy(
    make_learner: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, learner = Streams(monkeypatch), make_learner(train=4, valid=0)
    run = Runner(ToDevice(prefetch=2))
    run.on("begin_batch", lambda run: streams.queued.append(f"batch {run.batch_index}"))
    run.fit(1, learner)
    wait = "side waits for compute"
    until = "compute waits until side copies"
    assert streams.queued == [
        *(wait, "side copies 0", wait, "side copies 1"),
        *(f"{until} 0", wait, "side copies 2", "batch 0"),
        *(f"{until} 1", wait, "side copies 3", "batch 1"),
        *(f"{until} 2", "batch 2"),
        *(f"{until} 3", "batch 3"),
    ]


def test_all_epochs_and_phases_copy_on_one_stream(
    make_learner: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The allocator does not give memory of one stream to another: each would hold batches.
    streams, run = Streams(monkeypatch), Runner(ToDevice())
    run.fit(3, make_learner())
    run.fit(1, make_learner())
    assert streams.made == 1


class Parcel:
    """A batch of somebody's own class, as libraries for text and for graphs have."""

    def __init__(self, xb: torch.Tensor) -> None:
        self.xb = xb

    def to(self, device: Any, non_blocking: bool = False) -> Parcel:
        return Parcel(self.xb.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Parcel:
        return Parcel(self.xb.pin_memory())


class Pinnable:
    """Pins itself, on a machine without a device too."""

    is_pinned = False

    def pin_memory(self) -> Pinnable:
        pinned = Pinnable()
        pinned.is_pinned = True
        return pinned


class Fields(dict[str, Any]):
    """A batch that names its input."""

    @property
    def x(self) -> Any:
        return self["x"]


class Pair(NamedTuple):
    x: Any
    y: Any


class Named(list[Any]):
    """A list with a name."""

    name = "none"


def test_pinned_batches_keep_their_types() -> None:
    parts = Named([Pinnable()])
    parts.name = "cats"
    batch = Fields(x=Pinnable(), pair=Pair(Pinnable(), "text"), parts=parts)
    pinned = _pinned(batch)
    pair, pinned_parts = pinned["pair"], pinned["parts"]
    assert pinned.x.is_pinned and pair.x.is_pinned and pinned_parts[0].is_pinned
    assert (pair.y, pinned_parts.name) == ("text", "cats")
    assert not batch.x.is_pinned and not parts[0].is_pinned


@CUDA
def test_on_cuda_batches_keep_their_types(learner: Learner) -> None:
    learner.model.cuda()
    batches = [(Fields(x=x), y) for x, y in learner.data.train_dl]
    learner.data = DataBunch(batches)
    forward = learner.model.forward
    learner.model.forward = lambda batch: forward(batch.x)
    assert Runner(ToDevice()).fit(1, learner).steps == 3


class Mean(nn.Linear):
    """Takes its time, so that the host runs ahead, and then the mean of a parcel."""

    def forward(self, parcel: Any) -> torch.Tensor:
        torch.cuda._sleep(2_000_000)
        return self.bias.sum() * 0 + parcel.xb.mean()


@CUDA
def test_on_cuda_batches_of_somebodys_own_class_are_not_overwritten() -> None:
    parcels = [Parcel(torch.full((1 << 18, 16), float(index))) for index in range(40)]
    model = Mean(16, 1).cuda()
    opt = torch.optim.SGD(model.parameters(), lr=0.0)
    run = Runner(ToDevice())
    means: list[torch.Tensor] = []
    run.on("after_loss", lambda run: means.append(run.loss.detach()))
    run.fit(1, Learner(model, opt, lambda pred, parcel: pred, DataBunch(parcels)))
    assert torch.stack(means).tolist() == pytest.approx(range(40), abs=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_told(learner: Learner) -> None:
    with pytest.raises(RuntimeError, match="which torch cannot use: leave device= out"):
        Runner(ToDevice("cuda")).fit(1, learner)
