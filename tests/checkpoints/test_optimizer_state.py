"""Each parameter gets the optimizer's state that was its own, or the run is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventtrain import CheckpointError, DataBunch, Learner, Runner, TensorLoader, load_checkpoint
from eventtrain.callbacks import Checkpoint
from eventtrain.checkpoints.files import list_checkpoints, write_checkpoint

Group = Callable[[nn.Module], list[Any]]


def model() -> nn.Sequential:
    """Two layers whose parameters agree in their shapes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))


def squared(pred: Tensor, target: Tensor) -> Tensor:
    return (pred - target).square().mean()


def learner(opt: Callable[[list[Any]], Any], groups: Group, net: Any = None) -> Learner:
    net = model() if net is None else net
    torch.manual_seed(1)
    data = DataBunch(TensorLoader(torch.randn(8, 3), torch.randn(8, 3), bs=4))
    return Learner(net, opt(groups(net)), squared, data)


def in_order(net: nn.Module) -> list[Any]:
    return list(net.parameters())


def backward(net: nn.Module) -> list[Any]:
    return list(net.parameters())[::-1]


def two_groups(net: nn.Module) -> list[Any]:
    first, second = net.parameters()
    return [{"params": [first]}, {"params": [second], "weight_decay": 0.5}]


def two_groups_swapped(net: nn.Module) -> list[Any]:
    return two_groups(net)[::-1]


def fit(folder: Path, learn: Learner, epochs: int, resume: str | None = None) -> Learner:
    Runner(Checkpoint(folder)).fit(epochs, learn, resume=resume)
    return learn


def with_closure(learn: Learner) -> None:
    """Have ``step`` know by itself what it minimizes, as the loop passes no closure."""
    opt, step = learn.opt, learn.opt.step
    x, y = learn.data.train_dl.dataset.x, learn.data.train_dl.dataset.y

    def closure() -> Tensor:
        opt.zero_grad()
        loss = squared(learn.model(x), y)
        with torch.enable_grad():
            loss.backward()
        return loss

    opt.step = lambda: step(closure)


OPTIMIZERS = [
    getattr(torch.optim, name)
    for name in sorted(torch.optim.__all__)
    if isinstance(getattr(torch.optim, name, None), type)
    and issubclass(getattr(torch.optim, name), torch.optim.Optimizer)
    and name not in ("Optimizer", "SparseAdam", "LBFGS")  # sparse gradients; a closure
]


def options(kind: Any) -> dict[str, Any]:
    return {"momentum": 0.9} if kind.__name__ in ("SGD", "RMSprop") else {}


def states(learn: Learner) -> dict[str, dict[str, Any]]:
    names = {id(p): name for name, p in learn.model.named_parameters()}
    return {names[id(p)]: state for p, state in learn.opt.state.items()}


def assert_same(one: Learner, other: Learner) -> None:
    for first, second in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(first, second)
    first, second = states(one), states(other)
    assert first.keys() == second.keys() != set()
    for name, state in first.items():
        assert all(
            torch.equal(torch.as_tensor(value), torch.as_tensor(second[name][key]))
            for key, value in state.items()
        )


@pytest.mark.parametrize("names", [False, True], ids=["plain", "with param_names"])
@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_parameters_in_another_order_get_what_was_their_own(
    kind: Any, names: bool, tmp_path: Path
) -> None:
    def opt(parameters: list[Any]) -> Any:
        if names:
            parameters = [(f"p{index}", p) for index, p in enumerate(parameters)]
        return kind(parameters, lr=0.01, **options(kind))

    fit(tmp_path, learner(opt, in_order), 2)
    found = fit(tmp_path, learner(opt, backward), 4, "auto")
    assert_same(found, fit(tmp_path / "whole", learner(opt, in_order), 4))


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_groups_in_another_order_are_refused(kind: Any, tmp_path: Path) -> None:
    def opt(groups: list[Any]) -> Any:
        return kind(groups, lr=0.01, **options(kind))

    fit(tmp_path, learner(opt, two_groups), 2)
    refused(tmp_path, learner(opt, two_groups_swapped), r"group 0 .* has '0.weight' .*'2.weight'")
    found = fit(tmp_path, learner(opt, two_groups), 4, "auto")
    assert_same(found, fit(tmp_path / "whole", learner(opt, two_groups), 4))


def refused(folder: Path, learn: Learner, text: str) -> None:
    """See that a fit is refused before it begins, and changes nothing."""
    before = copy.deepcopy((learn.model.state_dict(), learn.opt.state_dict()))
    random = torch.get_rng_state()
    files = {path: path.read_bytes() for path in folder.iterdir()}
    run = Runner(Checkpoint(folder))
    run.on("begin_fit", lambda run: pytest.fail("it has begun"))
    with pytest.raises(CheckpointError, match=text):
        run.fit(4, learn, resume="auto")
    assert str(before) == str((learn.model.state_dict(), learn.opt.state_dict()))
    assert torch.equal(random, torch.get_rng_state())
    assert files == {path: path.read_bytes() for path in folder.iterdir()}


