"""Rows of the history by epochs and by validations, and validations within a fit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from eventtrain import (
    AvgStatsCallback,
    Callback,
    DataBunch,
    DataError,
    Learner,
    Runner,
    load_checkpoint,
)
from eventtrain.callbacks import (
    EMA,
    Checkpoint,
    EarlyStopping,
    EventLog,
    GradientAccumulation,
    JSONLLogger,
    LabelSmoothing,
    LRFinder,
    MixedPrecision,
    Throughput,
    Timing,
    ToDevice,
)
from eventtrain.checkpoints.files import list_checkpoints
from eventtrain.errors import CheckpointError
from eventtrain.reports.replay import replay

Make = Callable[..., Learner]
Row = dict[str, Any]


def loaders(rows: int = 16) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows + 8, 5, generator=generator)
    y = torch.randint(0, 3, (len(x),), generator=generator)
    train = DataLoader(TensorDataset(x[:rows], y[:rows]), batch_size=4, shuffle=True)
    return train, DataLoader(TensorDataset(x[rows:], y[rows:]), batch_size=4)


def learner_with_dropout() -> Learner:
    """Whose losses hang on every random number that is drawn."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Learner(model, opt, nn.functional.cross_entropy, DataBunch(*loaders()))


def mean(losses: list[Tensor]) -> float:
    """As AvgStats has it: in float64, each batch with its four samples."""
    total = sum((loss.detach().double() * 4 for loss in losses), torch.zeros(()).double())
    return float(total / (4 * len(losses)))


