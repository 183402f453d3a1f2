"""Snapshots: everything that the rest of a run depends on, also what is seldom there."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset

from eventtrain import (
    AvgStatsCallback,
    Callback,
    CheckpointError,
    DataBunch,
    Learner,
    Runner,
    TensorLoader,
    load_checkpoint,
)
from eventtrain.callbacks import Checkpoint, GradientAccumulation

Make = Callable[[], Learner]


class Lost(BaseException):
    """What ends a run as suddenly as can be done inside of a process."""


def learner(
    model: Callable[[], nn.Module] = lambda: nn.Linear(5, 3),
    opt: Callable[..., Any] = torch.optim.SGD,
    loss: Any = cross_entropy,
    dtype: torch.dtype = torch.float32,
) -> Learner:
    """Five batches of four an epoch."""
    torch.manual_seed(0)
    x, y = torch.randn(20, 5, dtype=dtype), torch.randint(0, 3, (20,))
    net = model().to(dtype)
    parameters = [*net.parameters(), *(loss.parameters() if isinstance(loss, nn.Module) else ())]
    data = DataBunch(TensorLoader(x, y, bs=4, shuffle=True))
    return Learner(net, opt(parameters, lr=0.1), loss, data)


def lose(folder: Path, make: Make, *callbacks: Callback, at: int = 8, **options: Any) -> None:
    """Train with a checkpoint a batch, until everything is lost after ``at`` batches."""
    saving = Checkpoint(folder, every_seconds=1e-9, **options)
    run, left = Runner([*callbacks, saving]), [at]

    def count(run: Runner) -> None:
        left[0] -= 1
        if not left[0]:
            raise Lost

    run.on("after_batch", count, priority=-2000)
    with contextlib.suppress(Lost):
        run.fit(3, make())
    assert not left[0]


def resume(folder: Path, make: Make, *callbacks: Callback) -> Learner:
    learn = make()
    torch.manual_seed(1)
    Runner([*callbacks, Checkpoint(folder)]).fit(3, learn, resume="auto")
    return learn


def assert_resumes(folder: Path, make: Make, *, at: int = 8, **options: Any) -> None:
    """See that a run that was lost ends with the weights of one that was not."""
    lose(folder, make, at=at, **options)
    assert_same(resume(folder, make), whole(make))


def whole(make: Make, *callbacks: Callback) -> Learner:
    learn = make()
    Runner(callbacks).fit(3, learn)
    return learn


def assert_same(one: Learner, other: Learner) -> None:
    for first, second in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(first, second)


class Weighted(nn.Module):
    """A loss function with a parameter that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(pred * self.weight, target)


def test_gradients_of_the_loss_function_that_wait_for_a_step_are_kept(tmp_path: Path) -> None:
    def make() -> Learner:
        return learner(loss=Weighted())

    lose(tmp_path, make, GradientAccumulation(3), at=7)
    found = resume(tmp_path, make, GradientAccumulation(3))
    assert_same(found, whole(make, GradientAccumulation(3)))


