"""Several processes, as far as one can tell alone; real ones are in tests/distributed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from eventtrain import DataBunch, Distributed, Learner, Runner
from eventtrain.data.global_order import order_of_epoch
from eventtrain.distributed.engines import Shards


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_alone_it_changes_nothing(make_learner: Any, strategy: Any) -> None:
    plain, other = make_learner(), make_learner()
    Runner().fit(2, plain)
    run = Runner(Distributed(strategy))
    assert run.fit(2, other).outcome == "completed"
    assert (run.rank, run.world_size, run.local_rank, run.is_zero) == (0, 1, 0, True)
    for a, b in zip(plain.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_alone_a_loader_that_shuffles_has_the_order_of_several_and_is_put_back(
    make_learner: Any,
) -> None:
    learn = make_learner()
    loader = learn.data.train_dl
    loader.shuffle = True
    torch.manual_seed(5)
    rows: list[float] = []
    run = Runner(Distributed())
    run.on("after_batch", lambda run: rows.extend(run.xb[:, 0].tolist()), during="train")
    run.fit(1, learn)
    order = order_of_epoch(len(loader.dataset), 5, 0)
    assert rows == loader.dataset.x[order, 0].tolist()
    assert (learn.data.train_dl, loader.seed) == (loader, None)


def test_alone_too_a_fit_that_fails_puts_the_loaders_back(make_learner: Any) -> None:
    learn = make_learner()
    learn.data.train_dl = loader = DataLoader(learn.data.train_dl.dataset, 4, shuffle=True)
    run = Runner(Distributed())
    run.on("after_loss", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learn)
    assert learn.data.train_dl is loader


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"strategy": "dp"}, "'ddp' or 'fsdp2'"),
        ({"strategy": "ddp", "shard": ["0"]}, "shard="),
        ({"lost_after": 0}, "lost_after"),
        ({"lost_after": float("inf")}, "lost_after"),
    ],
)
def test_what_it_cannot_take_is_refused(arguments: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Distributed(**arguments)


def test_several_processes_need_it(make_learner: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = Runner()
    assert (run.rank, run.world_size, run.is_zero) == (1, 2, False)
    with pytest.raises(RuntimeError, match=r"rank 1 of 2 .*Distributed"):
        run.fit(1, make_learner())


def test_an_address_that_is_missing_is_named(make_learner: Any, monkeypatch: Any) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ValueError, match="MASTER_PORT"):
        Runner(Distributed()).fit(1, make_learner())


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, which must be below WORLD_SIZE=2"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK='one'"),
    ],
)
def test_an_environment_that_makes_no_sense_is_named(
    variables: dict[str, str], why: str, monkeypatch: Any
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=why):
        _ = Runner().rank


def test_a_rank_of_one_process_is_alone(make_learner: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    run = Runner(Distributed())
    assert run.fit(1, make_learner()).outcome == "completed"
    assert (run.rank, run.world_size) == (0, 1)


def test_an_optimizer_of_the_parameters_before_they_are_divided_is_refused() -> None:
    model = torch.nn.Linear(2, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    learn = Learner(model, opt, torch.nn.functional.mse_loss, DataBunch([0], None))
    with pytest.raises(TypeError, match=r"lambda params: torch\.optim\.SGD"):
        Shards(60).prepare(learn)
    assert isinstance(model.weight, torch.nn.Parameter)
