"""A model is the same one where it was compiled, and where its tensors share memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventtrain import CheckpointError, DataBunch, Learner, Runner, TensorLoader
from eventtrain.callbacks import Checkpoint

Wrap = Callable[[nn.Module], nn.Module]


class Buffers(nn.Module):
    """With buffers of all kinds, on all of which the output depends."""

    def __init__(self, expanded: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight  # tied
        one = torch.zeros(1)
        self.register_buffer("expanded", one.expand(4) if expanded else torch.zeros(4))
        self.register_buffer("unsaved", torch.zeros(1, 1).expand(4, 4), persistent=False)
        whole = torch.zeros(4)
        self.register_buffer("whole", whole)
        self.register_buffer("part", whole[:2])
        self.norm = nn.BatchNorm1d(4)
        self.one = one

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.expanded[:1].add_(0.125)
                self.unsaved[:1, :1].add_(0.125)
                self.part.add_(x.mean())
        x = self.norm(self.second(self.first(x).tanh())) + self.expanded + self.whole
        return x + self.unsaved.sum(0)


def as_it_is(model: nn.Module) -> nn.Module:
    return model


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def compiled_in_part(model: nn.Module) -> nn.Module:
    model.first = torch.compile(model.first, backend="eager")
    return model


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


WRAPS = [as_it_is, compiled, compiled_in_part, compiled_in_place]


def learner(wrap: Wrap = as_it_is, make: Callable[[], nn.Module] = Buffers) -> Learner:
    torch.manual_seed(0)
    data = DataBunch(TensorLoader(torch.randn(16, 4), torch.randn(16, 4), bs=4, shuffle=True))
    model = wrap(make())
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    return Learner(model, opt, nn.functional.mse_loss, data)


def fit(folder: Path, learn: Learner, *, lose: bool = False, **options: Any) -> Learner:
    run = Runner(Checkpoint(folder, **options))
    if lose:  # with a gradient that waits
        run.on("begin_step", lambda run: run.token.cancel("step"), when=lambda run: run.n_iter == 5)
        run.on("after_batch", lambda run: run.token.cancel("fit", "away"),
               when=lambda run: run.n_iter == 6)  # fmt: skip
    else:
        run.on("begin_step", lambda run: run.token.cancel("step"), when=lambda run: run.n_iter == 5)
    run.fit(3, learn, resume="auto")
    return learn


def tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def assert_same(one: Learner, other: Learner) -> None:
    for first, second in zip(tensors(one.model), tensors(other.model), strict=True):
        assert torch.equal(first, second)


@pytest.fixture(autouse=True)
def _compile_anew() -> Any:
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("saved", WRAPS)
def test_a_model_goes_on_compiled_or_not(saved: Wrap, wrap: Wrap, tmp_path: Path) -> None:
    fit(tmp_path / "lost", learner(saved), lose=True)
    found = fit(tmp_path / "lost", learner(wrap))
    assert_same(found, fit(tmp_path / "whole", learner()))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_tensors_that_share_memory_go_on_sharing_it(asynchronous: bool, tmp_path: Path) -> None:
    fit(tmp_path, learner(), lose=True, asynchronous=asynchronous)
    found = fit(tmp_path, learner())
    model: Any = found.model
    assert model.second.weight is model.first.weight
    assert model.part.data_ptr() == model.whole.data_ptr()
    assert model.expanded.data_ptr() == model.one.data_ptr()
    assert model.expanded.stride() == (0,)
    assert_same(found, fit(tmp_path / "whole", learner()))


def test_an_expanded_buffer_goes_on_in_one_that_is_not(tmp_path: Path) -> None:
    fit(tmp_path, learner(), lose=True)
    found = learner(make=lambda: Buffers(expanded=False))
    Runner(Checkpoint(tmp_path)).fit(2, found, resume="auto")


def test_several_numbers_for_what_is_one_are_refused(tmp_path: Path) -> None:
    fit(tmp_path, learner(make=lambda: Buffers(expanded=False)), lose=True)
    learn = learner()
    before = [tensor.clone() for tensor in tensors(learn.model)]
    with pytest.raises(CheckpointError, match="expanded is one number in several places"):
        Runner(Checkpoint(tmp_path)).fit(3, learn, resume="auto")
    for one, same in zip(before, tensors(learn.model), strict=True):
        assert torch.equal(one, same)


def test_weights_that_were_tied_and_are_not_are_refused(tmp_path: Path) -> None:
    def untied() -> nn.Module:
        model = Buffers()
        model.second.weight = nn.Parameter(model.second.weight.detach().clone())
        return model

    fit(tmp_path, learner(), lose=True)
    with pytest.raises(CheckpointError, match="of another optimizer"):
        Runner(Checkpoint(tmp_path)).fit(3, learner(make=untied), resume="auto")


class Migrating(nn.Linear):
    """Doubles the weights of files of its first version."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, meta: Any, *more: Any) -> None:
        if (meta.get("version") or 1) < 2:
            state[prefix + "weight"] = state[prefix + "weight"] * 2
        super()._load_from_state_dict(state, prefix, meta, *more)


@pytest.mark.parametrize(("saved", "wrap"), [(compiled, as_it_is), (as_it_is, compiled)])
def test_versions_of_modules_stay_with_them(saved: Wrap, wrap: Wrap, tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(Migrating(4, 4))

    fit(tmp_path / "lost", learner(saved, make), lose=True)
    found = fit(tmp_path / "lost", learner(wrap, make))
    assert_same(found, fit(tmp_path / "whole", learner(make=make)))


class Orig(nn.Module):
    """Has a part that is called as torch calls what it has compiled, and another of its name."""

    def __init__(self) -> None:
        super().__init__()
        self._orig_mod = nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.zeros(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self._orig_mod(x) @ self.weight


def test_a_part_that_only_has_such_a_name_is_not_lost(tmp_path: Path) -> None:
    fit(tmp_path / "lost", learner(make=Orig), lose=True)
    assert_same(fit(tmp_path / "lost", learner(make=Orig)), fit(tmp_path / "w", learner(make=Orig)))
