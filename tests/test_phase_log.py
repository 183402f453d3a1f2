"""Averages of what handlers log, against plain arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eventtrain import AvgStatsCallback, DataBunch, DataError, Learner, Runner, accuracy
from eventtrain.callbacks import Checkpoint
from eventtrain.phase_log import merged


@pytest.fixture
def uneven(learner: Learner) -> Learner:
    """Batches of 4, 4 and 1 rows in training; 4 and 2 in validation."""
    x, y = learner.data.train_ds.x[:9], learner.data.train_ds.y[:9]
    batches = [(x[0:4], y[0:4]), (x[4:8], y[4:8]), (x[8:9], y[8:9])]
    learner.data = DataBunch(batches, [(x[0:4], y[0:4]), (x[4:6], y[4:6])])
    return learner


def first(run: Any) -> Tensor:
    return run.xb[:, 0].mean()  # type: ignore[no-any-return]


def test_what_is_logged_is_averaged_over_the_samples_of_each_phase(uneven: Learner) -> None:
    run = Runner()
    run.on("after_loss", lambda run: run.log("first", first(run)))
    row = run.fit(1, uneven).history[0]
    x = torch.cat([xb for xb, _ in uneven.data.train_dl])[:, 0].double()
    assert row.keys() == {"epoch", "train_first", "valid_first"}
    assert row["train_first"] == pytest.approx(x.mean().item(), abs=1e-7)
    assert row["valid_first"] == pytest.approx(x[:6].mean().item(), abs=1e-7)


def test_the_averages_of_the_loss_are_the_same_as_those_of_the_callback(uneven: Learner) -> None:
    uneven.weight = lambda batch: batch[0].size(0) ** 2
    run = Runner(AvgStatsCallback(accuracy, report=None))
    run.on("after_loss", lambda run: run.log("own_loss", run.loss))
    for row in run.fit(2, uneven).history:
        for phase in ("train", "valid"):
            assert row[f"{phase}_own_loss"] == row[f"{phase}_loss"]


def test_a_weight_takes_the_place_of_that_of_the_loss(uneven: Learner) -> None:
    run = Runner()
    run.on("after_batch", lambda run: run.log("index", run.batch_index, weight=run.batch_index))
    row = run.fit(1, uneven).history[0]
    assert row["train_index"] == pytest.approx((0 * 0 + 1 * 1 + 2 * 2) / 3)


def test_a_weight_that_is_a_tensor_may_be_zero_for_a_value_that_is_nan(uneven: Learner) -> None:
    def log(run: Any) -> None:
        weight = torch.tensor(float(run.batch_index))
        run.log("late", torch.tensor(1.0) / weight - 1.0 / weight + run.batch_index, weight=weight)

    run = Runner()
    run.on("after_batch", log, during="train")
    assert run.fit(1, uneven).history[0]["train_late"] == pytest.approx((1 + 4) / 3)


def test_what_weighs_nothing_has_no_column(uneven: Learner) -> None:
    run = Runner()
    run.on("after_batch", lambda run: run.log("nothing", 1.0, weight=0))
    assert run.fit(1, uneven).history == [{"epoch": 0}]


def test_numbers_and_tensors_of_any_kind_are_averaged_under_one_name(uneven: Learner) -> None:
    values = iter([True, torch.tensor(True), torch.tensor([3])])
    run = Runner()
    run.on("after_batch", lambda run: run.log("mixed", next(values), 1), during="train")
    assert run.fit(1, uneven).history[0]["train_mixed"] == pytest.approx(5 / 3)


def test_a_value_that_is_changed_later_counts_as_it_was(uneven: Learner) -> None:
    value = torch.zeros(())

    def log(run: Any) -> None:
        run.log("value", value, weight=1)
        value.add_(1)

    run = Runner()
    run.on("after_batch", log, during="train")
    assert run.fit(1, uneven).history[0]["train_value"] == 1.0


def test_no_graph_is_kept(uneven: Learner) -> None:
    run = Runner()
    run.on("after_loss", lambda run: run.log("kept", run.loss), during="train")
    kept = []
    run.on("after_batch", lambda run: kept.append(run.phase_log.state()), during="train")
    run.fit(1, uneven)
    assert not any(total.requires_grad for state in kept for total, _ in state[0].values())


def test_it_is_there_when_others_hear_of_the_end_of_the_phase(uneven: Learner) -> None:
    run, found = Runner(), []
    run.on("after_batch", lambda run: run.log("one", 1.0))
    run.on(["after_train", "after_validate"], lambda run: found.append(dict(run.history[-1])))
    run.fit(1, uneven)
    assert found == [
        {"epoch": 0, "train_one": 1.0},
        {"epoch": 0, "train_one": 1.0, "valid_one": 1.0},
    ]


def test_a_validation_alone_has_it_in_its_row(uneven: Learner) -> None:
    run = Runner()
    run.on("after_batch", lambda run: run.log("one", 1.0))
    assert run.validate(uneven).history == [{"epoch": None, "valid_one": 1.0}]


def test_logging_makes_the_host_wait_for_nothing(uneven: Learner, no_sync: Any) -> None:
    run = Runner()
    run.on("after_loss", lambda run: run.log("own", run.loss))
    run.on("after_loss", lambda run: run.log("weighed", 1.0, run.loss.detach().exp()))
    for phase in ("train", "validate"):
        run.on(f"begin_{phase}", lambda run: no_sync.__enter__())
        run.on(f"after_{phase}", lambda run: no_sync.__exit__(), before="train_eval")
    assert run.fit(1, uneven).outcome == "completed"


def test_a_phase_that_was_cancelled_has_what_was_logged(uneven: Learner) -> None:
    def log(run: Any) -> None:
        run.log("index", run.batch_index, weight=1)
        if run.batch_index == 1:
            run.token.cancel("train", "enough")

    run = Runner()
    run.on("after_loss", log, during="train")
    assert run.fit(1, uneven).history[0]["train_index"] == 0.5


def test_a_phase_that_failed_has_no_column(uneven: Learner) -> None:
    run = Runner()
    run.on("after_loss", lambda run: run.log("one", 1.0))
    run.on("after_batch", lambda run: 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        run.fit(1, uneven)
    assert run.result is not None
    assert run.result.history == [{"epoch": 0}]


@pytest.mark.parametrize("event", ["begin_fit", "begin_epoch", "after_train", "after_fit"])
def test_outside_of_a_phase_it_is_an_error(uneven: Learner, event: str) -> None:
    run = Runner()
    run.on(event, lambda run: run.log("one", 1.0))
    with pytest.raises(RuntimeError, match=r"cannot here: call it between .*history\[-1\]"):
        run.fit(1, uneven)


def test_outside_of_a_run_it_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="cannot here"):
        Runner().log("one", 1.0)


def test_in_prediction_it_is_an_error(uneven: Learner) -> None:
    run = Runner()
    run.on("after_pred", lambda run: run.log("one", 1.0))
    with pytest.raises(RuntimeError, match="prediction, which has no row"):
        run.predict(uneven, uneven.data.valid_dl)


@pytest.mark.parametrize(
    ("name", "value", "weight", "error", "says"),
    [
        ("x", torch.ones(3), None, TypeError, r"got no single number but a tensor of shape \[3\]"),
        ("x", "1", None, TypeError, "no single number but str: log a mean"),
        ("x", None, None, TypeError, "NoneType"),
        ("x", 1.0, -1, ValueError, "at least 0 and finite, got -1"),
        ("x", 1.0, float("nan"), ValueError, "finite, got nan"),
        ("x", 1.0, torch.ones(2), TypeError, "a number or a tensor without dimensions"),
        ("x", 1.0, True, TypeError, "got True"),
        ("", 1.0, None, TypeError, "takes a name first"),
        (1.0, "x", None, TypeError, "takes a name first, a text, got 1.0"),
    ],
)
def test_what_cannot_be_averaged_is_an_error(
    uneven: Learner, name: Any, value: Any, weight: Any, error: type[Exception], says: str
) -> None:
    run = Runner()
    run.on("after_loss", lambda run: run.log(name, value, weight))
    with pytest.raises(error, match=says):
        run.fit(1, uneven)


def test_a_negative_weight_on_a_device_is_told_when_the_phase_has_ended(uneven: Learner) -> None:
    run = Runner()
    run.on("after_loss", lambda run: run.log("x", 1.0, torch.tensor(-1.0)))
    with pytest.raises(DataError, match=r"run.log\('x', ...\) was negative, NaN or infinite"):
        run.fit(1, uneven)


def test_where_there_is_no_batch_a_weight_must_be_given(uneven: Learner) -> None:
    run = Runner()
    run.on("begin_train", lambda run: run.log("start", 2.0))
    with pytest.raises(ValueError, match=r"no batch here: .*weight=1"):
        run.fit(1, uneven)
    run = Runner()
    run.on("begin_train", lambda run: run.log("start", 2.0, weight=1))
    assert run.fit(1, uneven).history[0]["train_start"] == 2.0


@pytest.mark.parametrize("name", ["loss", "accuracy"])
def test_a_name_of_the_averages_is_an_error(uneven: Learner, name: str) -> None:
    run = Runner(AvgStatsCallback(accuracy, report=None))
    run.on("begin_batch", lambda run: run.log(name, 1.0))
    with pytest.raises(ValueError, match=f"train_{name}', which <AvgStatsCallback 'avg_stats'>"):
        run.fit(1, uneven)


@pytest.mark.parametrize("event", ["begin_batch", "after_loss"])
def test_a_name_of_a_part_of_the_loss_is_an_error(uneven: Learner, event: str) -> None:
    mean = uneven.loss_func
    assert mean is not None
    uneven.loss_func = lambda pred, yb: {"loss": mean(pred, yb), "part": pred.mean()}
    run = Runner(AvgStatsCallback(report=None))
    run.on(event, lambda run: run.log("part", 1.0))
    with pytest.raises(ValueError, match="train_part"):
        run.fit(1, uneven)


def test_a_name_that_a_handler_wrote_to_the_row_is_an_error(uneven: Learner) -> None:
    run = Runner()
    run.on("begin_epoch", lambda run: run.history[-1].update(train_mine=1))
    run.on("after_loss", lambda run: run.log("mine", 1.0))
    with pytest.raises(ValueError, match=r"which run.history\[-1\] has"):
        run.fit(1, uneven)


def test_the_loss_may_be_logged_where_nobody_else_has_a_column_for_it(uneven: Learner) -> None:
    run = Runner()
    run.on("after_loss", lambda run: run.log("loss", run.loss))
    assert "valid_loss" in run.fit(1, uneven).history[0]


@pytest.mark.parametrize("stop", [("after_loss", 1), ("after_batch", 1), ("after_loss", 4)])
def test_a_resumed_phase_has_the_averages_of_one_that_was_not_interrupted(
    make_learner: Any, tmp_path: Path, stop: tuple[str, int]
) -> None:
    def fit(learn: Learner, *, stops: bool, resume: str | None = None) -> Runner:
        run = Runner(Checkpoint(tmp_path / "ck"))
        count = iter(range(100))
        run.on("begin_train", lambda run: run.log("started", 1.0, weight=1))
        run.on("after_loss", lambda run: run.log("own", run.loss), priority=10)

        def stop_here(run: Any) -> None:
            if stops and next(count) == stop[1]:
                run.token.cancel("fit", "killed")

        run.on(stop[0], stop_here, during="train")
        run.fit(2, learn, resume=resume)
        return run

    torch.manual_seed(0)
    whole = Runner()
    whole.on("begin_train", lambda run: run.log("started", 1.0, weight=1))
    whole.on("after_loss", lambda run: run.log("own", run.loss))
    learn = make_learner()
    start = {key: value.clone() for key, value in learn.model.state_dict().items()}
    whole.fit(2, learn)

    learn = make_learner()
    learn.model.load_state_dict(start)
    assert fit(learn, stops=True).history[-1].get("train_own") != whole.history[-1]["train_own"]
    learn = make_learner()
    assert fit(learn, stops=False, resume="auto").history == whole.history


def test_states_of_several_processes_are_added_up_also_where_their_names_differ() -> None:
    states = [[{"a": [1.0, 2.0], "b": [3.0, 1.0]}], [{"a": [2.0, 2.0], "c": [5.0, 1.0]}]]
    assert merged(states) == [{"a": [3.0, 4.0], "b": [3.0, 1.0], "c": [5.0, 1.0]}]


# Rows that are of the steps since the last validation


def by_steps(learn: Learner, **options: Any) -> list[dict[str, Any]]:
    run = Runner(options.pop("cbs", []))
    run.on("after_batch", lambda run: run.log("n", float(run.n_iter), weight=1), during="train")
    run.on("after_batch", lambda run: run.log("index", float(run.batch_index or 0), weight=1))
    stop = options.pop("stop", None)
    run.on(
        "after_batch",
        lambda run: run.token.cancel("fit") if run.n_iter == stop and run.in_train else None,
        priority=-1,
    )
    return run.fit(learn=learn, **options).history


def test_with_validate_every_training_is_averaged_since_the_last_validation(
    make_learner: Any,
) -> None:
    rows = by_steps(make_learner(train=3), steps=7, validate_every=2)
    assert [row["step"] for row in rows] == [2, 4, 6, 7]
    assert [row["train_n"] for row in rows] == [1.5, 3.5, 5.5, 7.0]
    assert [row["train_index"] for row in rows] == [0.5, 1.0, 1.5, 0.0]
    assert [row["valid_index"] for row in rows] == [0.5] * 4


def test_validate_now_without_it_leaves_the_training_of_the_epoch_as_it_is(
    make_learner: Any,
) -> None:
    run, found = Runner(), []
    run.on("after_batch", lambda run: run.log("n", float(run.n_iter), weight=1), during="train")
    run.on("after_batch", lambda run: run.log("index", float(run.batch_index), weight=1))
    run.on(
        "after_batch",
        lambda run: found.append(run.validate_now()),
        priority=-1,
        when=lambda run: run.in_train and run.n_iter == 2,
    )
    rows = run.fit(1, make_learner()).history
    assert found == [{"epoch": 0, "step": 2, "valid_index": 0.5}]
    assert rows == [{"epoch": 0, "train_n": 2.0, "train_index": 1.0, "valid_index": 0.5}]


def test_a_handler_may_log_again_in_the_event_in_which_it_has_validated(make_learner: Any) -> None:
    run = Runner()
    run.on("after_batch", lambda run: run.log("n", 1.0, weight=1), during="train", name="one")
    run.on(
        "after_batch", lambda run: run.validate_now() and None, during="train", priority=-1, every=2
    )
    run.on("after_batch", lambda run: run.log("n", 3.0, weight=1), during="train", priority=-2)
    rows = run.fit(steps=4, learn=make_learner(), validate_every=100).history
    assert [row["train_n"] for row in rows] == [(1 + 3 + 1) / 3, (3 + 1 + 3 + 1) / 4, 3.0][
        : len(rows)
    ]


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_resumed_fit_by_steps_has_the_same_rows(
    make_learner: Any, tmp_path: Path, stop: int
) -> None:
    torch.manual_seed(0)
    options = {"steps": 7, "validate_every": 2}
    whole = by_steps(make_learner(), **options)
    by_steps(make_learner(), cbs=[Checkpoint(tmp_path)], stop=stop, **options)
    rows = by_steps(make_learner(), cbs=[Checkpoint(tmp_path)], resume="auto", **options)
    assert rows == whole
