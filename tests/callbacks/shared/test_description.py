"""What is written down of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import eventtrain
from eventtrain import AvgStatsCallback, Callback, DataBunch, Learner, Runner, accuracy
from eventtrain.callbacks import Checkpoint, GradientClip, OneCycle
from eventtrain.callbacks.shared.description import describe_program, describe_run


def described(learn: Learner, *callbacks: Callback, **fit: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    run = Runner(callbacks)
    run.on("begin_fit", lambda run: found.update(describe_run(run)))
    run.fit(learn=learn, **(fit or {"epochs": 2}))
    return found


def test_model_loss_and_length_are_named(learner: Learner) -> None:
    found = described(learner)
    assert found["model"] == "Linear"
    assert found["model.parameters"] == found["model.trainable"] == 5 * 3 + 3
    assert found["model.device"] == "cpu"
    assert found["loss_func"] == "cross_entropy"
    assert (found["epochs"], found["processes"]) == (2, 1)


def test_a_fit_by_steps_is_one_of_so_many(learner: Learner) -> None:
    found = described(learner, steps=4, validate_every=2)
    assert (found["steps"], found["validate_every"]) == (4, 2)


def test_parameters_that_are_frozen_are_not_counted_as_trained(learner: Learner) -> None:
    learner.model.bias.requires_grad_(False)
    assert described(learner)["model.trainable"] == 15


def test_an_optimizer_has_its_settings_by_group_where_it_has_several(learner: Learner) -> None:
    weight, bias = learner.model.parameters()
    groups = [{"params": [weight]}, {"params": [bias], "lr": 0.5}]
    learner.opt = torch.optim.Adam(groups, lr=0.1)
    found = described(learner)
    assert found["opt"] == "Adam"
    assert (found["opt.0.lr"], found["opt.1.lr"]) == (0.1, 0.5)
    assert found["opt.0.betas"] == "0.9, 0.999"
    assert "opt.0.params" not in found


def test_a_rate_that_is_a_tensor_is_a_number(learner: Learner) -> None:
    learner.opt = torch.optim.Adam(learner.model.parameters(), lr=torch.tensor(0.25))
    assert described(learner)["opt.lr"] == 0.25


def test_each_loader_has_its_size(learner: Learner) -> None:
    data = learner.data
    learner.data = DataBunch(data.train_dl, {"easy": data.valid_dl})
    found = described(learner)
    assert found["data.train"] == "TensorLoader"
    assert (found["data.train.batch_size"], found["data.train.batches"]) == (4, 3)
    assert found["data.train.samples"] == 12
    assert found["data.valid.easy.batches"] == 2


def test_a_loader_that_is_a_list_says_its_length_alone(learner: Learner) -> None:
    learner.data = DataBunch(list(learner.data.train_dl), None)
    found = described(learner)
    assert (found["data.train"], found["data.train.batches"]) == ("list", 3)
    assert not any(name.startswith("data.valid") for name in found)


def test_callbacks_have_their_options(learner: Learner, tmp_path: Path) -> None:
    clip, saving = GradientClip(norm=0.5), Checkpoint(tmp_path, keep_last=3)
    found = described(learner, AvgStatsCallback(accuracy), OneCycle(0.2), clip, saving)
    assert found["callbacks.one_cycle"] == "OneCycle"
    assert found["callbacks.one_cycle.max_lr"] == 0.2
    assert found["callbacks.gradient_clip.norm"] == 0.5
    assert found["callbacks.checkpoint.keep_last"] == 3
    assert "callbacks.train_eval" not in found


class Telling(Callback):
    def __init__(self, url: str, api_key: str, password: str, factor: Any) -> None:
        self.url, self.api_key, self.password, self.factor = url, api_key, password, factor


def test_what_is_called_like_a_password_is_left_out(learner: Learner) -> None:
    found = described(learner, Telling("here", "abc123", "abc123", {"a": [1, 2]}))
    assert found["callbacks.telling.url"] == "here"
    assert found["callbacks.telling.factor"] == "a=1, 2"
    assert "abc123" not in str(found)


def test_an_option_that_a_callback_has_not_kept_is_not_asked_of_the_run(learner: Learner) -> None:
    class Forgetful(Callback):
        def __init__(self, epochs: int) -> None:
            self.kept = epochs

    assert "callbacks.forgetful.epochs" not in described(learner, Forgetful(7))


def test_a_model_that_is_a_function_and_a_lazy_one_can_be_described(learner: Learner) -> None:
    learner.model = nn.Sequential(nn.LazyLinear(3))
    learner.opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    run = Runner()
    run.learn = learner
    assert describe_run(run)["model"] == "Sequential"
    assert "model.parameters" not in describe_run(run)
    learner.model = test_each_loader_has_its_size
    assert describe_run(run)["model"] == "test_each_loader_has_its_size"


def test_the_versions_are_those_of_the_packages() -> None:
    found = describe_program()
    assert (found["torch"], found["eventtrain"]) == (torch.__version__, eventtrain.__version__)
