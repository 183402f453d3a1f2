"""Averages against plain arithmetic, and the table that people read."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eventtrain import AvgStats, AvgStatsCallback, Callback, DataBunch, Learner, Runner, accuracy
from eventtrain.priorities import METRICS

torchmetrics = pytest.importorskip("torchmetrics", reason="needs torchmetrics (extra 'test')")


class Frozen(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        """Leave the weights as they are, so that averages can be computed afterwards."""


def uneven(learner: Learner) -> Learner:
    """Batches of 4, 4 and 1 rows in training; 4 and 2 in validation; weights stay put."""
    x, y = learner.data.train_ds.x[:9], learner.data.train_ds.y[:9]
    batches = [(x[0:4], y[0:4]), (x[4:8], y[4:8]), (x[8:9], y[8:9])]
    learner.data = DataBunch(batches, [(x[0:4], y[0:4]), (x[4:6], y[4:6])])
    learner.opt = Frozen(learner.model.parameters(), lr=0.1)
    return learner


def whole(learner: Learner, rows: int) -> tuple[float, float]:
    """Loss and accuracy over the first rows in one go."""
    x = torch.cat([xb for xb, _ in learner.data.train_dl])[:rows]
    y = torch.cat([yb for _, yb in learner.data.train_dl])[:rows]
    with torch.no_grad():
        pred = learner.model(x)
        return nn.functional.cross_entropy(pred, y).item(), accuracy(pred, y).item()


def test_averages_are_weighted_by_samples(learner: Learner) -> None:
    stats = AvgStatsCallback(accuracy, report=None)
    Runner(cbs=stats).fit(1, uneven(learner))
    assert stats.train_stats.avg_stats == pytest.approx(whole(learner, 9), abs=1e-6)
    assert stats.valid_stats.avg_stats == pytest.approx(whole(learner, 6), abs=1e-6)


def test_averages_are_plain_floats(learner: Learner) -> None:
    stats = AvgStatsCallback(accuracy, report=None)
    Runner(cbs=stats).fit(1, learner)
    loss, acc = stats.valid_stats.avg_stats
    assert (type(loss), type(acc)) == (float, float)


def test_all_stats_are_the_sums(learner: Learner) -> None:
    stats = AvgStatsCallback(accuracy, report=None)
    Runner(cbs=stats).fit(1, uneven(learner))
    sums, averages = stats.train_stats.all_stats, stats.train_stats.avg_stats
    assert sums == pytest.approx([value * 9 for value in averages])


def after_a_loss(device: str) -> Runner:
    """A run that has computed the loss of a batch of two rows."""
    run = Runner()
    run.batch = torch.ones(2, 3, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    run.pred, run.yb = run.batch
    run.loss = torch.ones((), device=device, requires_grad=True) * 1
    return run


def test_the_sums_stay_on_the_device_until_they_are_read() -> None:
    stats = AvgStats(accuracy, in_train=True)
    stats.accumulate(after_a_loss("meta"))
    assert stats.count == 2
    assert [total.device.type for total in stats.state_dict()["sums"]] == ["meta", "meta"]


def test_sums_of_a_checkpoint_go_to_the_device_of_the_loss() -> None:
    saved, stats = AvgStats(accuracy, in_train=True), AvgStats(accuracy, in_train=True)
    saved.accumulate(after_a_loss("cpu"))
    stats.load_state_dict(saved.state_dict())
    stats.accumulate(after_a_loss("meta"))
    assert [total.device.type for total in stats.state_dict()["sums"]] == ["meta", "meta"]


def test_the_sums_keep_no_graph_alive() -> None:
    stats = AvgStats(None, in_train=True)
    stats.accumulate(after_a_loss("cpu"))
    assert not stats.state_dict()["sums"][0].requires_grad


def test_every_epoch_starts_over(learner: Learner) -> None:
    stats = AvgStatsCallback(accuracy, report=None)
    learner = uneven(learner)
    Runner(cbs=stats).fit(3, learner)
    assert stats.train_stats.count == 9
    assert stats.train_stats.avg_stats == pytest.approx(whole(learner, 9), abs=1e-6)


def test_metrics_may_return_plain_numbers(learner: Learner) -> None:
    def rows(pred: Tensor, yb: Tensor) -> float:
        return float(len(yb))

    stats = AvgStatsCallback(rows, report=None)
    Runner(cbs=stats).fit(1, uneven(learner))
    assert stats.train_stats.avg_stats[1] == pytest.approx((4 * 4 + 4 * 4 + 1) / 9)


def test_a_loss_that_is_not_reduced_is_averaged(learner: Learner) -> None:
    stats = AvgStatsCallback(report=None)
    learner = uneven(learner)
    mean_loss = learner.loss_func
    learner.data.train_dl = learner.data.valid_dl

    def each(pred: Tensor, yb: Tensor) -> Tensor:
        return nn.functional.cross_entropy(pred, yb, reduction="none")

    run = Runner(cbs=stats)
    run.on("after_loss", lambda run: run.token.cancel("batch"))
    learner.loss_func = each
    run.fit(1, learner)
    learner.loss_func = mean_loss
    x, y = learner.data.train_dl[0]
    x, y = torch.cat([x, learner.data.train_dl[1][0]]), torch.cat([y, learner.data.train_dl[1][1]])
    expected = mean_loss(learner.model(x), y).item()
    assert stats.train_stats.avg_stats == pytest.approx([expected], abs=1e-6)


def test_torchmetrics_are_updated_and_computed(learner: Learner) -> None:
    metric = torchmetrics.classification.MulticlassAccuracy(num_classes=3, average="micro")
    stats = AvgStatsCallback([accuracy, metric], report=None)
    Runner(cbs=stats).fit(2, uneven(learner))
    for averages in (stats.train_stats.avg_stats, stats.valid_stats.avg_stats):
        assert averages[2] == pytest.approx(averages[1], abs=1e-6)


def test_torchmetrics_start_over_in_every_epoch(learner: Learner) -> None:
    metric = torchmetrics.classification.MulticlassAccuracy(num_classes=3)
    stats = AvgStatsCallback(metric, report=None)
    Runner(cbs=stats).fit(2, uneven(learner))
    assert stats.train_stats.metrics[0].update_count == 3
    assert stats.valid_stats.metrics[0].update_count == 2


def test_the_validation_has_torchmetrics_of_its_own() -> None:
    metric = torchmetrics.MeanMetric()
    stats = AvgStatsCallback(metric, report=None)
    assert stats.train_stats.metrics == [metric]
    assert stats.valid_stats.metrics[0] is not metric


def test_a_torchmetric_goes_by_its_class() -> None:
    metric = torchmetrics.classification.MulticlassAccuracy(num_classes=3)
    assert AvgStats(metric, in_train=True).names == ["loss", "multiclass_accuracy"]


def collection() -> Any:
    members = {
        "top1": torchmetrics.classification.MulticlassAccuracy(num_classes=3, average="micro"),
        "recall": torchmetrics.classification.MulticlassRecall(num_classes=3),
    }
    return torchmetrics.MetricCollection(members, prefix="my_")


def test_the_members_of_a_torchmetrics_collection_have_a_column_each(learner: Learner) -> None:
    stats = AvgStatsCallback([accuracy, collection()], report=None)
    run = Runner(cbs=stats)
    run.fit(2, uneven(learner))
    assert stats.train_stats.names == ["loss", "accuracy", "my_recall", "my_top1"]
    for phase, rows in (("train", 9), ("valid", 6)):
        batches = [(xb, yb) for xb, yb in learner.data.train_dl]
        x, y = (torch.cat(parts)[:rows] for parts in zip(*batches, strict=True))
        expected = collection()(learner.model(x), y)
        row = run.result.history[-1]
        assert row[f"{phase}_my_top1"] == pytest.approx(row[f"{phase}_accuracy"])
        for name, value in expected.items():
            assert row[f"{phase}_{name}"] == pytest.approx(value.item())


def test_a_collection_alone_is_taken_too(learner: Learner) -> None:
    stats = AvgStatsCallback(collection(), report=None)
    Runner(cbs=stats).fit(1, learner)
    assert len(stats.valid_stats.avg_stats) == 3


def rate(pred: Tensor, yb: Tensor, share: float) -> float:
    return share


def test_metrics_in_a_mapping_have_columns_by_its_names(learner: Learner) -> None:
    metrics = {"half": partial(rate, share=0.5), "whole": lambda pred, yb: 1.0, "of": collection()}
    row = Runner(AvgStatsCallback(metrics, report=None)).fit(1, learner).history[0]
    assert (row["train_half"], row["valid_half"], row["valid_whole"]) == (0.5, 0.5, 1)
    inside = [f"valid_of_{name}" for name in collection()]
    assert list(row)[-4:] == ["valid_half", "valid_whole", *inside]


def test_metrics_may_stand_in_a_module_of_torch(learner: Learner) -> None:
    metric = torchmetrics.classification.MulticlassAccuracy(num_classes=3)
    row = Runner(AvgStatsCallback(nn.ModuleDict({"acc": metric}), report=None)).fit(1, learner)
    assert "valid_acc" in row.history[0]


def test_two_of_them_with_a_metric_of_one_name_are_an_error(learner: Learner) -> None:
    first, second = (AvgStatsCallback({"acc": accuracy}, report=None) for _ in range(2))
    second.name = "second"
    for use in (lambda run: run.fit(1, learner), lambda run: run.validate(learner)):
        with pytest.raises(ValueError, match=r"'avg_stats'> and .*'second'> both have .*'acc'"):
            use(Runner([first, second]))
    second = AvgStatsCallback({"other": accuracy}, report=None)
    second.name = "second"
    row = Runner([first, second]).fit(1, learner).history[0]
    assert row["valid_acc"] == row["valid_other"]


def test_a_name_of_a_metric_that_is_no_text_is_an_error() -> None:
    with pytest.raises(TypeError, match="names of their columns, texts, got 1"):
        AvgStatsCallback({1: accuracy})


def test_a_metric_that_computes_several_numbers_is_told_by_name(learner: Learner) -> None:
    metric = torchmetrics.classification.MulticlassAccuracy(num_classes=3, average=None)
    with pytest.raises(TypeError, match=r"'multiclass_accuracy' computes no single .*\[3\]"):
        Runner(cbs=AvgStatsCallback(metric, report=None)).fit(1, learner)


def test_metrics_of_one_name_are_told_apart() -> None:
    names = AvgStats([accuracy, accuracy, accuracy], in_train=True).names
    assert names == ["loss", "accuracy", "accuracy_2", "accuracy_3"]


def test_metrics_of_one_name_with_a_number_are_told_apart() -> None:
    def top_5(pred: Tensor, yb: Tensor) -> Tensor:
        return pred.topk(5).indices.eq(yb[:, None]).any(1).float().mean()

    names = AvgStats([top_5, top_5, top_5], in_train=True).names
    assert names == ["loss", "top_5", "top_5_2", "top_5_3"]


def test_a_number_behind_a_name_is_not_given_twice() -> None:
    def top() -> None: ...
    def top_2() -> None: ...

    names = AvgStats([top_2, top, top, top], in_train=True).names
    assert names == ["loss", "top_2", "top", "top_3", "top_4"]


def test_a_partial_metric_goes_by_its_functions_name() -> None:
    def top(pred: Tensor, yb: Tensor, k: int) -> Tensor:
        return pred.topk(k).indices.eq(yb[:, None]).any(1).float().mean()

    assert AvgStats(partial(top, k=2), in_train=True).names == ["loss", "top"]


def test_before_the_first_batch_there_are_no_averages() -> None:
    stats = AvgStats(accuracy, in_train=True)
    assert stats.avg_stats == []
    assert stats.all_stats == [0.0, 0.0]
    assert repr(stats) == ""


def test_the_representation_names_the_phase_and_every_average(learner: Learner) -> None:
    stats = AvgStatsCallback(accuracy, report=None)
    Runner(cbs=stats).fit(1, learner)
    loss, acc = stats.valid_stats.avg_stats
    assert repr(stats.train_stats).startswith("train: loss ")
    assert repr(stats.valid_stats) == f"valid: loss {loss:.4f}, accuracy {acc:.4f}"


def test_a_line_an_epoch_is_printed_under_one_line_of_titles(learner: Learner, capsys) -> None:
    Runner(cb_funcs=partial(AvgStatsCallback, accuracy)).fit(2, learner)
    titles, *lines = capsys.readouterr().out.splitlines()
    assert titles.split() == [
        "epoch",
        "train_loss",
        "train_accuracy",
        "valid_loss",
        "valid_accuracy",
        "seconds",
    ]
    assert [line.split()[0] for line in lines] == ["0", "1"]
    assert {len(line) for line in [titles, *lines]} == {len(titles)}


def test_a_loss_that_explodes_stays_in_its_column(learner: Learner, capsys) -> None:
    learner.loss_func = lambda pred, yb: pred.mean() * 0 + 3.4e38
    Runner(cbs=AvgStatsCallback(accuracy)).fit(1, learner)
    titles, line = capsys.readouterr().out.splitlines()
    assert len(titles) == len(line)
    assert line.split()[1] == "3.4e+38"


def test_without_validation_the_table_has_no_columns_for_it(make_learner, capsys) -> None:
    Runner(cbs=AvgStatsCallback(accuracy)).fit(1, make_learner(valid=0))
    assert "valid" not in capsys.readouterr().out


def test_the_averages_are_written_to_the_history(learner: Learner) -> None:
    stats = AvgStatsCallback(accuracy, report=None)
    result = Runner(cbs=stats).fit(2, learner)
    assert [row["epoch"] for row in result.history] == [0, 1]
    assert result.history[-1]["valid_loss"] == stats.valid_stats.avg_stats[0]
    assert set(result.history[0]) == {
        "epoch",
        "train_loss",
        "train_accuracy",
        "valid_loss",
        "valid_accuracy",
    }


def test_user_code_finds_the_history_of_the_epoch_complete(learner: Learner) -> None:
    run = Runner(cbs=AvgStatsCallback(accuracy, report=None))
    seen: list[bool] = []
    run.on("after_epoch", lambda run: seen.append("valid_accuracy" in run.history[-1]))
    run.fit(1, learner)
    assert seen == [True]


def test_it_writes_the_history_among_those_who_measure(learner: Learner) -> None:
    known: dict[int, bool] = {}
    run = Runner(cbs=AvgStatsCallback(report=None))
    for priority in (METRICS + 1, METRICS - 1):
        look = lambda run, p=priority: known.update({p: "train_loss" in run.history[-1]})  # noqa: E731
        run.on("after_epoch", look, priority=priority)
    run.fit(1, learner)
    assert known == {METRICS + 1: False, METRICS - 1: True}


def test_an_epoch_without_validation_has_not_the_numbers_of_the_one_before(
    learner: Learner,
) -> None:
    run = Runner(cbs=AvgStatsCallback(report=None))
    run.on("after_batch", lambda run: run.token.cancel("epoch"), when=lambda run: run.epoch == 1)
    first, second = run.fit(2, learner).history
    assert "valid_loss" in first
    assert "valid_loss" not in second


def test_a_second_validation_alone_starts_over(learner: Learner) -> None:
    stats = AvgStatsCallback(report=None)
    run = Runner(cbs=stats)
    run.validate(learner)
    run.validate(learner)
    assert stats.valid_stats.count == 8


def test_a_second_fit_has_titles_of_its_own(learner: Learner) -> None:
    lines: list[str] = []
    run = Runner(cbs=AvgStatsCallback(report=lines.append))
    run.fit(1, learner)
    run.fit(1, learner)
    assert [line.split()[0] for line in lines] == ["epoch", "0", "epoch", "0"]


def with_both_kinds() -> AvgStatsCallback:
    metric = torchmetrics.classification.MulticlassAccuracy(num_classes=3)
    return AvgStatsCallback([accuracy, metric], report=None)


def test_both_phases_go_on_from_their_state(learner: Learner) -> None:
    first, second = with_both_kinds(), with_both_kinds()
    Runner(cbs=first).fit(1, uneven(learner))
    second.load_state_dict(first.state_dict())
    assert second.train_stats.avg_stats == first.train_stats.avg_stats
    assert second.valid_stats.avg_stats == first.valid_stats.avg_stats


@pytest.mark.parametrize("metrics", [[accuracy], [accuracy, accuracy]], ids=["fewer", "other"])
def test_the_state_of_other_metrics_is_refused(metrics: list[Any]) -> None:
    state = with_both_kinds().train_stats.state_dict()
    with pytest.raises(ValueError, match=f"of 2 metrics, and there are {len(metrics)}: accuracy"):
        AvgStats(metrics, in_train=True).load_state_dict(state)


def test_the_state_of_fewer_functions_is_refused() -> None:
    state = AvgStats(accuracy, in_train=True).state_dict()
    with pytest.raises(ValueError, match="of 1 metrics, and there are 2: accuracy, accuracy_2"):
        AvgStats([accuracy, accuracy], in_train=True).load_state_dict(state)


def test_a_validation_alone_reports_itself(learner: Learner, capsys) -> None:
    stats = AvgStatsCallback(accuracy)
    result = Runner(cbs=stats).validate(learner)
    assert result.history[0]["valid_accuracy"] == stats.valid_stats.avg_stats[1]
    titles, line = capsys.readouterr().out.splitlines()
    assert titles.split() == ["valid_loss", "valid_accuracy"]
    assert len(titles) == len(line)


def test_a_cancelled_epoch_reports_what_it_saw(learner: Learner, capsys) -> None:
    run = Runner(cbs=AvgStatsCallback(accuracy))
    run.on("after_batch", lambda run: run.token.cancel("fit"))
    run.fit(1, learner)
    assert "train_loss" in capsys.readouterr().out


def test_an_epoch_without_a_batch_prints_no_numbers(learner: Learner) -> None:
    lines: list[str] = []
    run = Runner(cbs=AvgStatsCallback(accuracy, report=lines.append))
    run.on("begin_epoch", lambda run: run.token.cancel("epoch"))
    run.fit(1, learner)
    assert lines[0].split() == ["epoch", "seconds"]


@pytest.mark.parametrize("event", ["after_pred", "after_backward", "after_batch", "begin_validate"])
def test_an_epoch_that_fails_reports_no_averages(event: str, learner: Learner) -> None:
    lines: list[str] = []
    run = Runner(AvgStatsCallback(report=lines.append))
    run.on(event, lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    assert lines == []
    assert run.history == [{"epoch": 0}]


NO_NUMBERS = {
    "NoneType": None,
    "tuple": (1.0, 2.0),
    "dict": {"a": 1.0},
    "str": "0.5",
    "list": [0.5],
    r"a tensor of shape \[3\]": torch.ones(3),
    r"a tensor of shape \[0\]": torch.ones(0),
    "a tensor of shape .* and torch.complex64": torch.ones((), dtype=torch.complex64),
    "ndarray": np.ones(3),
    "complex": 1j,
}


@pytest.mark.parametrize("form", NO_NUMBERS)
def test_a_metric_that_returns_no_number_is_named(form: str, learner: Learner) -> None:
    def score(pred: Tensor, yb: Tensor) -> Any:
        return NO_NUMBERS[form]

    run = Runner(AvgStatsCallback(score, report=None))
    with pytest.raises(
        TypeError, match=f"metric 'score' returned no single number but {form}"
    ) as e:
        run.fit(1, learner)
    assert "'avg_stats' of event 'after_loss'" in e.value.__notes__[0]
    assert "epoch 0, batch 0" in e.value.__notes__[0]
    assert run.avg_stats.train_stats.count == 0


@pytest.mark.parametrize(
    "value",
    [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor([0.5]),
     torch.tensor(0.5, requires_grad=True), torch.tensor(0.5, dtype=torch.float16), Fraction(1, 2)],
    ids=repr,
)  # fmt: skip
def test_a_metric_may_return_a_number_of_any_kind(value: Any, learner: Learner) -> None:
    run = Runner(AvgStatsCallback(lambda pred, yb: value, report=None))
    assert run.fit(1, learner).history[0]["train_<lambda>"] == 0.5


@pytest.mark.parametrize("value", [True, 1, torch.tensor(True), torch.tensor(1), np.bool_(True)])
def test_a_metric_may_return_a_whole_number(value: Any, learner: Learner) -> None:
    if isinstance(value, np.bool_):
        value = np.int64(value)
    run = Runner(AvgStatsCallback(lambda pred, yb: value, report=None))
    assert run.fit(1, learner).history[0]["train_<lambda>"] == 1.0


def test_numbers_of_low_precision_are_added_up_in_high_precision(learner: Learner) -> None:
    stats = AvgStatsCallback(lambda pred, yb: np.float16(0.1), report=None)
    Runner(stats).fit(1, learner)
    assert stats.train_stats.avg_stats[1] == pytest.approx(float(np.float16(0.1)), rel=1e-12)


@pytest.mark.parametrize("stateful", [False, True])
def test_an_error_in_a_metric_says_which_and_what_it_was_given(
    stateful: bool, learner: Learner
) -> None:
    def broken(pred: Tensor, yb: Tensor) -> float:
        raise KeyError("mine")

    metric = torchmetrics.classification.MulticlassAccuracy(num_classes=3)
    metric.update = broken  # type: ignore[method-assign]
    with pytest.raises(KeyError, match="mine") as caught:
        Runner(AvgStatsCallback(metric if stateful else broken, report=None)).fit(1, learner)
    name = "multiclass_accuracy" if stateful else "broken"
    assert (
        f"metric '{name}', given pred of shape [4, 3], yb of shape [4]" in caught.value.__notes__[0]
    )


def test_a_torchmetrics_metric_goes_with_a_loss_that_is_a_float(learner: Learner) -> None:
    metric = torchmetrics.classification.MulticlassAccuracy(num_classes=3)
    learner.loss_func = lambda pred, yb: 2.0
    learner.data.valid_dl = learner.data.train_dl
    row = Runner(AvgStatsCallback(metric, report=None)).validate(learner).history[0]
    assert row["valid_loss"] == 2.0


def test_a_fit_with_validations_within_prints_a_line_for_each(learner: Learner) -> None:
    lines: list[str] = []
    Runner(AvgStatsCallback(report=lines.append)).fit(2, learner, validate_every=4)
    titles, *rows = [line.split() for line in lines]
    assert titles == ["epoch", "step", "train_loss", "valid_loss", "seconds"]
    assert [row[:2] for row in rows] == [["1", "4"], ["1", "6"]]


def test_a_validation_without_training_since_the_last_has_no_average_of_it(
    learner: Learner,
) -> None:
    run = Runner(AvgStatsCallback(report=None))
    run.on("begin_train", lambda run: run.validate_now())
    result = run.fit(1, learner, validate_every=3)
    assert [list(row) for row in result.history] == [
        ["epoch", "step", "valid_loss"], ["epoch", "step", "train_loss", "valid_loss"]
    ]  # fmt: skip


def test_a_validation_asked_for_leaves_no_average_to_an_epoch_without_one(
    learner: Learner,
) -> None:
    run = Runner(AvgStatsCallback(report=None))
    run.on("begin_train", lambda run: run.validate_now())
    run.on("after_loss", lambda run: run.token.cancel("epoch"), during="train")
    result = run.fit(1, learner)
    assert list(result.history[0]) == ["epoch", "train_loss"]


class ShowsRows(Callback):
    @property
    def shows_rows(self) -> bool:
        return True


def test_nothing_is_printed_where_another_callback_shows_the_rows(
    learner: Learner, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Runner([AvgStatsCallback(), ShowsRows()])
    assert run.fit(1, learner).history[0].keys() > {"epoch", "train_loss"}
    run.validate(learner)
    assert capsys.readouterr().out == ""


def test_a_report_of_ones_own_gets_lines_whoever_shows_the_rows(learner: Learner) -> None:
    lines: list[str] = []
    Runner([AvgStatsCallback(report=lines.append), ShowsRows()]).fit(1, learner)
    assert len(lines) == 2
