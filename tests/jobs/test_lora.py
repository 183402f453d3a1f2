"""LoRA by peft, beside a loop written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests_of_jobs import needs

from eventtrain import load_checkpoint

needs("transformers", "accelerate", "peft")

import lora
import lora_trainer
from safetensors.torch import load_file

# What peft reads of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def adapters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def test_the_adapters_are_those_of_the_loop_by_hand(tmp_path: Path) -> None:
    run, learn = lora.make(tmp_path)
    run.fit(2, learn)
    _, other = lora.make(tmp_path)
    model, opt = other.model, other.opt
    for _ in range(2):
        model.train()
        for batch in other.data.train_dl:
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(adapters(model).values(), 1.0)
            opt.step()
            opt.zero_grad()
    for name, each in adapters(model).items():
        assert torch.equal(adapters(learn.model)[name], each), name


def test_the_adapters_alone_are_saved_and_a_fit_goes_on_from_them(tmp_path: Path) -> None:
    run, learn = lora.make(tmp_path / "whole")
    run.fit(2, learn)
    first, other = lora.make(tmp_path / "cut")
    first.on("after_step", lambda run: run.token.cancel("fit", "cut"), when=lambda r: r.steps == 13)
    first.fit(2, other)
    assert set(load_checkpoint(tmp_path / "cut")["model"]) == set(adapters(learn.model))
    again, other = lora.make(tmp_path / "cut")
    assert again.fit(2, other, resume="auto").history == run.history
    for name, each in adapters(learn.model).items():
        assert torch.equal(adapters(other.model)[name], each), name


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_losses_and_adapters_are_those_of_the_trainer_of_transformers(tmp_path: Path) -> None:
    run, learn = lora.make(tmp_path / "own")
    run.fit(2, learn)
    trainer = lora_trainer.make(str(tmp_path / "peer"), 2)
    trainer.train()
    rows = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert [row["valid_loss"] for row in run.history] == pytest.approx(rows, abs=1e-5)
    for name, each in adapters(trainer.model).items():
        torch.testing.assert_close(adapters(learn.model)[name], each, atol=1e-4, rtol=1e-3)
    saved = load_file(tmp_path / "peer" / "checkpoint-20" / "adapter_model.safetensors")
    assert len(saved) == len(adapters(learn.model))
