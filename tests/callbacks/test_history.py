"""Rows over several fits, against what the runs themselves reported."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from eventtrain import AvgStatsCallback, Learner, Runner, accuracy
from eventtrain.callbacks import History

Make = Callable[..., Learner]


def metrics() -> AvgStatsCallback:
    return AvgStatsCallback(accuracy, report=None)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_rows_of_several_fits_are_kept(learner: Learner) -> None:
    history = History()
    run = Runner([metrics(), history])
    first = run.fit(2, learner).history
    second = run.fit(1, learner).history
    rows = history.to_dicts()
    assert [(row["fit"], row["epoch"]) for row in rows] == [(0, 0), (0, 1), (1, 0)]
    for row, expected in zip(rows, [*first, *second], strict=True):
        assert {name: row[name] for name in expected} == expected


def test_the_runner_shows_it_beside_its_own_history(learner: Learner) -> None:
    history = History()
    run = Runner(history)
    run.fit(1, learner)
    assert run.history_table is history
    assert run.history == [{"epoch": 0}]


def test_rows_say_how_the_epoch_went(learner: Learner) -> None:
    history = History()
    run = Runner(history)
    run.on("begin_train", lambda run: run.token.cancel("fit"), when=lambda run: run.epoch == 1)
    run.fit(3, learner)
    assert [row["outcome"] for row in history.to_dicts()] == ["completed", "cancelled"]
    assert all(row["seconds"] > 0 for row in history.to_dicts())


def test_rows_of_batches_are_those_of_a_loop_by_hand(make_learner: Make) -> None:
    history, expected = History(batches=True), make_learner()
    learner = make_learner()
    Runner(history).fit(1, learner)
    losses = []
    for xb, yb in expected.data.train_dl:
        loss = expected.loss_func(expected.model(xb), yb)
        losses.append(loss.item())
        loss.backward()
        expected.opt.step()
        expected.opt.zero_grad()
    rows = history.to_dicts("batches")
    assert [row["loss"] for row in rows] == losses
    assert [(row["batch"], row["n_iter"], row["lr"]) for row in rows] == [
        (0, 0, 0.1),
        (1, 1, 0.1),
        (2, 2, 0.1),
    ]
    assert torch.equal(learner.model.weight, expected.model.weight)


def test_nothing_is_read_in_a_batch(learner: Learner, no_sync: Any) -> None:
    history = History(batches=True)
    run = Runner(history)
    run.on("begin_train", lambda run: no_sync.__enter__())
    run.on("after_train", lambda run: no_sync.__exit__())
    run.fit(1, learner)
    assert len(history.to_dicts("batches")) == 3


def test_a_loss_that_cancels_its_batch_has_a_row(learner: Learner) -> None:
    history = History(batches=True)
    run = Runner(history)
    run.on("after_loss", lambda run: run.token.cancel("batch"), priority=-50, during="train")
    run.fit(1, learner)
    assert [row["batch"] for row in history.to_dicts("batches")] == [0, 1, 2]


def test_a_loss_changed_in_place_later_is_kept_as_it_was(make_learner: Make) -> None:
    plain, changed = History(batches=True), History(batches=True)
    Runner(plain).fit(1, make_learner())
    run = Runner(changed)
    run.on("after_batch", lambda run: run.loss.detach().zero_(), during="train")
    run.fit(1, make_learner())
    losses = [[row["loss"] for row in each.to_dicts("batches")] for each in (plain, changed)]
    assert losses[0] == losses[1]


def test_batches_are_counted_over_the_epochs(learner: Learner) -> None:
    history = History(batches=True)
    Runner(history).fit(2, learner)
    rows = history.to_dicts("batches")
    assert [(row["epoch"], row["batch"]) for row in rows] == [
        (e, b) for e in (0, 1) for b in range(3)
    ]
    assert [row["n_iter"] for row in rows] == [0, 1, 2, 3, 4, 5]


def test_changing_what_it_returns_changes_nothing(learner: Learner) -> None:
    history = History()
    Runner(history).fit(1, learner)
    history.to_dicts()[0].clear()
    assert history.to_dicts()[0]["epoch"] == 0


def test_a_validation_alone_has_a_row_without_fit(learner: Learner) -> None:
    history = History()
    run = Runner([metrics(), history])
    result = run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    (row,) = history.to_dicts()
    assert (row["fit"], row["epoch"]) == (None, None)
    assert row["valid_loss"] == result.history[0]["valid_loss"]


def test_values_are_plain(learner: Learner) -> None:
    history = History()
    run = Runner(history)

    @run.on("after_epoch")
    def strange(run: Runner) -> None:
        run.history[-1].update(tensor=torch.tensor(2.5), text=ValueError("x"), gone=None)

    run.fit(1, learner)
    row = history.to_dicts()[0]
    assert (row["tensor"], row["text"], row["gone"]) == (2.5, "x", None)


def test_a_fit_of_no_epochs_has_no_rows(learner: Learner) -> None:
    history = History()
    Runner(history).fit(0, learner)
    assert history.to_dicts() == []


def test_batches_that_were_not_kept_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"History\(batches=True\)"):
        History().to_dicts("batches")


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="'steps'"):
        History().to_dicts("steps")  # type: ignore[arg-type]


def test_batches_must_be_a_flag() -> None:
    with pytest.raises(TypeError, match="3"):
        History(batches=3)  # type: ignore[arg-type]


def test_a_resumed_run_has_the_rows_of_an_uninterrupted_one(make_learner: Make) -> None:
    whole = History(batches=True)
    Runner([metrics(), whole]).fit(2, make_learner())
    first, second, learner = History(batches=True), History(batches=True), make_learner()
    Runner([metrics(), first]).fit(1, learner)
    state = through_a_file(first.state_dict())
    run = Runner([metrics(), second])
    run.on("begin_fit", lambda run: second.load_state_dict(state), priority=-100)
    run.fit(1, learner)
    assert [r["loss"] for r in second.to_dicts("batches")] == [
        r["loss"] for r in whole.to_dicts("batches")
    ]
    names = ("fit", "train_loss", "valid_loss", "valid_accuracy")
    assert [[row[n] for n in names] for row in second.to_dicts()] == [
        [row[n] for n in names] for row in whole.to_dicts()
    ]


def test_a_table_has_a_row_an_epoch_and_gaps_where_nothing_was_measured(learner: Learner) -> None:
    pytest.importorskip("pandas", reason="needs pandas (extra 'watch')")
    history = History()
    run = Runner([metrics(), history])
    run.on("after_epoch", lambda run: run.history[-1].update(late=1.0), once=True)
    run.fit(2, learner)
    table = history.to_pandas()
    assert list(table["epoch"]) == [0, 1]
    assert table["late"][0] == 1.0 and math.isnan(table["late"][1])


def test_without_pandas_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r'pandas: pip install "eventtrain\[watch\]"'):
        History().to_pandas()


def test_a_resumed_fit_keeps_its_number(learner: Learner) -> None:
    first, second = History(), History()
    run = Runner(first)
    run.fit(1, learner)
    run.fit(1, learner)
    state = through_a_file(first.state_dict())
    run = Runner(second)
    run.on("begin_fit", lambda run: second.load_state_dict(state), priority=-100)
    run.fit(1, learner)
    assert [row["fit"] for row in second.to_dicts()] == [0, 1, 1]


def test_validations_within_a_fit_are_its_rows(learner: Learner) -> None:
    history = History()
    run = Runner([AvgStatsCallback(report=None), history])
    result = run.fit(steps=4, learn=learner, validate_every=3)
    rows = history.to_dicts()
    assert [(row["fit"], row["step"], row["outcome"]) for row in rows] == [
        (0, 3, "completed"), (0, 4, "completed")
    ]  # fmt: skip
    assert [row["valid_loss"] for row in rows] == [row["valid_loss"] for row in result.history]
