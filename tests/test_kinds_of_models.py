"""Models of every kind, with each of the callbacks that copy weights and put them back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from eventtrain import DataBunch, Learner, Runner, TensorLoader
from eventtrain.callbacks import EMA, SWA, EarlyStopping, LRFinder
from eventtrain.submodules import tensors_of

Model = Callable[[], nn.Module]
WIDTH = 4


def layers(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(*parts, nn.Linear(WIDTH, 3))


class WithBuffers(nn.Module):
    """A linear model with buffers that take part, and change in training."""

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 3)
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + sum(b.sum() for b in self.buffers() if b.is_floating_point())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.other.weight = self.one.weight
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.one(x).tanh()))


class Growing(nn.Module):
    """Keeps a buffer that appears in the fourth batch of training, and then grows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 3)
        self.register_buffer("seen", None, persistent=False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 3:
            self.seen = torch.zeros(self.calls // 3)
        return self.linear(x)


def view_of_a_weight() -> nn.Module:
    model = WithBuffers()
    model.register_buffer("view", model.linear.weight.detach()[0])
    return model


def shared_buffers() -> nn.Module:
    base = torch.ones(6)
    return WithBuffers(base=base, part=base[:2], last=base[4:])


def whole_number_parameter() -> nn.Module:
    model = WithBuffers()
    model.index = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
    return model


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def partly_compiled() -> nn.Module:
    return layers(compiled(nn.Linear(WIDTH, WIDTH)), nn.ReLU())


def old_norm(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return layers(getattr(nn.utils, name)(nn.Linear(WIDTH, WIDTH)), nn.ReLU())


MODELS: dict[str, Model] = {
    "plain": lambda: layers(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
    "tied": Tied,
    "expanded buffer": lambda: WithBuffers(mask=torch.ones(1).expand(3)),
    "expanded in two dimensions": lambda: WithBuffers(m=torch.ones(1, 2, 1).expand(3, 2, 4)),
    "overlapping buffer": lambda: WithBuffers(windows=torch.ones(5).unfold(0, 3, 1)),
    "buffers that share memory": shared_buffers,
    "buffer that is a view of a weight": view_of_a_weight,
    "sparse buffer": lambda: WithBuffers(index=torch.eye(3, dtype=torch.int64).to_sparse()),
    "parameter of whole numbers": whole_number_parameter,
    "buffer that appears and grows": Growing,
    "old weight_norm": lambda: old_norm("weight_norm"),
    "old spectral_norm": lambda: old_norm("spectral_norm"),
    "weight_norm": lambda: layers(parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
    "spectral_norm": lambda: layers(parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))),
    "orthogonal": lambda: layers(parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH))),
    "batch norm": lambda: layers(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)),
    "compiled": lambda: compiled(layers(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))),
    "partly compiled": partly_compiled,
    "compiled old weight_norm": lambda: compiled(old_norm("weight_norm")),
    "two in one memory": lambda: WithBuffers(same=torch.ones(2), again=torch.ones(2)[:]),
}


def learner_of(make: Model, validates: bool = True) -> Learner:
    torch.manual_seed(0)
    x, y = torch.randn(16, WIDTH), torch.randint(0, 3, (16,))
    valid_dl = TensorLoader(x[12:], y[12:], bs=4) if validates else None
    data = DataBunch(TensorLoader(x[:12], y[:12], bs=4), valid_dl)
    model = make()
    trained = [p for p in model.parameters() if p.requires_grad]
    return Learner(model, torch.optim.SGD(trained, lr=0.1), nn.functional.cross_entropy, data)


def parameters_of(model: Any) -> dict[str, Tensor]:
    held = tensors_of(model).items()
    return {name: t.detach().clone() for name, t in held if isinstance(t, nn.Parameter)}


def ends_of(run: Runner) -> list[dict[str, Tensor]]:
    """Return the list that gets the parameters at the end of every epoch."""
    ends: list[dict[str, Tensor]] = []
    run.on("after_epoch", lambda run: ends.append(parameters_of(run.model)), priority=-40)
    return ends


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor], exactly: bool = True) -> None:
    assert one.keys() == other.keys()
    tolerance = {"rtol": 0.0, "atol": 0.0} if exactly else {"rtol": 1e-5, "atol": 1e-6}
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], **tolerance, msg=name)


