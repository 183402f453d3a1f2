"""A compiled model trains the same, in the same events, and is itself again afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from eventtrain import EventLog, Learner, Runner
from eventtrain.callbacks import ActivationCheckpointing, Compile

Make = Callable[..., Learner]
Fit = Callable[[Runner, Learner], None]


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def counting(graphs: list[Any]) -> Callable[..., Any]:
    """A backend that runs the graph as it is, and keeps it."""

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return backend


def test_the_model_runs_compiled_during_the_fit(learner: Learner) -> None:
    graphs: list[Any] = []
    result = Runner(Compile(backend=counting(graphs))).fit(1, learner)
    assert result.steps == 3
    assert graphs


def test_the_weights_are_those_of_a_fit_without_it(make_learner: Make) -> None:
    plain, compiled = make_learner(), make_learner()
    Runner().fit(2, plain)
    Runner(Compile(backend="eager")).fit(2, compiled)
    assert torch.equal(plain.model.weight, compiled.model.weight)


def test_the_events_are_those_of_a_fit_without_it(make_learner: Make) -> None:
    logs: list[list[str]] = []
    for callbacks in ([], [Compile(backend="eager")]):
        log = EventLog()
        Runner([*callbacks, log]).fit(2, make_learner())
        logs.append([record["event"] for record in log.records])
    assert logs[0] == logs[1]


def test_the_state_dict_keeps_its_keys(learner: Learner) -> None:
    run = Runner(Compile(backend="eager"))
    keys: list[list[str]] = []
    run.on("after_batch", lambda run: keys.append(list(run.model.state_dict())))
    model = learner.model
    run.fit(1, learner)
    assert keys[0] == ["weight", "bias"]
    assert learner.model is model


def test_the_model_is_itself_again_however_the_fit_ends(
    learner: Learner, fit_however_it_ends: Fit
) -> None:
    graphs: list[Any] = []
    run = Runner(Compile(backend=counting(graphs)))
    fit_however_it_ends(run, learner)
    before = len(graphs)
    learner.model(torch.zeros(9, 5))
    assert len(graphs) == before > 0
    assert vars(learner.model).keys() == vars(nn.Linear(5, 3)).keys()


class Block(nn.Module):
    """A module whose class is not one of torch's own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.parametrize("how", ["module", "in place"])
def test_a_model_that_was_compiled_before_stays_so(learner: Learner, how: str) -> None:
    theirs: list[Any] = []
    ours: list[Any] = []
    if how == "module":
        learner.model = torch.compile(learner.model, backend=counting(theirs))
    else:
        learner.model = Block(learner.model)
        learner.model.compile(backend=counting(theirs))
    Runner(Compile(backend=counting(ours))).fit(1, learner)
    assert theirs and not ours
    before = len(theirs)
    learner.model(torch.zeros(2, 5))
    learner.model(torch.zeros(9, 5))
    assert len(theirs) > before


def test_a_second_fit_is_compiled_as_well(learner: Learner) -> None:
    run = Runner(Compile(backend="eager"))
    run.fit(1, learner)
    compiled: list[bool] = []
    run.on("begin_batch", lambda run: compiled.append("forward" in vars(run.model)))
    assert run.fit(1, learner).steps == 3
    assert all(compiled) and compiled


def test_a_plain_function_cannot_be_compiled_in_place(learner: Learner) -> None:
    linear = learner.model
    learner.model = lambda x: linear(x)
    with pytest.raises(TypeError, match=r"nn\.Module, got function"):
        Runner(Compile()).fit(1, learner)


def test_a_fit_without_epochs_is_fine(learner: Learner) -> None:
    assert Runner(Compile(backend="eager")).fit(0, learner).outcome == "completed"


def test_models_made_of_torchs_own_classes_are_compiled_too(make_learner: Make) -> None:
    """``model.compile()`` leaves these as they are, without a word."""
    learner = make_learner()
    learner.model = nn.Sequential(nn.Linear(5, 3), nn.ReLU())
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    graphs: list[Any] = []
    Runner(Compile(backend=counting(graphs))).fit(1, learner)
    assert graphs


def test_it_wraps_what_others_put_into_the_model_and_takes_itself_out_first(
    learner: Learner,
) -> None:
    graphs: list[Any] = []
    callbacks = [Compile(backend=counting(graphs)), ActivationCheckpointing("")]
    assert Runner(callbacks).fit(1, learner).steps == 3
    assert graphs
    assert "forward" not in vars(learner.model)
