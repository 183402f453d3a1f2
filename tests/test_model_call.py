"""Models that are called in their own way, and compute their own loss."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner
from eventtrain.callbacks import BatchTransform, Checkpoint, GradientAccumulation, Mixup


class Output(dict[str, Any]):
    """As of a model of Hugging Face's: a mapping with attributes."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


class Classifier(nn.Module):
    """Takes the fields of a batch by name, and computes its loss where there are labels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Output:
        logits = self.linear(inputs)
        found = Output(logits=logits)
        if labels is not None:
            found["loss"] = cross_entropy(logits, labels)
        return found


class Detector(nn.Module):
    """Gives losses in training, and a list of predictions in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 2)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        found = [self.linear(image) for image in images]
        if not self.training:
            return [{"boxes": each} for each in found]
        assert targets is not None
        boxes = torch.stack([target["boxes"] for target in targets])
        return {
            "near": mse_loss(torch.stack(found), boxes),
            "small": torch.stack(found).square().mean(),
        }


def model_of(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return kind()


def rows(n: int = 12) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=dice), torch.randint(3, (n,), generator=dice)


def mappings() -> list[dict[str, Tensor]]:
    x, y = rows()
    return [{"inputs": x[i : i + 4], "labels": y[i : i + 4]} for i in (0, 4, 8)]


def pairs() -> list[tuple[Tensor, Tensor]]:
    return [(batch["inputs"], batch["labels"]) for batch in mappings()]


def learner(
    model: nn.Module, loss_func: Any, train: Any, valid: Any = None, **options: Any
) -> Learner:
    opt = torch.optim.SGD(model.parameters(), lr=0.3)
    return Learner(model, opt, loss_func, DataBunch(train, valid), **options)


def trained_by_hand(losses: Iterable[Any], model: nn.Module) -> dict[str, Tensor]:
    opt = torch.optim.SGD(model.parameters(), lr=0.3)
    for loss in losses:
        loss().backward()
        opt.step()
        opt.zero_grad()
    return model.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_that_returns_its_loss_goes_in_as_it_is() -> None:
    by_hand, model = model_of(Classifier), model_of(Classifier)
    expected = trained_by_hand(
        [lambda batch=batch: by_hand(**batch)["loss"] for batch in mappings()], by_hand
    )
    run = Runner(AvgStatsCallback(report=None))
    run.fit(1, learner(model, None, mappings(), mappings()))
    assert same(model.state_dict(), expected)
    assert {"train_loss", "valid_loss"} < run.history[0].keys()


def test_a_model_may_return_its_loss_alone() -> None:
    by_hand, model = model_of(Classifier), model_of(Classifier)
    expected = trained_by_hand(
        [lambda batch=batch: by_hand(**batch)["loss"] for batch in mappings()], by_hand
    )
    call = {"forward": lambda model, batch: model(**batch)["loss"]}
    row = Runner(AvgStatsCallback(report=None)).fit(
        1, learner(model, None, mappings(), mappings(), **call)
    )
    assert same(model.state_dict(), expected)
    assert {"train_loss", "valid_loss"} < row.history[0].keys()


def test_losses_that_a_model_returns_in_training_are_added_and_named() -> None:
    x, _ = rows(8)
    batch = ([*x], [{"boxes": each[:2]} for each in x])
    by_hand, model = model_of(Detector), model_of(Detector)
    expected = trained_by_hand([lambda: sum(by_hand(*batch).values())] * 2, by_hand)
    run = Runner(AvgStatsCallback(report=None))
    seen: list[Any] = []
    run.on("after_loss", lambda run: seen.append((run.phase, run.loss, sorted(run.losses))))
    learn = learner(
        model,
        None,
        [batch] * 2,
        [batch],
        forward=lambda model, batch: model(*batch),
        weight=lambda b: 8,
    )
    run.fit(1, learn)
    assert same(model.state_dict(), expected)
    row = run.history[0]
    assert row["train_near"] + row["train_small"] == pytest.approx(row["train_loss"])
    assert "valid_loss" not in row, "it gave none there"
    assert [(phase, parts) for phase, _, parts in seen] == [
        *[("train", ["near", "small"])] * 2,
        ("validate", []),
    ]
    assert seen[-1][1] is None