def test_one_state_for_all_parameters_is_refused_in_another_order(tmp_path: Path) -> None:
    def opt(parameters: list[Any]) -> Any:
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=2)

    def made(groups: Group) -> Learner:
        learn = learner(opt, groups)
        with_closure(learn)
        return learn

    fit(tmp_path, made(in_order), 2)
    refused(tmp_path, made(backward), "in another order, .* cannot be told apart")
    found = fit(tmp_path, made(in_order), 4, "auto")
    whole = fit(tmp_path / "whole", made(in_order), 4)
    assert torch.equal(found.model[0].weight, whole.model[0].weight)


class Mine(torch.optim.SGD):
    """An optimizer of somebody's own, which may keep anything."""


def test_of_an_optimizer_of_ones_own_nobody_knows_what_its_state_is_about(tmp_path: Path) -> None:
    def opt(parameters: list[Any]) -> Any:
        return Mine(parameters, lr=0.1, momentum=0.9)

    fit(tmp_path, learner(opt, in_order), 2)
    refused(tmp_path, learner(opt, backward), "in another order")
    fit(tmp_path, learner(opt, in_order), 4, "auto")


def test_parameters_that_are_not_the_models_keep_their_places(tmp_path: Path) -> None:
    def groups(shape: int) -> Group:
        return lambda net: [*net.parameters(), nn.Parameter(torch.zeros(shape))]

    def opt(parameters: list[Any]) -> Any:
        return torch.optim.Adam(parameters, lr=0.1)

    fit(tmp_path, learner(opt, groups(2)), 2)
    refused(tmp_path, learner(opt, groups(3)), r"not the model's of shape \[2\] .* shape \[3\]")
    refused(tmp_path, learner(opt, lambda net: groups(2)(net)[::-1]), "in another order")
    fit(tmp_path, learner(opt, groups(2)), 4, "auto")


@pytest.mark.parametrize("format", [1, 2])
def test_earlier_formats_without_names_are_read(format: int, tmp_path: Path) -> None:
    def opt(parameters: list[Any]) -> Any:
        return torch.optim.Adam(parameters, lr=0.01)

    fit(tmp_path, learner(opt, in_order), 2)
    record = list_checkpoints(tmp_path)[-1]
    content = load_checkpoint(record.path)
    for key in ("parameters", "loaders", "last_batch", "record"):
        del content[key]
    content["format"] = format
    content["gradients"] = {}
    for states in (content["random"],):
        states["loaders"] = [[], []]
    if format == 1:
        old = {"epochs_done": "_epochs_done", "epoch_began_at": "_first_iter"}
        old["train_iters"] = "_train_iters"
        content["counters"] = {old.get(k, k): n for k, n in content["counters"].items()}
    write_checkpoint(record, content)
    found = fit(tmp_path, learner(opt, in_order), 4, "auto")
    assert_same(found, fit(tmp_path / "whole", learner(opt, in_order), 4))


# Groups that are added on the way


def adding(folder: Path, epochs: int, *, where: str, epoch: int | None, resume: str | None = None,
           lose: bool = False, before: bool = False) -> Learner:  # fmt: skip
    """Train the first layer, and from some place on the second too."""
    learn = learner(lambda p: torch.optim.Adam(p, lr=0.01), lambda net: [net[0].weight])

    def add(run: Runner | None = None) -> None:
        learn.opt.add_param_group({"params": [learn.model[2].weight], "lr": 0.002})

    run = Runner(Checkpoint(folder, every_steps=1))
    if before:
        add()
    else:
        run.on(where, add, when=lambda run: run.epoch == epoch)
    if lose:
        run.on("after_batch", lambda run: run.token.cancel("fit", "away"),
               when=lambda run: run.n_iter == 3)  # fmt: skip
    run.fit(epochs, learn, resume=resume)
    return learn


@pytest.mark.parametrize(("where", "epoch"), [("begin_fit", None), ("begin_epoch", 1)])
@pytest.mark.parametrize("before", [False, True])
def test_a_group_that_is_added_again_gets_its_state(
    where: str, epoch: int | None, before: bool, tmp_path: Path
) -> None:
    adding(tmp_path / "lost", 3, where=where, epoch=epoch, lose=True)
    found = adding(tmp_path / "lost", 3, where=where, epoch=epoch, resume="auto", before=before)
    assert_same(found, adding(tmp_path / "whole", 3, where=where, epoch=epoch))
    assert [group["lr"] for group in found.opt.param_groups] == [0.01, 0.002]


@pytest.mark.parametrize("lose", [True, False])
def test_one_that_is_not_added_again_is_told_and_nothing_is_changed(
    lose: bool, tmp_path: Path
) -> None:
    adding(tmp_path, 2, where="begin_epoch", epoch=1, lose=lose)
    learn = learner(lambda p: torch.optim.Adam(p, lr=0.01), lambda net: [net[0].weight])
    before = copy.deepcopy((learn.model.state_dict(), learn.opt.state_dict()))
    with pytest.raises(CheckpointError, match=r"groups of \[1, 1\] parameters, .* has \[1\]. Add"):
        Runner(Checkpoint(tmp_path)).fit(4, learn, resume="auto")
    assert str(before) == str((learn.model.state_dict(), learn.opt.state_dict()))
