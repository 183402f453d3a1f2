"""Functions applied to batches, against loaders that give the transformed batches themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from eventtrain import Callback, DataBunch, Learner, Runner
from eventtrain.callbacks import BatchTransform
from eventtrain.priorities import METRICS, MOVE_DATA

Make = Callable[..., Learner]


def double(xb: Tensor) -> Tensor:
    return xb * 2


def both(xb: Tensor, yb: Tensor) -> tuple[Tensor, Tensor]:
    return xb.flip(0), yb.flip(0)


def same_weights(one: Learner, other: Learner) -> bool:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def inputs_by_phase(run: Runner) -> dict[str | None, list[Tensor]]:
    seen: dict[str | None, list[Tensor]] = {}
    run.on("after_pred", lambda run: seen.setdefault(run.phase, []).append(run.xb) and None)
    return seen


def test_training_is_that_on_transformed_batches(make_learner: Make) -> None:
    learner, reference = make_learner(), make_learner()
    Runner(cbs=BatchTransform(lambda xb, yb: (xb * 2, 2 - yb))).fit(2, learner)
    batches = [(xb * 2, 2 - yb) for xb, yb in reference.data.train_dl]
    reference.data = DataBunch(batches, None)
    Runner().fit(2, reference)
    assert same_weights(learner, reference)


def test_a_function_of_the_inputs_alone_leaves_the_targets(make_learner: Make) -> None:
    learner, reference = make_learner(), make_learner()
    Runner(cbs=BatchTransform(x=double)).fit(1, learner)
    reference.data = DataBunch([(xb * 2, yb) for xb, yb in reference.data.train_dl], None)
    Runner().fit(1, reference)
    assert same_weights(learner, reference)


@pytest.mark.parametrize("during", ["train", "validate", "predict", None])
def test_only_the_phase_that_was_asked_for_is_transformed(
    during: str | None, learner: Learner
) -> None:
    run = Runner(cbs=BatchTransform(x=double, during=during))
    seen = inputs_by_phase(run)
    run.fit(1, learner)
    run.predict(learner, learner.data.valid_dl)
    loaders = {"train": learner.data.train_dl}
    loaders.update({"validate": learner.data.valid_dl, "predict": learner.data.valid_dl})
    for phase, loader in loaders.items():
        factor = 2 if during in (phase, None) else 1
        for got, (xb, _) in zip(seen[phase], loader, strict=True):
            assert torch.equal(got, xb * factor)


def test_training_alone_is_transformed_by_default(learner: Learner) -> None:
    run = Runner(cbs=BatchTransform(x=double))
    seen = inputs_by_phase(run)
    run.validate(learner)
    assert torch.equal(seen["validate"][0], next(iter(learner.data.valid_dl))[0])


def test_it_comes_after_moving_and_before_measuring(learner: Learner) -> None:
    order: list[str] = []

    def transform(xb: Tensor) -> Tensor:
        order.append("transform")
        return xb

    run = Runner(cbs=BatchTransform(x=transform))
    run.on("begin_batch", lambda run: order.append("measure"), priority=METRICS + 1)
    run.on("begin_batch", lambda run: order.append("move"), priority=MOVE_DATA - 1)
    run.on("after_batch", lambda run: run.token.cancel("fit"))
    run.fit(1, learner)
    assert order == ["move", "transform", "measure"]


def test_several_run_in_the_order_in_which_they_were_given(learner: Learner) -> None:
    first, second = BatchTransform(x=lambda xb: xb + 1), BatchTransform(x=double)
    second.name = "second"
    run = Runner(cbs=[first, second])
    seen = inputs_by_phase(run)
    run.fit(1, learner)
    assert torch.equal(seen["train"][0], (next(iter(learner.data.train_dl))[0] + 1) * 2)


def test_the_batch_stays_as_it_was_loaded(learner: Learner) -> None:
    run = Runner(cbs=BatchTransform(both))
    kept: list[tuple[Any, Any]] = []
    run.on("after_batch", lambda run: kept.append((run.batch[0], run.xb)), during="train")
    run.fit(1, learner)
    assert all(torch.equal(batch, xb.flip(0)) for batch, xb in kept)


def test_a_batch_that_is_cancelled_before_it_is_not_transformed(learner: Learner) -> None:
    calls: list[int] = []

    class Skip(Callback):
        priority = MOVE_DATA

        def begin_batch(self, run: Runner) -> None:
            run.token.cancel("batch")

    Runner(cbs=[BatchTransform(x=lambda xb: calls.append(1) or xb), Skip()]).fit(1, learner)
    assert calls == []


def test_a_function_that_returns_one_part_is_told_what_to_do(learner: Learner) -> None:
    run = Runner(cbs=BatchTransform(lambda xb, yb: xb))  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match=r"must return \(xb, yb\), got Tensor"):
        run.fit(1, learner)


@pytest.mark.parametrize(("parts", "kind"), [((1, 2, 3), "tuple"), ("xy", "str")])
def test_what_is_no_pair_is_refused(learner: Learner, parts: Any, kind: str) -> None:
    run = Runner(cbs=BatchTransform(lambda xb, yb: parts))
    with pytest.raises(TypeError, match=rf"must return \(xb, yb\), got {kind}"):
        run.fit(1, learner)


def test_nothing_is_read_from_the_device(learner: Learner, no_sync: Any) -> None:
    run = Runner(cbs=BatchTransform(both, during=None))
    with no_sync:
        assert run.fit(2, learner).outcome == "completed"


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((), {}, TypeError),
        ((both,), {"x": double}, TypeError),
        ((3,), {}, TypeError),
        ((), {"x": "double"}, TypeError),
        ((both,), {"during": "training"}, ValueError),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        BatchTransform(*arguments, **options)