def test_parts_of_a_mapping_that_loss_func_returns_are_averaged_like_the_loss() -> None:
    def loss_func(pred: Tensor, yb: Tensor) -> dict[str, Tensor]:
        main, small = cross_entropy(pred, yb), pred.square().mean()
        return {"loss": main + 0.1 * small, "main": main, "small": small}

    model = nn.Linear(5, 3)
    batches = [pairs()[0], (pairs()[1][0][:2], pairs()[1][1][:2])]
    run = Runner(AvgStatsCallback(report=None))
    run.fit(1, learner(model, loss_func, pairs(), batches))
    with torch.no_grad():
        parts = [cross_entropy(model(x), y) for x, y in batches]
    expected = (4 * parts[0] + 2 * parts[1]) / 6
    assert run.history[0]["valid_main"] == pytest.approx(float(expected))
    assert {"train_loss", "train_main", "train_small"} < run.history[0].keys()


def test_forward_gets_the_model_and_the_batch_with_what_handlers_have_made_of_it() -> None:
    got: list[Any] = []

    def forward(model: Any, batch: Any) -> Any:
        got.append(batch)
        return model(batch[0])

    model = nn.Linear(5, 3)
    data = pairs()
    Runner().fit(1, learner(model, cross_entropy, data, forward=forward))
    assert all(one is other for one, other in zip(got, data, strict=True))
    got.clear()
    Runner(BatchTransform(x=lambda x: 2 * x)).fit(
        1, learner(model, cross_entropy, data, forward=forward)
    )
    assert all(torch.equal(x, 2 * data[i][0]) and y is data[i][1] for i, (x, y) in enumerate(got))


def test_predict_calls_the_model_in_the_same_way() -> None:
    model = model_of(Classifier)
    found = Runner().predict(learner(model, None, mappings()), mappings())
    assert torch.equal(found["logits"], model.linear(rows()[0]))
    found = Runner().predict(
        learner(model, None, pairs(), forward=lambda model, batch: model(batch[0])["logits"]),
        pairs(),
    )
    assert torch.equal(found, model.linear(rows()[0]))


