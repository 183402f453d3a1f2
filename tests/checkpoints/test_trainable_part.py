"""A checkpoint of the trainable part alone, and going on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eventtrain import CheckpointError, DataBunch, Learner, Runner, TensorLoader, load_checkpoint
from eventtrain.callbacks import EMA, AvgStatsCallback, Checkpoint, EarlyStopping
from eventtrain.checkpoints.form import check_form


def learner(*, frozen: bool = True, seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    if frozen:
        model[0].requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.Adam(parameters, lr=1e-2)
    torch.manual_seed(1)
    x = torch.randn(32, 4)
    data = DataBunch(TensorLoader(x, x.sum(1, keepdim=True), bs=8, shuffle=True), [(x, x[:, :1])])
    return Learner(model, opt, nn.functional.mse_loss, data)


def runner(folder: Path, *more: Any) -> Runner:
    checkpoint = Checkpoint(folder, trainable_only=True, every_steps=1)
    return Runner([AvgStatsCallback(report=None), *more, checkpoint])


def cut(folder: Path, *more: Any) -> None:
    run = runner(folder, *more)
    run.on("after_batch", lambda run: run.token.cancel("fit", "cut"), when=lambda r: r.n_iter == 6)
    run.fit(3, learner())


def test_what_nobody_trains_is_left_out(tmp_path: Path) -> None:
    run, learn = runner(tmp_path), learner()
    run.fit(1, learn)
    content = load_checkpoint(tmp_path)
    left_out = {"0.weight", "0.bias"}
    assert set(content["frozen"]) == left_out
    assert set(content["model"]) == set(learn.model.state_dict()) - left_out
    assert not learn.model.load_state_dict(content["model"], strict=False).unexpected_keys


@pytest.mark.parametrize("more", [(), (EMA,), (EarlyStopping,), (EMA, EarlyStopping)])
def test_a_run_goes_on_from_it_bit_for_bit(tmp_path: Path, more: tuple[Any, ...]) -> None:
    whole = learner()
    history = runner(tmp_path / "whole", *(kind() for kind in more)).fit(3, whole).history
    cut(tmp_path / "cut", *(kind() for kind in more))
    learn = learner()
    again = runner(tmp_path / "cut", *(kind() for kind in more))
    assert again.fit(3, learn, resume="auto").history == history
    for name, each in whole.model.state_dict().items():
        assert torch.equal(learn.model.state_dict()[name], each), name


def test_it_goes_on_in_a_compiled_model_too(tmp_path: Path) -> None:
    whole = learner()
    runner(tmp_path / "whole").fit(3, whole)
    cut(tmp_path / "cut")
    learn = learner()
    inner: Any = learn.model
    learn.model = torch.compile(inner, backend="eager")
    runner(tmp_path / "cut").fit(3, learn, resume="auto")
    assert torch.equal(inner[2].weight, whole.model[2].weight)
    torch.compiler.reset()


def test_a_whole_checkpoint_can_be_resumed_with_it_and_the_reverse(tmp_path: Path) -> None:
    cut(tmp_path)
    learn = learner()
    run = Runner([AvgStatsCallback(report=None), Checkpoint(tmp_path)])
    run.fit(3, learn, resume="auto")
    assert "frozen" not in load_checkpoint(tmp_path)
    assert runner(tmp_path).fit(4, learner(), resume="auto").steps == 16


def test_other_weights_in_what_is_not_trained_are_refused(tmp_path: Path) -> None:
    cut(tmp_path)
    learn = learner(seed=5)
    before = {name: each.clone() for name, each in learn.model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"other values in what is not: 0\.bias, 0\.weight"):
        runner(tmp_path).fit(3, learn, resume="auto")
    assert all(torch.equal(each, before[n]) for n, each in learn.model.state_dict().items())


def test_a_model_that_trains_everything_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are none: call requires_grad_"):
        runner(tmp_path).fit(1, learner(frozen=False))


def test_what_an_optimizer_has_is_kept_though_it_needs_no_gradient(tmp_path: Path) -> None:
    learn = learner()
    learn.opt = torch.optim.Adam([*learn.model[0].parameters(), *learn.model[2].parameters()])
    learn.model[1].requires_grad_(False)
    runner(tmp_path).fit(1, learn)
    assert set(load_checkpoint(tmp_path)["frozen"]) == {"1.weight", "1.bias"}


@pytest.mark.parametrize("frozen", [{"0.weight": None}, [], {"0.weight": {1: 2}}])
def test_a_damaged_list_of_what_was_left_out_is_refused(tmp_path: Path, frozen: Any) -> None:
    cut(tmp_path)
    content = {**load_checkpoint(tmp_path), "frozen": frozen}
    with pytest.raises(CheckpointError, match="'frozen'"):
        check_form(content, set(), "it")