def by_hand(steps: int, every: int) -> tuple[list[Tensor], list[Row]]:
    """Train for so many steps with a validation after every so many, and one at the end."""
    learner = learner_with_dropout()
    model, opt, rows = learner.model, learner.opt, []
    taken, new = 0, []

    def validate(epoch: int) -> None:
        model.eval()
        with torch.no_grad():
            losses = [learner.loss_func(model(xb), yb) for xb, yb in learner.data.valid_dl]
        model.train()
        row = {"epoch": epoch, "step": taken, "train_loss": mean(new), "valid_loss": mean(losses)}
        rows.append(row)
        new.clear()

    for epoch in itertools.count():
        for xb, yb in learner.data.train_dl:
            loss = learner.loss_func(model(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
            new.append(loss)
            taken += 1
            if taken == steps:
                validate(epoch)
                return list(model.parameters()), rows
            if taken % every == 0:
                validate(epoch)
    raise AssertionError


def are_equal(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("steps", "every"), [(7, 2), (8, 4), (6, 3), (5, 9), (4, 1)])
def test_it_trains_and_validates_as_a_loop_by_hand_does(steps: int, every: int) -> None:
    weights, rows = by_hand(steps, every)
    learner = learner_with_dropout()
    run = Runner(AvgStatsCallback(report=None))
    result = run.fit(steps=steps, learn=learner, validate_every=every)
    assert result.outcome == "completed"
    assert result.history == rows
    assert are_equal(learner.model.parameters(), weights)


def test_a_fit_by_epochs_has_the_same_rows(make_learner: Make) -> None:
    by_steps = Runner(AvgStatsCallback(report=None))
    expected = by_steps.fit(steps=6, learn=make_learner(), validate_every=2)
    by_epochs = Runner(AvgStatsCallback(report=None))
    result = by_epochs.fit(2, make_learner(), validate_every=2)
    assert [row["step"] for row in result.history] == [2, 4, 6]
    assert result.history == expected.history


def test_rows_of_epochs_are_what_they_were(learner: Learner) -> None:
    result = Runner(AvgStatsCallback(report=None)).fit(2, learner)
    keys = ["epoch", "train_loss", "valid_loss"]
    assert [list(row) for row in result.history] == [keys, keys]


# after_row


def told(run: Runner) -> list[Any]:
    """What handlers of after_row see: the row, and how what completed it has ended."""
    seen: list[Any] = []
    run.on("after_row", lambda run: seen.append((dict(run.history[-1]), run.outcome)))
    return seen


def test_a_row_is_told_of_once_when_it_is_complete(learner: Learner) -> None:
    run = Runner(AvgStatsCallback(report=None))
    seen = told(run)
    result = run.fit(2, learner)
    assert seen == [(row, "completed") for row in result.history]


def test_a_row_of_a_validation_is_told_of_once(learner: Learner) -> None:
    run = Runner(AvgStatsCallback(report=None))
    seen = told(run)
    result = run.fit(steps=5, learn=learner, validate_every=2)
    assert seen == [(row, "completed") for row in result.history]
    assert [row["step"] for row, _ in seen] == [2, 4, 5]


def test_an_epoch_without_a_validation_has_a_row_too(make_learner: Make) -> None:
    run = Runner(AvgStatsCallback(report=None))
    seen = told(run)
    run.fit(2, make_learner(valid=0))
    assert [list(row) for row, _ in seen] == [["epoch", "train_loss"]] * 2


def test_an_epoch_that_was_cancelled_is_told_of_with_its_outcome(learner: Learner) -> None:
    run = Runner()
    seen = told(run)
    run.on("begin_train", lambda run: run.token.cancel("epoch", "no"), when=lambda r: r.epoch == 0)
    run.fit(2, learner)
    assert seen == [({"epoch": 0}, "cancelled"), ({"epoch": 1}, "completed")]


def test_it_comes_when_all_handlers_of_the_epoch_have_written(learner: Learner) -> None:
    run = Runner()
    seen = told(run)
    run.on("after_epoch", lambda run: run.history[-1].update(mine=1), priority=-2000)
    run.fit(1, learner)
    assert seen == [({"epoch": 0, "mine": 1}, "completed")]


def test_an_epoch_that_failed_gives_no_row_to_tell_of(learner: Learner) -> None:
    run = Runner()
    seen = told(run)
    run.on("after_loss", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    assert seen == []


@pytest.mark.parametrize("kwargs", [{}, {"validate_every": 2}])
def test_a_fit_can_be_cancelled_there(kwargs: Any, make_learner: Make) -> None:
    run, others = Runner(), []
    run.on("after_row", lambda run: run.token.cancel("fit", "enough"))
    run.on("after_row", lambda run: others.append(run.steps))
    result = run.fit(5, make_learner(), **kwargs)
    assert (result.outcome, result.reason, others) == ("cancelled", "enough", [result.steps])


def test_the_last_row_can_be_cancelled_in_too(learner: Learner) -> None:
    run = Runner()
    run.on("after_row", lambda run: run.token.cancel("fit", "enough"))
    assert run.fit(1, learner).outcome == "cancelled"


@pytest.mark.parametrize("kwargs", [{}, {"validate_every": 2}])
def test_all_its_handlers_run_when_one_fails(kwargs: Any, make_learner: Make) -> None:
    run, others = Runner(), []
    run.on("after_row", lambda run: 1 / 0)
    run.on("after_row", lambda run: others.append(run.steps))
    with pytest.raises(ZeroDivisionError) as error:
        run.fit(5, make_learner(), **kwargs)
    assert len(others) == 1
    assert "'after_row'" in str(error.value.__notes__)


# Rows by validations


def test_a_fit_that_ends_in_between_has_the_rows_that_are_complete(learner: Learner) -> None:
    run = Runner(AvgStatsCallback(report=None))
    run.on("after_step", lambda run: run.token.cancel("fit", "x"), when=lambda run: run.steps == 3)
    result = run.fit(2, learner, validate_every=2)
    assert [row["step"] for row in result.history] == [2]


@pytest.mark.parametrize("kwargs", [{"epochs": 2}, {"steps": 6}])
def test_a_fit_that_fails_in_its_first_batch_has_none(kwargs: Any, learner: Learner) -> None:
    run = Runner(AvgStatsCallback(report=None))
    run.on("after_loss", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.fit(**kwargs, learn=learner, validate_every=2)
    assert run.result is not None and run.result.history == []


def test_a_step_is_validated_once_where_the_last_one_falls_on_it(learner: Learner) -> None:
    run, validations = Runner(), []
    run.on("begin_validate", lambda run: validations.append(run.steps))
    run.fit(2, learner, validate_every=3)
    run.fit(steps=6, learn=learner, validate_every=3)
    assert validations == [3, 6, 3, 6]


def test_there_must_be_something_to_validate_on(make_learner: Make) -> None:
    run, fired = Runner(), []
    run.on("begin_fit", lambda run: fired.append(1))
    with pytest.raises(DataError, match=r"validate_every=2 has nothing to validate on"):
        run.fit(1, make_learner(valid=0), validate_every=2)
    assert fired == []


@pytest.mark.parametrize(("every", "kind"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_a_senseless_number_of_steps_is_refused(
    every: Any, kind: type[Exception], learner: Learner
) -> None:
    with pytest.raises(kind, match="validate_every must be"):
        Runner().fit(1, learner, validate_every=every)


@settings(max_examples=25)
@given(
    group=st.integers(1, 3),
    every=st.integers(1, 4),
    steps=st.integers(1, 9),
    skipped=st.sets(st.integers(0, 8), max_size=4),
)
def test_validations_fall_behind_the_steps_that_were_taken(
    group: int, every: int, steps: int, skipped: set[int]
) -> None:
    run = Runner([GradientAccumulation(group), AvgStatsCallback(report=None)])
    learner = learner_with_dropout()
    run.on(
        "begin_batch",
        lambda run: run.token.cancel("batch"),
        when=lambda run: run.in_train and run.n_iter in skipped,
    )
    seen = told(run)
    result = run.fit(steps=steps, learn=learner, validate_every=every)
    expected = [*range(every, steps, every), steps]
    assert [row["step"] for row in result.history] == expected
    assert [row["step"] for row, _ in seen] == expected
    assert all("train_loss" in row and "valid_loss" in row for row in result.history)


# What a validation in between leaves as it was


class Watch(Callback):
    """Compares the run before and after each validation that comes in between."""

    fields = ("phase", "in_train", "iters", "batch_index", "batch", "xb", "yb", "pred", "loss")

    def __init__(self) -> None:
        self.compared = 0

    def look(self, run: Any) -> list[Any]:
        found = [getattr(run, name) for name in self.fields]
        modes = [module.training for module in run.model.modules()]
        return [*found, dict(run.losses), run.weight, torch.is_grad_enabled(), modes]

    def after_batch(self, run: Runner) -> None:
        if run.in_train:
            before = self.look(run)
            run.validate_now()
            after = self.look(run)
            assert all(a is b or a == b for a, b in zip(before, after, strict=True))
            self.compared += 1


def test_everything_stands_where_it_stood(learner: Learner) -> None:
    loss = learner.loss_func
    learner.loss_func = lambda pred, yb: {"loss": loss(pred, yb), "part": pred.sum()}
    learner.model = nn.Sequential(learner.model, nn.BatchNorm1d(3))
    learner.model[1].eval()
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    watch = Watch()
    Runner([watch, AvgStatsCallback(report=None)]).fit(2, learner)
    assert watch.compared == 6


def test_training_goes_on_as_if_nothing_had_been(make_learner: Make) -> None:
    plain, asked = make_learner(), make_learner()
    expected = Runner(AvgStatsCallback(report=None)).fit(2, plain)
    run = Runner([AvgStatsCallback(report=None), Watch()])
    result = run.fit(2, asked)
    assert are_equal(plain.model.parameters(), asked.model.parameters())
    assert result.history == expected.history


def test_validate_now_returns_what_was_measured(learner: Learner) -> None:
    run, found = Runner(AvgStatsCallback(report=None)), []
    run.on("after_train", lambda run: found.append(run.validate_now()))
    result = run.fit(2, learner)
    expected = [(row["epoch"], row["valid_loss"]) for row in result.history]
    assert [(row["epoch"], row["valid_loss"]) for row in found] == expected
    assert [row["step"] for row in found] == [3, 6]


def test_with_a_number_that_is_never_reached_validate_now_alone_says_when(
    learner: Learner,
) -> None:
    run = Runner(AvgStatsCallback(report=None))
    asked = {2, 5}
    run.on(
        "after_batch",
        lambda run: run.validate_now(),
        when=lambda r: r.in_train and r.steps in asked,
    )
    result = run.fit(2, learner, validate_every=1_000_000)
    assert [row["step"] for row in result.history] == [2, 5, 6]
    assert all("train_loss" in row for row in result.history)


WRONG_PLACES = ["begin_fit", "begin_batch", "after_loss", "after_step", "begin_validate"]
WRONG_PLACES += ["after_validate", "after_epoch", "after_row", "after_fit"]


@pytest.mark.parametrize("event", WRONG_PLACES)
def test_where_it_cannot_be_called_it_says_where_it_can(event: str, learner: Learner) -> None:
    run = Runner()
    run.on(event, lambda run: run.validate_now())
    with pytest.raises(RuntimeError, match=r"validate_now was called .* after_batch of a training"):
        run.fit(1, learner)


@pytest.mark.parametrize("event", ["after_row", "after_validate", "after_batch"])
def test_a_validation_in_between_is_not_called_from_itself(event: str, learner: Learner) -> None:
    run = Runner()
    run.on(event, lambda run: run.validate_now(), when=lambda run: run.in_interlude)
    with pytest.raises(RuntimeError, match="validate_now was called"):
        run.fit(1, learner, validate_every=1)


def test_without_a_fit_it_says_what_validates(learner: Learner) -> None:
    run = Runner()
    with pytest.raises(RuntimeError, match=r"outside of a fit.*run\.validate\(learn\)"):
        run.validate_now()
    run.on("begin_validate", lambda run: run.validate_now())
    with pytest.raises(RuntimeError, match="inside of validate"):
        run.validate(learner)


@pytest.mark.parametrize("event", ["begin_epoch", "begin_train", "after_train", "after_batch"])
def test_it_may_be_called_outside_of_batches(event: str, make_learner: Make) -> None:
    plain, learner = make_learner(), make_learner()
    expected = Runner(AvgStatsCallback(report=None)).fit(2, plain)
    run, rows = Runner(AvgStatsCallback(report=None)), []
    run.on(event, lambda run: rows.append(run.validate_now()), when=lambda r: r.phase != "validate")
    result = run.fit(2, learner)
    assert rows and all(list(row) == ["epoch", "step", "valid_loss"] for row in rows)
    assert result.history == expected.history
    assert are_equal(plain.model.parameters(), learner.model.parameters())


def test_a_learner_without_a_validation_loader_is_told_so(make_learner: Make) -> None:
    run = Runner()
    run.on("after_batch", lambda run: run.validate_now())
    with pytest.raises(DataError, match="no validation loader"):
        run.fit(1, make_learner(valid=0))


# Cancelled in between


@pytest.mark.parametrize(
    "event", ["begin_validate", "begin_batch", "after_loss", "after_batch", "after_validate"]
)
@pytest.mark.parametrize("scope", ["train", "epoch", "fit"])
def test_a_validation_in_between_can_be_left_for_what_is_around_it(
    scope: str, event: str, learner: Learner
) -> None:
    run = Runner(AvgStatsCallback(report=None))
    run.on(
        event,
        lambda run: run.token.cancel(scope, "x"),
        when=lambda run: run.in_interlude,
        once=True,
    )
    modes: list[Any] = []
    run.on("after_train", lambda run: modes.append((run.phase, run.in_train, run.model.training)))
    result = run.fit(2, learner, validate_every=1)
    assert modes[0] == ("train", True, True)
    assert result.outcome == ("cancelled" if scope == "fit" else "completed")
    # That of the first step has not been completed.
    assert [row["step"] for row in result.history if row["step"] == 1] == []


def test_a_validation_that_is_cancelled_alone_gives_the_row_that_it_got_to(
    learner: Learner,
) -> None:
    run = Runner(AvgStatsCallback(report=None))
    seen = told(run)
    run.on("after_batch", lambda run: run.token.cancel("validate"), when=lambda r: r.in_interlude)
    run.fit(1, learner, validate_every=2)
    assert [(row["step"], outcome) for row, outcome in seen] == [(2, "cancelled"), (3, "completed")]


def test_a_batch_that_was_cancelled_is_known_as_such_after_a_validation(learner: Learner) -> None:
    run, outcomes = Runner(), []
    run.on("after_loss", lambda run: run.token.cancel("batch"), during="train")
    run.on("after_batch", lambda run: run.validate_now(), during="train")
    run.on(
        "after_batch",
        lambda run: outcomes.append((run.outcome, run.scope.batch.outcome)),
        during="train",
        priority=-1,
    )
    run.fit(1, learner)
    assert outcomes == [("cancelled", "cancelled")] * 3


def test_a_failure_in_a_validation_in_between_is_one_of_the_fit(learner: Learner) -> None:
    run, closed = Runner(), []
    run.on("after_loss", lambda run: 1 / 0, when=lambda run: run.in_interlude)
    run.on(
        ["fit_failed", "after_validate", "after_train", "after_fit"],
        lambda run: closed.append(run.outcome),
    )
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner, validate_every=1)
    assert closed == ["failed"] * 4


def test_a_stop_iteration_of_a_handler_does_not_pass_for_the_end_of_the_loader(
    learner: Learner,
) -> None:
    def stop(run: Any) -> None:
        raise StopIteration

    run = Runner()
    run.on("after_loss", stop, when=lambda run: run.in_interlude)
    with pytest.raises(RuntimeError, match="a handler raised StopIteration"):
        run.fit(1, learner, validate_every=1)


# With others of the kit


def test_averages_of_weights_are_validated_in_between_and_leave(make_learner: Make) -> None:
    learner, ema = make_learner(), EMA(0.5)
    seen: list[Any] = []

    class Compare(Callback):
        def begin_validate(self, run: Runner) -> None:
            validated = [p.detach().clone() for p in run.model.parameters()]
            seen.append(are_equal(validated, list(ema._average.tensors.values())))

        def begin_batch(self, run: Runner) -> None:
            if run.in_train and run.steps > 1:
                averages = list(ema._average.tensors.values())
                seen.append(not are_equal(list(run.model.parameters()), averages))

    Runner([ema, Compare()]).fit(2, learner, validate_every=2)
    assert seen == [True] * 7


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_precision_goes_on_after_a_validation_in_between(dtype: Any, make_learner: Make) -> None:
    plain, asked = make_learner(), make_learner()
    Runner([MixedPrecision(dtype), GradientAccumulation(2)]).fit(3, plain)
    run = Runner([MixedPrecision(dtype), GradientAccumulation(2)])
    run.on("after_batch", lambda run: run.validate_now(), during="train")
    run.fit(3, asked)
    assert are_equal(plain.model.parameters(), asked.model.parameters())


def test_precision_watches_the_batches_after_a_validation_in_between(learner: Learner) -> None:
    run = Runner(MixedPrecision("bf16"))
    run.on("after_batch", lambda run: run.validate_now(), during="train")

    @run.on("after_pred", during="train", when=lambda run: run.n_iter > 0)
    def step_too_early(run: Runner) -> None:
        with run.mixed_precision.autocast():
            run.model(run.xb).sum().backward()
        run.mixed_precision._enter()
        run.opt.step()

    with pytest.raises(RuntimeError, match="a step begins while autocast is on"):
        run.fit(1, learner)


def test_smoothing_is_left_out_in_between_and_goes_on(make_learner: Make) -> None:
    plain, asked = make_learner(), make_learner()
    expected = Runner([LabelSmoothing(0.3), AvgStatsCallback(report=None)]).fit(1, plain)
    run = Runner([LabelSmoothing(0.3), AvgStatsCallback(report=None)])
    result = run.fit(1, asked, validate_every=1)
    assert are_equal(plain.model.parameters(), asked.model.parameters())
    assert result.history[-1]["valid_loss"] == expected.history[-1]["valid_loss"]
    assert asked.loss_func is nn.functional.cross_entropy


def test_loaders_that_copy_ahead_are_put_back_each_in_its_turn(learner: Learner) -> None:
    train_dl, valid_dl = learner.data.train_dl, learner.data.valid_dl
    run = Runner(ToDevice())
    assert run.fit(2, learner, validate_every=2).steps == 6
    assert (learner.data.train_dl, learner.data.valid_dl) == (train_dl, valid_dl)


def test_the_time_of_a_validation_in_between_is_none_of_the_training(learner: Learner) -> None:
    timing, throughput = Timing(), Throughput()
    run = Runner([timing, throughput])
    run.fit(1, learner, validate_every=1)
    assert [(row["phase"], row["batches"]) for row in timing.rows] == [
        ("validate", 2), ("validate", 2), ("validate", 2), ("train", 3)
    ]  # fmt: skip
    train = timing.rows[-1]
    assert train["total"] >= sum(train[part] for part in ("data", "forward", "loss", "backward"))


# Going on from a checkpoint


def saving(folder: Path, *cbs: Any, every_steps: int | None = 1, **options: Any) -> Runner:
    checkpoint = Checkpoint(folder, every_steps=every_steps, keep_last=100, **options)
    jsonl = JSONLLogger(folder.parent / f"{folder.name}.jsonl")
    return Runner([checkpoint, AvgStatsCallback(report=None), EMA(0.5), jsonl, *cbs])


def lines_of(path: Path) -> list[str]:
    """The lines of a log, less what they say of time."""
    return [line.partition(', "seconds"')[0] for line in path.read_text().splitlines()]


@pytest.mark.slow
@settings(max_examples=40)
@given(
    at=st.integers(0, 12),
    event=st.sampled_from(
        ["begin_batch", "after_loss", "begin_validate", "after_validate", "after_row",
         "after_batch", "begin_step"]
    ),
    every=st.integers(1, 5),
    monitor=st.sampled_from([None, "valid_loss"]),
    every_steps=st.sampled_from([None, 1]),
)  # fmt: skip
def test_a_fit_that_is_cancelled_anywhere_goes_on_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    at: int,
    event: str,
    every: int,
    monitor: Any,
    every_steps: Any,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    options = {"monitor": monitor, "every_steps": every_steps}
    whole, learner = saving(folder / "whole", **options), learner_with_dropout()
    expected = whole.fit(steps=7, learn=learner, validate_every=every)
    calls = itertools.count()
    cut, other = saving(folder / "cut", **options), learner_with_dropout()
    cut.on(event, lambda run: run.token.cancel("fit", "now"), when=lambda run: next(calls) == at)
    cut.fit(steps=7, learn=other, validate_every=every)
    again, third = saving(folder / "cut", **options), learner_with_dropout()
    result = again.fit(steps=7, learn=third, resume="auto", validate_every=every)
    assert (result.outcome, result.steps) == ("completed", 7)
    assert result.history == expected.history
    assert are_equal(third.model.state_dict().values(), learner.model.state_dict().values())
    rows = [line for line in lines_of(folder / "cut.jsonl") if "after_row" in line]
    assert rows == [line for line in lines_of(folder / "whole.jsonl") if "after_row" in line]


@settings(max_examples=20)
@given(
    at=st.integers(0, 10),
    event=st.sampled_from(["begin_batch", "after_loss", "begin_validate", "after_row"]),
    group=st.integers(1, 2),
    every=st.integers(1, 3),
)
def test_so_does_one_whose_validations_are_asked_for_in_after_batch(
    tmp_path_factory: pytest.TempPathFactory, at: int, event: str, group: int, every: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")

    def run_in(name: str) -> Runner:
        run = saving(folder / name, GradientAccumulation(group))
        run.on(
            "after_batch",
            lambda run: run.validate_now(),
            when=lambda run: run.in_train and (run.batch_index + 1) % every == 0,
        )
        return run

    whole, learner = run_in("whole"), learner_with_dropout()
    whole.fit(steps=6, learn=learner, validate_every=1_000_000)
    calls = itertools.count()
    cut, other = run_in("cut"), learner_with_dropout()
    cut.on(event, lambda run: run.token.cancel("fit", "now"), when=lambda run: next(calls) == at)
    cut.fit(steps=6, learn=other, validate_every=1_000_000)
    again, third = run_in("cut"), learner_with_dropout()
    result = again.fit(steps=6, learn=third, resume="auto", validate_every=1_000_000)
    assert (result.outcome, result.steps) == ("completed", 6)
    assert are_equal(third.model.state_dict().values(), learner.model.state_dict().values())


def test_a_checkpoint_of_the_best_row_holds_the_weights_that_gave_its_number(
    tmp_path: Path,
) -> None:
    learner = learner_with_dropout()
    checkpoint = Checkpoint(tmp_path, monitor="valid_loss", keep_last=1)
    ema = EMA(0.5)
    run = Runner([checkpoint, AvgStatsCallback(report=None), ema])
    result = run.fit(steps=9, learn=learner, validate_every=2)
    best = min(row["valid_loss"] for row in result.history)
    assert checkpoint.best is not None
    content = torch.load(checkpoint.best, weights_only=True)
    learner.model.load_state_dict(content["model"])
    again = Runner(AvgStatsCallback(report=None)).validate(learner)
    assert again.history[0]["valid_loss"] == pytest.approx(best)


def test_early_stopping_counts_validations(learner: Learner) -> None:
    for group in learner.opt.param_groups:
        group["lr"] = 0.0
    stopping = EarlyStopping(patience=2)
    run = Runner([AvgStatsCallback(report=None), stopping])
    result = run.fit(steps=50, learn=learner, validate_every=2)
    assert (result.outcome, result.steps) == ("cancelled", 6)
    assert str(result.reason).endswith("(step 2) for 2 validations")
    assert (stopping.best_epoch, stopping.best_step) == (0, 2)


@pytest.mark.parametrize(("saved", "own"), [(None, 2), (2, None)])
def test_a_history_of_other_rows_is_refused(saved: Any, own: Any, tmp_path: Path) -> None:
    saving(tmp_path / "cut").fit(1, learner_with_dropout(), validate_every=saved)
    with pytest.raises(CheckpointError, match="rows in its history that are"):
        saving(tmp_path / "cut").fit(2, learner_with_dropout(), resume="auto", validate_every=own)


def test_an_exception_in_after_row_shows_nothing_of_how_the_fit_is_left(learner: Learner) -> None:
    run = Runner()
    run.on("after_epoch", lambda run: run.token.cancel("fit", "enough"))
    run.on("after_row", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError) as error:
        run.fit(2, learner)
    assert error.value.__context__ is None


def test_of_a_row_that_several_checkpoints_hold_one_is_among_the_best(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, monitor="mine", keep_best=2, keep_last=1)
    run, values = Runner(checkpoint), {1: 3.0, 2: 2.0, 3: 4.0, 4: 1.0}
    run.on("after_validate", lambda run: run.history[-1].update(mine=values[run.steps]))
    run.on("after_batch", lambda run: run.validate_now(), during="train")
    run.fit(steps=4, learn=learner_with_dropout(), validate_every=1_000_000)
    # That of the last step is saved behind its batch, and at the end of the epoch.
    assert [record.steps for record in list_checkpoints(tmp_path)] == [2, 4, 4]
    assert checkpoint.best is not None
    assert load_checkpoint(checkpoint.best)["counters"]["steps"] == 4


def test_a_log_of_a_fit_with_validations_within_can_be_replayed(
    learner: Learner, tmp_path: Path
) -> None:
    Runner(EventLog(tmp_path / "log")).fit(steps=4, learn=learner, validate_every=2)
    picture = replay(tmp_path / "log").splitlines()
    indents = {line.split()[0]: len(line) - len(line.lstrip()) for line in reversed(picture)}
    assert indents["begin_validate"] == indents["after_row"] == indents["begin_train"] + 2


def test_a_range_test_goes_on_to_its_end_without_validating(learner: Learner) -> None:
    finder = LRFinder(steps=10, check_every=1)
    run = Runner([finder, AvgStatsCallback(report=None)])
    run.fit(steps=10, learn=learner, validate_every=2)
    assert len(finder.losses) > 5