@pytest.mark.parametrize("opt", [torch.optim.NAdam, torch.optim.ASGD])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_optimizer_state_keeps_its_type(opt: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    def make() -> Learner:
        return learner(opt=opt, dtype=dtype)

    lose(tmp_path, make)
    found, expected = resume(tmp_path, make), whole(make)
    assert_same(found, expected)
    for one, other in zip(found.opt.state.values(), expected.opt.state.values(), strict=True):
        assert {k: v.dtype for k, v in one.items() if isinstance(v, Tensor)} == {
            k: v.dtype for k, v in other.items() if isinstance(v, Tensor)
        }


def test_a_rate_that_is_a_tensor_stays_that_tensor(tmp_path: Path) -> None:
    """Where it is on a GPU the one that was read is not, and captured steps read the first."""
    rates: list[Tensor] = []

    def adam(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        rates.append(torch.tensor(lr))
        return torch.optim.Adam(parameters, lr=rates[-1], foreach=False)

    def make() -> Learner:
        return learner(opt=adam)

    def halve(run: Runner) -> None:
        run.opt.param_groups[0]["lr"].mul_(0.5)

    def fit(saving: Checkpoint, epochs: int, resume: str | None = None) -> Learner:
        learn, run = make(), Runner(saving)
        run.on("begin_epoch", halve)
        run.fit(epochs, learn, resume=resume)
        return learn

    fit(Checkpoint(tmp_path), 2)
    found = fit(Checkpoint(tmp_path), 3, resume="auto")
    assert found.opt.param_groups[0]["lr"] is rates[-1]
    assert rates[-1].item() == pytest.approx(0.1 / 8)
    assert_same(found, fit(Checkpoint(tmp_path / "whole"), 3))


class Counting(nn.Linear):
    """Depends on a buffer that its state dictionary leaves out."""

    def __init__(self) -> None:
        super().__init__(5, 3)
        self.register_buffer("count", torch.zeros(()), persistent=False)
        self.register_buffer("mean", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.mean = x.mean(0) if self.mean is None else (self.mean + x.mean(0)) / 2
        return super().forward(x - self.mean) * (1 + 0.01 * self.count)


def test_buffers_that_are_not_persistent_are_kept(tmp_path: Path) -> None:
    assert_resumes(tmp_path, lambda: learner(Counting))


class Migrating(nn.Linear):
    """Doubles the weights of files of its first version."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, meta: Any, *more: Any) -> None:
        if (meta.get("version") or 1) < 2:
            state[prefix + "weight"] = state[prefix + "weight"] * 2
        super()._load_from_state_dict(state, prefix, meta, *more)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_version_of_a_module_is_kept(asynchronous: bool, tmp_path: Path) -> None:
    assert_resumes(tmp_path, lambda: learner(lambda: Migrating(5, 3)), asynchronous=asynchronous)
    found = Migrating(5, 3)
    found.load_state_dict(load_checkpoint(tmp_path)["model"])
    assert torch.equal(found.weight, whole(lambda: learner(lambda: Migrating(5, 3))).model.weight)


def test_a_lazy_module_resumes(tmp_path: Path) -> None:
    assert_resumes(tmp_path, lambda: learner(lambda: nn.LazyLinear(3)))


class Growing(nn.Linear):
    """Its extra state is a tensor that grows."""

    seen = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.cat([self.seen, x.detach().mean().view(1)])
        return super().forward(x) + self.seen.mean()

    def get_extra_state(self) -> Any:
        return self.seen

    def set_extra_state(self, state: Any) -> None:
        self.seen = state


def test_extra_state_may_change_its_shape(tmp_path: Path) -> None:
    assert_resumes(tmp_path, lambda: learner(lambda: Growing(5, 3)))


class Foreign(nn.Linear):
    """Its extra state could not be read again."""

    def get_extra_state(self) -> Any:
        return {"n": numpy.zeros(3)}

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError


def test_extra_state_that_could_not_be_read_again_is_refused_when_it_is_saved(
    tmp_path: Path,
) -> None:
    with pytest.raises(CheckpointError, match=r"model\['_extra_state'\]\['n'\] is array"):
        Runner(Checkpoint(tmp_path)).fit(1, learner(lambda: Foreign(5, 3)))
    assert list(tmp_path.iterdir()) == []


def test_metrics_in_numbers_of_numpy_are_kept(tmp_path: Path) -> None:
    def share(pred: Tensor, target: Tensor) -> Any:
        return numpy.mean((pred.argmax(1) == target).numpy())

    def averages() -> Callback:
        return AvgStatsCallback(share, report=None)

    lose(tmp_path, learner, averages())
    assert_same(resume(tmp_path, learner, averages()), whole(learner, averages()))


def test_a_fit_that_ends_before_the_checkpoint_is_refused(tmp_path: Path) -> None:
    lose(tmp_path, learner, at=8)
    learn = learner()
    before = {name: value.clone() for name, value in learn.model.state_dict().items()}
    run = Runner(Checkpoint(tmp_path))
    run.on("begin_fit", lambda run: pytest.fail("it has begun"))
    with pytest.raises(CheckpointError, match=r"taken in epoch 1.* ask for 2 or more"):
        run.fit(1, learn, resume="auto")
    assert all(torch.equal(value, before[n]) for n, value in learn.model.state_dict().items())


def refused(folder: Path, learn: Learner, text: str, *callbacks: Callback) -> None:
    """See that a fit is refused before it begins, and that the learner is as it was."""
    model = {name: value.clone() for name, value in learn.model.state_dict().items()}
    opt = copy.deepcopy(learn.opt.state_dict())
    run = Runner([*callbacks, Checkpoint(folder)])
    run.on("begin_fit", lambda run: pytest.fail("it has begun"))
    with pytest.raises(CheckpointError, match=text):
        run.fit(3, learn, resume="auto")
    assert all(torch.equal(value, model[n]) for n, value in learn.model.state_dict().items())
    assert learn.opt.state_dict() == opt


@pytest.mark.parametrize(
    ("saved", "other"),
    [
        (torch.optim.Adam, torch.optim.SGD),
        (torch.optim.SGD, torch.optim.Adam),
        (torch.optim.Adam, torch.optim.Adamax),  # whose groups have the same fields
    ],
)
def test_the_state_of_another_optimizer_is_refused_before_anything_is_changed(
    saved: Any, other: Any, tmp_path: Path
) -> None:
    lose(tmp_path, lambda: learner(opt=saved))
    text = rf"is of another optimizer: {saved.__name__}, and this run has {other.__name__}"
    refused(tmp_path, learner(opt=other), text)


def one_group_each(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [parameter]} for parameter in parameters], lr=lr)


def the_first_only(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters[:1], lr=lr)


@pytest.mark.parametrize(
    ("opt", "sizes"), [(one_group_each, r"\[1, 1\]"), (the_first_only, r"\[1\]")]
)
def test_other_parameter_groups_are_refused_before_anything_is_changed(
    opt: Any, sizes: str, tmp_path: Path
) -> None:
    lose(tmp_path, learner)
    refused(tmp_path, learner(opt=opt), rf"groups of \[2\] parameters.* {sizes}")


def test_the_state_of_another_loss_function_is_refused_before_anything_is_changed(
    tmp_path: Path,
) -> None:
    def weighted(classes: int) -> Learner:
        return learner(loss=nn.CrossEntropyLoss(torch.ones(classes)))

    lose(tmp_path, lambda: weighted(3))
    refused(tmp_path, learner(), "of another loss function: weight is missing in the loss function")
    refused(tmp_path, weighted(4), r"of another loss function: weight has shape \[4\], and \[3\]")


def test_numbers_of_another_precision_are_refused_before_anything_is_changed(
    tmp_path: Path,
) -> None:
    lose(tmp_path, learner)
    double = learner(dtype=torch.float64)
    refused(tmp_path, double, r"weight is torch.float64, and torch.float32 in the checkpoint")


def test_a_callback_that_is_missing_is_told_before_anything_is_changed(tmp_path: Path) -> None:
    lose(tmp_path, learner, GradientAccumulation(3))
    refused(tmp_path, learner(), "callbacks that this run lacks: gradient_accumulation")


def test_what_was_read_is_let_go_of_once_it_has_been_put_back(tmp_path: Path) -> None:
    def wide() -> Learner:
        return learner(lambda: nn.Linear(5, 997))

    def count(resume: str | None) -> int:
        found: list[int] = []

        def look(run: Runner) -> None:
            gc.collect()
            tensors = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]
            found.append(sum(each.shape == (997, 5) for each in tensors))

        run = Runner(Checkpoint(tmp_path if resume else tmp_path / "other"))
        run.on("begin_batch", look, when=lambda run: run.n_iter == 9)
        run.fit(3, wide(), resume=resume)
        return found[0]

    lose(tmp_path, wide)
    assert count("auto") == count(None)


class Marked(Tensor):
    """A tensor of a class that nobody has declared to be safe."""


class Subclassed(nn.Linear):
    """Holds one, in a buffer."""

    def __init__(self, persistent: bool) -> None:
        super().__init__(5, 3)
        self.register_buffer("mark", torch.zeros(3).as_subclass(Marked), persistent=persistent)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_tensor_that_could_not_be_read_again_is_refused_when_it_is_saved(
    persistent: bool, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"\['mark'\] is a tensor of class Marked"):
        Runner(Checkpoint(tmp_path)).fit(1, learner(lambda: Subclassed(persistent)))
    assert list(tmp_path.iterdir()) == []


class ShuffleBuffer(IterableDataset):  # type: ignore[type-arg]
    """Draws with its own generator which item comes next, while the model draws, too."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.rows = list(zip(x, y, strict=True))
        self.generator = torch.Generator().manual_seed(3)

    def __iter__(self) -> Iterator[Any]:
        held = self.rows[:8]
        for row in self.rows[8:]:
            index = int(torch.randint(8, (), generator=self.generator))
            yield held[index]
            held[index] = row
        yield from held


def test_a_dataset_with_a_generator_of_its_own_resumes(tmp_path: Path) -> None:
    def make() -> Learner:
        learn = learner(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3)))
        rows = learn.data.train_dl.dataset
        learn.data.train_dl = DataLoader(ShuffleBuffer(rows.x, rows.y), batch_size=4)
        return learn

    assert_resumes(tmp_path, make, at=7)
