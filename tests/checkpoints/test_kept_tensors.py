"""What a cancelled batch changed before its step is put back, whatever keeps it in the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.functional import cross_entropy

from eventtrain import DataBunch, Learner, Runner, TensorLoader
from eventtrain.callbacks import Checkpoint, MixedPrecision
from eventtrain.checkpoints.files import list_checkpoints

EPOCHS = 2


class Shared(nn.Module):
    """Has a normalization under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.norm = self.same = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.same(torch.relu(self.norm(self.first(x)))))


class Mean(nn.Module):
    """Subtracts a mean of what it has seen."""

    mean: Tensor | None

    def __init__(self, *, persistent: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.register_buffer("mean", torch.zeros(3), persistent=persistent)

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        if self.training:
            self.see(y.detach().mean(0))
        return y - self.mean

    def see(self, mean: Tensor) -> None:
        raise NotImplementedError


class BehindTheVersion(Mean):
    def see(self, mean: Tensor) -> None:
        assert self.mean is not None
        self.mean.data.mul_(0.9).add_(0.1 * mean)


class SetAnew(Mean):
    def see(self, mean: Tensor) -> None:
        assert self.mean is not None
        self.mean = 0.9 * self.mean + 0.1 * mean


class MadeLate(Mean):
    """Has a buffer from its first batch on, which no state dictionary holds."""

    def __init__(self) -> None:
        super().__init__()
        del self.mean

    def see(self, mean: Tensor) -> None:
        if "mean" not in self._buffers:
            self.register_buffer("mean", torch.zeros_like(mean), persistent=False)
        assert self.mean is not None
        self.mean.mul_(0.9).add_(mean, alpha=0.1)


class SetLate(MadeLate):
    """Has the place for it before."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None, persistent=False)

    def see(self, mean: Tensor) -> None:
        self.mean = mean if self.mean is None else 0.9 * self.mean + 0.1 * mean


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, 3))


def compiled() -> nn.Module:
    class Wrapper(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self._orig_mod = model

        def forward(self, x: Tensor) -> Any:
            return self._orig_mod(x)

    return Wrapper(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))


MODELS: list[Callable[[], nn.Module]] = [
    Shared,
    BehindTheVersion,
    lambda: BehindTheVersion(persistent=False),
    SetAnew,
    SetLate,
    MadeLate,
    lazy,
    compiled,
]


def make_learner(make_model: Callable[[], nn.Module]) -> Learner:
    torch.manual_seed(0)
    x, y = torch.randn(16, 5), torch.randint(0, 3, (16,))
    model = make_model()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Learner(model, opt, cross_entropy, DataBunch(TensorLoader(x, y, 4, shuffle=True)))


def make_runner(folder: Path, *more: Any) -> Runner:
    return Runner([*more, Checkpoint(folder, every_epochs=None, every_seconds=1e9)])


def tensors_of(learn: Learner) -> dict[str, Any]:
    named = {**learn.model.state_dict(), **dict(learn.model.named_buffers())}
    return {name: tensor.tolist() for name, tensor in named.items()}


def cancel_at(run: Runner, event: str, nth: int) -> None:
    left = [nth]

    @run.on(event, during="train")
    def count(run: Runner) -> None:
        left[0] -= 1
        if not left[0]:
            run.token.cancel("fit", "enough")


@pytest.mark.parametrize("event", ["after_pred", "after_backward"])
@pytest.mark.parametrize("make_model", MODELS)
def test_a_fit_that_was_cut_in_a_batch_goes_on_with_the_buffers_of_before(
    make_model: Callable[[], nn.Module], event: str, tmp_path: Path
) -> None:
    run = make_runner(tmp_path)
    cancel_at(run, event, 3)
    run.fit(EPOCHS, make_learner(make_model))
    resumed = make_learner(make_model)
    make_runner(tmp_path).fit(EPOCHS, resumed, resume="auto")
    whole = make_learner(make_model)
    Runner().fit(EPOCHS, whole)
    assert tensors_of(resumed) == tensors_of(whole)


class TwoOptimizers(Runner):
    """Steps the last layer by an optimizer of its own, before the whole."""

    def one_batch(self) -> None:
        self.pred = self.model(self.xb)
        self.emit.after_pred()
        opt = torch.optim.SGD(self.model[1].parameters(), lr=0.1)
        opt.zero_grad()
        cross_entropy(self.pred, self.yb).backward(retain_graph=True)
        opt.step()
        self.pred = self.model(self.xb)
        self.loss = self.learn.loss_func(self.pred, self.yb)
        self.emit.after_loss()
        if self.in_train:
            self.loss.backward()
            self.emit.after_backward()
            self.optimizer_step()


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3))


def test_what_would_be_stepped_twice_is_not_saved_and_told(tmp_path: Path) -> None:
    run = TwoOptimizers(Checkpoint(tmp_path, every_epochs=None, every_steps=2))
    cancel_at(run, "after_loss", 4)
    with pytest.warns(RuntimeWarning, match="had changed parameters before its step"):
        run.fit(EPOCHS, make_learner(two_layers))
    assert [record.steps for record in list_checkpoints(tmp_path)] == [2]
    resumed = make_learner(two_layers)
    TwoOptimizers(Checkpoint(tmp_path)).fit(EPOCHS, resumed, resume="auto")
    whole = make_learner(two_layers)
    TwoOptimizers().fit(EPOCHS, whole)
    assert tensors_of(resumed) == tensors_of(whole)


def test_a_batch_that_is_cut_before_it_has_stepped_anything_is_saved(tmp_path: Path) -> None:
    run = TwoOptimizers(Checkpoint(tmp_path, every_epochs=None, every_seconds=1e9))
    cancel_at(run, "after_pred", 3)
    run.fit(EPOCHS, make_learner(two_layers))
    assert [record.steps for record in list_checkpoints(tmp_path)] == [2]


def precision() -> MixedPrecision:
    # The first three batches overflow.
    return MixedPrecision("fp16", GradScaler("cpu", init_scale=2.0**18, growth_interval=2))


@pytest.mark.parametrize("nth", [2, 3, 5, 6])
@pytest.mark.parametrize("event", ["after_cancel_step", "begin_step", "after_batch"])
def test_the_scale_of_a_batch_that_is_run_again_is_that_of_before(
    event: str, nth: int, tmp_path: Path
) -> None:
    run = make_runner(tmp_path, precision())
    cancel_at(run, event, nth)
    run.fit(EPOCHS, make_learner(two_layers))
    scales = []
    for folder, resume in [(tmp_path, "auto"), (tmp_path / "whole", None)]:
        learn, run = make_learner(two_layers), make_runner(folder, precision())
        run.fit(EPOCHS, learn, resume=resume)
        scales.append((run.mixed_precision.state_dict(), tensors_of(learn)))
    assert scales[0] == scales[1]