def test_accumulation_weights_losses_that_the_model_computes() -> None:
    by_hand, model = model_of(Classifier), model_of(Classifier)
    whole = {name: torch.cat([batch[name] for batch in mappings()]) for name in mappings()[0]}
    expected = trained_by_hand([lambda: by_hand(**whole)["loss"]], by_hand)
    Runner(GradientAccumulation(3)).fit(1, learner(model, None, mappings()))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda x: x, "returned shape"),
        (lambda x: {"logits": x}, "'logits': shape"),
        (lambda x: {"near": x.mean(), "rows": 4}, "'rows': type int"),
        (lambda x: {"near": x.mean(), "rows": torch.tensor(4)}, "'rows': shape"),
        (lambda x: {}, r"returned \{\}"),
        (lambda x: None, "returned None"),
        (lambda x: (x, x.mean()), r"2 parts.*part 1: loss_func=lambda pred, yb: pred\[1\]"),
    ],
)
def test_a_model_without_a_loss_is_told_what_it_must_return(returned: Any, said: str) -> None:
    class Model(nn.Linear):
        def forward(self, input: Tensor) -> Any:
            return returned(super().forward(input))

    with pytest.raises(TypeError, match=rf"no loss to train Model with.*{said}"):
        Runner().fit(1, learner(Model(5, 3), None, pairs()))


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({}, "what is trained on at 'loss', and this one has nothing"),
        (
            {"total": torch.zeros(()), "main": torch.zeros(())},
            "this one has 'total', 'main': return",
        ),
        ({"loss": torch.zeros(()), "pred": torch.zeros(3)}, "part 'pred' of the loss"),
        ({"loss": torch.zeros(()), "text": "a"}, "part 'text' of the loss"),
    ],
)
def test_a_mapping_that_is_none_of_losses_is_refused(losses: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Runner().fit(1, learner(nn.Linear(5, 3), lambda pred, yb: losses, pairs()))


def test_a_part_that_is_not_always_there_is_averaged_over_the_batches_that_gave_it() -> None:
    run = Runner(AvgStatsCallback(report=None))

    def loss_func(pred: Tensor, yb: Tensor) -> dict[str, Tensor]:
        loss = cross_entropy(pred, yb)
        some = {"some": torch.tensor(float(len(yb)))} if run.batch_index in (1, 2) else {}
        return {"loss": loss, **some, "all": loss}

    sizes = [4, 2, 4, 3]
    batches = [(x[:n], y[:n]) for n, (x, y) in zip(sizes, pairs() * 2, strict=False)]
    run.fit(1, learner(nn.Linear(5, 3), loss_func, batches))
    row = run.history[0]
    assert row["train_some"] == pytest.approx((2 * 2 + 4 * 4) / 6)
    assert row["train_all"] == row["train_loss"]


def test_processes_that_go_on_as_another_number_know_the_parts_of_all() -> None:
    def state(parts: dict[str, list[float]]) -> dict[str, Any]:
        stats = AvgStatsCallback(report=None)
        stats.train_stats.load_state_dict(
            {**stats.train_stats.state_dict(), "sums": [6.0], "count": 3, "parts": parts}
        )
        return stats.state_dict()

    own = AvgStatsCallback(report=None)
    states = [state({"a": [4.0, 2]}), state({"b": [9.0, 3], "a": [2.0, 1]})]
    own.load_state_dict(own.state_for_rank(states, 0, 1, "train"))
    found = dict(zip(own.train_stats.names, own.train_stats.avg_stats, strict=True))
    assert found == {"loss": 2.0, "a": 2.0, "b": 3.0}
    own.load_state_dict(own.state_for_rank(states, 1, 3, "train"))
    assert own.train_stats.avg_stats == []


def test_a_state_of_parts_without_names_of_their_own_is_read() -> None:
    stats = AvgStatsCallback(report=None).train_stats
    state = {**stats.state_dict(), "sums": [6.0, 3.0], "count": 3, "parts": ["a"]}
    stats.load_state_dict(state)
    assert dict(zip(stats.names, stats.avg_stats, strict=True)) == {"loss": 2.0, "a": 1.0}


def test_a_loss_that_becomes_a_mapping_is_told_that_it_must_be_one_from_the_start() -> None:
    def loss_func(pred: Tensor, yb: Tensor) -> Any:
        loss = cross_entropy(pred, yb)
        return loss if pred.requires_grad else {"loss": loss, "size": pred.mean()}

    run = Runner(AvgStatsCallback(report=None))
    with pytest.raises(TypeError) as caught:
        run.fit(1, learner(nn.Linear(5, 3), loss_func, pairs(), pairs()))
    assert any("return a mapping for every batch" in note for note in caught.value.__notes__)


def test_a_part_that_is_called_as_a_metric_is_refused() -> None:
    def size(pred: Tensor, yb: Tensor) -> Tensor:
        return pred.mean()

    def loss_func(pred: Tensor, yb: Tensor) -> dict[str, Tensor]:
        return {"loss": cross_entropy(pred, yb), "size": pred.mean()}

    with pytest.raises(ValueError, match="both called 'size'"):
        Runner(AvgStatsCallback(size, None)).fit(1, learner(nn.Linear(5, 3), loss_func, pairs()))


def test_mixing_needs_a_loss_function() -> None:
    with pytest.raises(TypeError, match="Mixup has the loss computed for two targets"):
        Runner(Mixup()).fit(1, learner(model_of(Classifier), None, mappings()))


def test_mixing_mixes_every_part_of_the_loss() -> None:
    def loss_func(pred: Tensor, yb: Tensor) -> dict[str, Tensor]:
        main = cross_entropy(pred, yb)
        return {"loss": 2 * main, "main": main}

    run = Runner([Mixup(), AvgStatsCallback(report=None)])
    run.fit(1, learner(nn.Linear(5, 3), loss_func, pairs()))
    assert run.history[0]["train_loss"] == pytest.approx(2 * run.history[0]["train_main"])


def test_forward_must_be_a_function() -> None:
    with pytest.raises(TypeError, match="forward must be a function"):
        learner(nn.Linear(5, 3), cross_entropy, pairs(), forward=3)


def test_a_model_that_lacks_a_field_of_the_batch_is_told_how_it_was_called() -> None:
    batches = [{**batch, "idx": batch["labels"]} for batch in mappings()]
    with pytest.raises(TypeError) as raised:
        Runner().fit(1, learner(model_of(Classifier), None, batches))
    assert "model(**batch), where batch has the keys 'inputs', 'labels', 'idx'" in "".join(
        raised.value.__notes__
    )


def forward_of_pairs(model: Any, batch: Any) -> Any:
    return model(batch[0])


def test_a_learner_is_copied_and_pickled_in_the_middle_of_a_run() -> None:
    copies: list[Learner] = []
    learn = learner(nn.Linear(5, 3), cross_entropy, pairs(), forward=forward_of_pairs)
    run = Runner()
    run.on(
        "after_batch",
        lambda run: copies.extend([copy.deepcopy(learn), pickle.loads(pickle.dumps(learn))]),
        once=True,
    )
    run.fit(1, learn)
    for each in copies:
        Runner().fit(1, each)
        assert Runner().predict(each, pairs()).shape == (12, 3)


def test_a_run_inside_of_another_leaves_the_learner_to_it() -> None:
    learn = learner(model_of(Classifier), None, mappings(), mappings())
    run = Runner(AvgStatsCallback(report=None))
    run.on("after_batch", lambda run: Runner().validate(run.learn), during="train")
    run.fit(1, learn)
    assert "train_loss" in run.history[0]


def test_parts_go_on_being_averaged_after_a_resume(tmp_path: Any) -> None:
    def loss_func(pred: Tensor, yb: Tensor) -> dict[str, Tensor]:
        main = cross_entropy(pred, yb)
        return {"loss": main, "main": main}

    def fit(stop: bool, resume: Any = None) -> Any:
        torch.manual_seed(0)
        run = Runner([AvgStatsCallback(report=None), Checkpoint(tmp_path)])
        if stop:
            run.on("after_batch", lambda run: run.token.cancel("fit") if run.n_iter == 1 else None)
        run.fit(1, learner(nn.Linear(5, 3), loss_func, pairs()), resume=resume)
        return run.history[0]

    whole = fit(stop=False)
    for file in tmp_path.iterdir():
        file.unlink()
    fit(stop=True)
    assert fit(stop=False, resume="auto") == whole


def test_a_state_of_other_metrics_is_refused_and_what_was_measured_stays() -> None:
    run = Runner(AvgStatsCallback(report=None))
    run.fit(1, learner(nn.Linear(5, 3), cross_entropy, pairs()))
    (own,) = [each for each in run.cbs if isinstance(each, AvgStatsCallback)]
    before = own.train_stats.avg_stats
    other = AvgStatsCallback(lambda pred, yb: 0.0, None).train_stats.state_dict()
    with pytest.raises(ValueError, match="of 1 metrics, and there are 0: none"):
        own.train_stats.load_state_dict(other)
    assert own.train_stats.avg_stats == before != []