@pytest.fixture(params=MODELS, ids=str)
def make(request: pytest.FixtureRequest) -> Model:
    return MODELS[request.param]


@pytest.mark.parametrize("buffers", [False, True])
def test_a_moving_average_leaves_the_training_alone_and_is_that_of_the_weights(
    make: Model, buffers: bool
) -> None:
    plain, learner = learner_of(make), learner_of(make)
    Runner().fit(2, plain)
    run, expected = Runner(EMA(0.5, buffers=buffers)), {}

    @run.on("after_step")
    def average(run: Runner) -> None:
        for name, weight in parameters_of(run.model).items():
            old = expected.get(name, weight)
            expected[name] = old.lerp(weight, 0.5) if weight.is_floating_point() else weight

    run.fit(2, learner)
    assert_equal(parameters_of(learner.model), parameters_of(plain.model))
    run.ema.copy_to(learner.model)
    assert_equal(parameters_of(learner.model), expected, exactly=False)


@pytest.mark.parametrize("validates", [True, False])
def test_the_mean_of_the_last_epochs_is_that_of_the_weights(make: Model, validates: bool) -> None:
    # Without a validation the old weight_norm leaves a weight that has a graph.
    learner, run = learner_of(make, validates), Runner(SWA(1))
    ends = ends_of(run)
    assert run.fit(3, learner).outcome == "completed"
    means = {name: (ends[1][name] + ends[2][name]) / 2 for name in ends[1]}
    means = {name: mean.to(ends[1][name].dtype) for name, mean in means.items()}
    means |= {name: t for name, t in ends[2].items() if not t.is_floating_point()}
    assert_equal(parameters_of(learner.model), means, exactly=False)
    assert_equal(parameters_of(run.swa.averaged_model.module), means, exactly=False)


def test_the_best_weights_come_back(make: Model) -> None:
    learner, run = learner_of(make), Runner(EarlyStopping("score", patience=9))
    run.on("after_epoch", lambda run: run.history[-1].update(score=run.epoch))
    ends = ends_of(run)
    assert run.fit(3, learner).outcome == "completed"
    assert_equal(parameters_of(learner.model), ends[0])


def test_a_range_test_leaves_no_trace(make: Model) -> None:
    learner = learner_of(make)
    before = {name: t.detach().clone() for name, t in tensors_of(learner.model).items()}
    Runner(LRFinder(steps=5)).fit(2, learner)
    after = {name: t.detach().clone() for name, t in tensors_of(learner.model).items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(t.to_dense(), after[name].to_dense()) for name, t in before.items())


@pytest.mark.parametrize(
    "callback", [lambda: EMA(0.5), lambda: SWA(0), lambda: EarlyStopping("score", patience=9)]
)
def test_weights_that_are_tied_stay_tied(callback: Callable[[], Any]) -> None:
    learner, run = learner_of(Tied), Runner(callback())
    run.on("after_epoch", lambda run: run.history[-1].update(score=run.epoch))
    run.fit(2, learner)
    assert learner.model.one.weight is learner.model.other.weight


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(WIDTH), nn.LazyBatchNorm1d(), nn.LazyLinear(3))


@pytest.mark.parametrize(
    "callback", [lambda: EMA(0.5), lambda: SWA(0), lambda: EarlyStopping("score", patience=9)]
)
def test_a_lazy_model_may_be_initialized_by_the_fit(callback: Callable[[], Any]) -> None:
    learner, run = learner_of(lambda: layers(nn.Linear(WIDTH, WIDTH))), Runner(callback())
    learner.model = lazy()
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    run.on("begin_fit", lambda run: run.model(torch.ones(2, WIDTH)))
    run.on("after_epoch", lambda run: run.history[-1].update(score=run.epoch))
    assert run.fit(2, learner).outcome == "completed"


def test_an_average_initializes_a_lazy_model() -> None:
    learner, run = learner_of(MODELS["plain"]), Runner(EMA(0.5))
    run.fit(1, learner)
    fresh = nn.Sequential(nn.LazyLinear(WIDTH), nn.ReLU(), nn.LazyLinear(3))
    run.ema.copy_to(fresh)
    run.ema.copy_to(learner.model)
    x = torch.randn(2, WIDTH)
    assert torch.equal(fresh(x), learner.model(x))
