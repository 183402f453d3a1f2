"""Metrics over all predictions of a phase, and what metrics get, against one pass by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, accuracy
from eventtrain.callbacks import Checkpoint, OverAll


def auc(pred: Tensor, yb: Tensor) -> float:
    """The share of pairs, of a row of the first class and another one, that are in order."""
    score = pred[:, 0]
    positive, negative = score[yb == yb[0]], score[yb != yb[0]]
    return float((positive[:, None] > negative[None]).float().mean())


def stats(metric: Any, **options: Any) -> AvgStatsCallback:
    return AvgStatsCallback(metric, report=None, **options)


def predictions(learner: Learner) -> tuple[Tensor, Tensor]:
    return Runner().predict(learner, learner.data.valid_dl, with_targets=True)  # type: ignore[no-any-return]


def test_a_function_gets_all_predictions_of_the_phase_at_once(learner: Learner) -> None:
    row = Runner(stats([OverAll(auc), accuracy])).validate(learner).history[0]
    assert row["valid_auc"] == auc(*predictions(learner))
    assert row["valid_accuracy"] == pytest.approx(accuracy(*predictions(learner)).item())


def test_every_phase_starts_over(learner: Learner) -> None:
    counted = OverAll(lambda pred, yb: float(len(yb)), "rows")
    rows = Runner(stats(counted)).fit(2, learner).history
    assert [(row["train_rows"], row["valid_rows"]) for row in rows] == [(12.0, 8.0)] * 2


def test_what_it_saw_is_not_changed_with_the_memory_that_it_lay_in(learner: Learner) -> None:
    run = Runner(stats(OverAll(auc)))
    run.on("after_batch", lambda run: torch.zero_(run.pred.detach()), during="validate")
    assert run.validate(learner).history[0]["valid_auc"] == auc(*predictions(learner))


def test_no_graph_is_kept(learner: Learner) -> None:
    metric = OverAll(lambda pred, yb: float(pred.requires_grad), "graph")
    assert Runner(stats(metric)).fit(1, learner).history[0]["train_graph"] == 0.0


def test_nothing_is_read_before_the_phase_has_ended(learner: Learner, no_sync: Any) -> None:
    run = Runner(stats(OverAll(auc)))
    for phase in ("train", "validate"):
        run.on(f"begin_{phase}", lambda run: no_sync.__enter__())
        run.on(f"after_{phase}", lambda run: no_sync.__exit__(), priority=1000)
    assert run.fit(1, learner).outcome == "completed"


def test_a_fit_that_was_interrupted_has_all_predictions_of_the_phase(
    make_learner: Any, tmp_path: Path
) -> None:
    def fit(learn: Learner, *, stops: bool, resume: str | None = None) -> Any:
        run = Runner([stats(OverAll(auc)), Checkpoint(tmp_path)])
        if stops:
            run.on("after_batch", lambda r: (r.batch_index == 1 and r.token.cancel("fit")) or None)
        return run.fit(1, learn, resume=resume).history

    learn = make_learner()
    start = {key: value.clone() for key, value in learn.model.state_dict().items()}
    whole = Runner(stats(OverAll(auc))).fit(1, learn).history
    learn = make_learner()
    learn.model.load_state_dict(start)
    fit(learn, stops=True)
    assert fit(make_learner(), stops=False, resume="auto") == whole


@pytest.mark.parametrize("bad", [OverAll, "auc", None])
def test_what_is_no_function_is_an_error(bad: Any) -> None:
    with pytest.raises(TypeError, match="OverAll takes a function of"):
        OverAll(bad)


def test_a_metric_of_torchmetrics_is_an_error_as_it_is_one_already() -> None:
    torchmetrics = pytest.importorskip("torchmetrics", reason="needs torchmetrics (extra 'test')")
    with pytest.raises(TypeError, match="pass it as it is"):
        OverAll(torchmetrics.classification.BinaryAUROC())


# What metrics get


def dict_batches(learner: Learner) -> Learner:
    """Batches that are mappings, and a model that returns two heads."""
    learner.data = DataBunch(
        *(
            [{"x": x, "labels": y} for x, y in dl]
            for dl in (learner.data.train_dl, learner.data.valid_dl)
        )
    )
    plain, loss = learner.model, learner.loss_func
    assert loss is not None
    learner.forward = lambda model, batch: {"logits": plain(batch["x"]), "other": 0}
    learner.loss_func = lambda pred, batch: loss(pred["logits"], batch["labels"])
    return learner


@pytest.mark.parametrize("kind", ["function", "torchmetrics", "over all"])
def test_functions_of_the_run_pick_what_a_metric_gets(learner: Learner, kind: str) -> None:
    torchmetrics = pytest.importorskip("torchmetrics", reason="needs torchmetrics (extra 'test')")
    expected = float(accuracy(*predictions(learner)))
    metric: Any = {
        "function": accuracy,
        "torchmetrics": torchmetrics.MetricCollection(
            {"accuracy": torchmetrics.classification.MulticlassAccuracy(3, average="micro")}
        ),
        "over all": OverAll(accuracy),
    }[kind]
    run = Runner(
        stats(
            metric,
            pred=lambda run: run.pred["logits"],
            target=lambda run: run.batch["labels"],
        )
    )
    assert run.validate(dict_batches(learner)).history[0]["valid_accuracy"] == pytest.approx(
        expected
    )


def test_an_error_in_them_says_what_they_are_called_with(learner: Learner) -> None:
    run = Runner(stats(accuracy, pred=lambda pred: pred["logits"]))
    with pytest.raises(TypeError) as caught:
        run.validate(learner)
    assert (
        "function pred= of the metrics, which is called with the run" in caught.value.__notes__[0]
    )


@pytest.mark.parametrize("name", ["pred", "target"])
@pytest.mark.parametrize("bad", ["logits", lambda: 0, lambda pred, yb: pred, dict])
def test_what_is_no_function_of_the_run_is_an_error(name: str, bad: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a function of the run .*lambda run: run"):
        stats(accuracy, **{name: bad})
