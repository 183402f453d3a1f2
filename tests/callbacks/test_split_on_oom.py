"""Batches that do not fit, on a model that says so, against the same batches that do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eventtrain import AvgStatsCallback, DataBunch, DataError, Learner, Runner, TensorLoader
from eventtrain.callbacks import Checkpoint, GradientAccumulation, MixedPrecision, SplitOnOOM


class Full:
    """A memory that is full where a model is called with too many rows."""

    def __init__(self, forward: int = 10**9, backward: int = 10**9) -> None:
        self.forward, self.backward = forward, backward
        self.calls: list[int] = []
        self.failed = 0

    def fail(self) -> None:
        self.failed += 1
        raise torch.OutOfMemoryError("no room")


class _Costly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, full: Full) -> Tensor:
        ctx.full, ctx.rows = full, len(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if ctx.rows > ctx.full.backward:
            ctx.full.fail()
        return gradients[0], None


class Model(nn.Module):
    """Fails in the middle: parameters before and behind, buffers and random numbers as asked."""

    def __init__(self, full: Full, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.full = full
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        self.full.calls.append(len(x))
        x = self.norm(self.dropout(self.first(x)))
        if len(x) > self.full.forward:
            self.full.fail()
        return self.last(_Costly.apply(torch.tanh(x), self.full))  # type: ignore[no-any-return]


def learner(full: Full | None = None, bs: int = 8, **options: Any) -> Learner:
    torch.manual_seed(0)
    model = Model(full or Full(), **options).double()
    x, y = torch.randn(28, 5, dtype=torch.float64), torch.randint(0, 3, (28,))
    data = DataBunch(TensorLoader(x[:20], y[:20], bs=bs), TensorLoader(x[20:], y[20:], bs=bs))
    return Learner(model, torch.optim.SGD(model.parameters(), lr=0.3), F.cross_entropy, data)


def fit(learn: Learner, *cbs: Any, epochs: int = 2) -> Runner:
    torch.manual_seed(1)
    run = Runner([AvgStatsCallback(report=None), *cbs])
    run.fit(epochs, learn)
    return run


def weights(learn: Learner) -> Tensor:
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def close(one: Learner, other: Learner) -> bool:
    return torch.allclose(weights(one), weights(other), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("full", [Full(forward=3), Full(backward=3), Full(5, 2)])
@pytest.mark.parametrize("n", [1, 2])
def test_weights_and_losses_are_those_of_batches_that_fit(full: Full, n: int) -> None:
    plain, split = learner(), learner(Full(full.forward, full.backward))
    cbs = [GradientAccumulation(n)]
    expected = fit(plain, *cbs).history
    found = fit(split, GradientAccumulation(n), SplitOnOOM()).history
    assert split.model.full.failed > 0
    assert close(plain, split)
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"norm": True}])
def test_where_all_fits_nothing_changes_to_the_bit(options: Any) -> None:
    plain, watched = learner(**options), learner(**options)
    fit(plain)
    callback = SplitOnOOM()
    fit(watched, callback)
    assert torch.equal(weights(plain), weights(watched))
    assert callback.rows is None


def test_the_size_that_fits_is_kept_for_the_batches_that_follow() -> None:
    full, callback = Full(forward=3), SplitOnOOM()
    fit(learner(full), callback)
    assert callback.rows == 2
    assert full.failed == 2  # 8 rows, and 4
    assert set(full.calls[2:]) == {2}


def test_a_batch_is_cut_into_as_few_pieces_as_will_do() -> None:
    full = Full()
    fit(learner(full), SplitOnOOM(rows=3), epochs=1)
    assert sorted(set(full.calls)) == [2, 3]  # 8 = 2 + 3 + 3, and 4 = 2 + 2


def test_every_event_fires_once_a_batch() -> None:
    run, found = Runner(SplitOnOOM()), []
    for event in ("after_loss", "after_backward"):
        run.on(event, lambda run: found.append(len(run.pred)), during="train")
    run.fit(1, learner(Full(backward=2)))
    assert found == [8, 8, 8, 8, 4, 4]


def test_it_is_logged_what_the_size_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "eventtrain"):
        fit(learner(Full(forward=4)), SplitOnOOM())
    assert [record.getMessage() for record in caplog.records] == [
        "a batch of 8 rows does not fit into memory: the model is called with at most 4 at a time "
        "from now on"
    ]


@pytest.mark.parametrize("full", [Full(forward=3), Full(backward=3)])
def test_random_numbers_are_those_of_a_model_that_was_split_from_the_start(full: Full) -> None:
    from_start, split = (
        learner(dropout=0.4),
        learner(Full(full.forward, full.backward), dropout=0.4),
    )
    fit(from_start, SplitOnOOM(rows=2))
    fit(split, SplitOnOOM())
    assert close(from_start, split)


def test_the_gradient_is_that_of_the_random_numbers_of_the_loss() -> None:
    learn = learner(dropout=0.4)
    run, callback = Runner(), SplitOnOOM(rows=3)
    run = Runner(callback)
    found: list[Any] = []
    masks: list[Tensor] = []
    learn.model.dropout.register_forward_hook(lambda m, args, out: masks.append(out != 0))

    def by_hand(run: Any) -> None:
        pieces = [m for m in masks if m.shape[0] in (2, 3)][-3:]
        kept = torch.cat(pieces[-3:])
        model = run.model
        hidden = torch.where(kept, model.first(run.xb) / 0.6, 0.0)
        pred = model.last(torch.tanh(hidden))
        loss = F.cross_entropy(pred, run.yb)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        assert torch.allclose(loss, run.loss)
        found.append(torch.cat([g.flatten() for g in grads]))

    run.on("after_loss", by_hand, during="train", once=True)
    run.on(
        "after_backward",
        lambda run: found.append(torch.cat([p.grad.flatten() for p in run.model.parameters()])),
        once=True,
    )
    run.fit(1, learn)
    assert torch.allclose(found[0], found[1])


@pytest.mark.parametrize("full", [Full(forward=3), Full(backward=3)])
def test_buffers_are_those_of_a_model_that_was_split_from_the_start(full: Full) -> None:
    from_start, split = learner(norm=True), learner(Full(full.forward, full.backward), norm=True)
    fit(from_start, SplitOnOOM(rows=2))
    fit(split, SplitOnOOM())
    for name, buffer in from_start.model.named_buffers():
        assert torch.allclose(buffer, split.model.get_buffer(name)), name
    # One update a piece: four of 8 rows, two batches of them and one of 4, in two epochs.
    assert from_start.model.norm.num_batches_tracked == 2 * (4 + 4 + 2)


@pytest.mark.parametrize("rows", [None, 3])
def test_a_loss_that_the_model_computes_is_weighted_by_what_it_is_a_mean_of(
    rows: int | None,
) -> None:
    class Own(nn.Module):
        def __init__(self, full: Full) -> None:
            super().__init__()
            self.model = Model(full).double()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            pred = self.model(x)
            return {"loss": F.cross_entropy(pred, labels, ignore_index=0), "logits": pred}

    def make(full: Full) -> Learner:
        plain = learner()
        torch.manual_seed(3)
        model = Own(full)
        loaders = [[{"x": x, "labels": y} for x, y in dl] for dl in (plain.data.train_dl,) * 2]
        return Learner(
            model,
            torch.optim.SGD(model.parameters(), lr=0.3),
            None,
            DataBunch(*loaders),
            weight=lambda batch: (batch["labels"] != 0).sum(),
        )

    plain, split = make(Full()), make(Full(forward=3))
    expected = fit(plain).history
    found = fit(split, SplitOnOOM(rows)).history
    assert close(plain, split)
    assert found[-1] == pytest.approx(expected[-1], rel=1e-6)


@pytest.mark.parametrize("full", [Full(forward=3), Full(backward=3)])
def test_precision_is_that_of_the_first_call(full: Full) -> None:
    def halves(full: Full) -> Learner:
        learn = learner(full)
        learn.model.float()
        learn.forward = lambda model, batch: model(batch[0].float())
        return learn

    plain, split = halves(Full()), halves(Full(full.forward, full.backward))
    fit(plain, MixedPrecision("bf16"))
    fit(split, MixedPrecision("bf16"), SplitOnOOM())
    assert torch.allclose(weights(plain), weights(split), atol=0.02)
    dtypes: set[Any] = set()
    again = halves(Full())
    again.model.last.register_forward_hook(lambda m, args, out: dtypes.add(out.dtype))
    fit(again, MixedPrecision("bf16"), SplitOnOOM(2))
    assert dtypes == {torch.bfloat16}


def test_the_scale_of_half_precision_reaches_every_piece() -> None:
    def halves(*cbs: Any) -> Learner:
        learn = learner(Full(backward=3) if cbs else None)
        learn.model.float()
        learn.forward = lambda model, batch: model(batch[0].float())
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        fit(learn, MixedPrecision("fp16", scaler), *cbs)
        return learn

    assert torch.allclose(weights(halves()), weights(halves(SplitOnOOM())), atol=5e-3)


def test_validation_is_split_too() -> None:
    plain, split = learner(), learner(Full(forward=3))
    split.data.train_dl = plain.data.train_dl
    assert fit(split, SplitOnOOM()).history[-1]["valid_loss"] == pytest.approx(
        fit(plain).history[-1]["valid_loss"], rel=1e-9
    )


def test_a_checkpoint_holds_the_size(tmp_path: Path) -> None:
    fit(learner(Full(forward=3)), SplitOnOOM(), Checkpoint(tmp_path), epochs=1)
    full, callback = Full(forward=3), SplitOnOOM()
    Runner([AvgStatsCallback(report=None), callback, Checkpoint(tmp_path)]).fit(
        2, learner(full), resume="auto"
    )
    assert (callback.rows, full.failed) == (2, 0)


@pytest.mark.parametrize("full", [Full(forward=0), Full(backward=0)])
def test_one_sample_that_does_not_fit_is_the_error_that_it_was(full: Full) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="no room") as caught:
        fit(learner(Full(full.forward, full.backward)), SplitOnOOM())
    assert any("one sample alone is too much" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (lambda model, batch: model(batch[0], torch.ones(1, 5)), "has 1 or 8 rows"),
        (lambda model, batch: model(batch[0], object()), "nobody knows how to cut a object"),
        (lambda model, batch: model(batch[0].to_sparse()), "has no rows to cut by"),
    ],
)
def test_a_batch_without_rows_is_the_error_that_it_was(
    forward: Callable[..., Any], says: str
) -> None:
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3).double()

        def forward(self, *args: Any) -> Tensor:
            raise torch.OutOfMemoryError("no room")

    learn = learner()
    learn.model = Takes()
    learn.opt = torch.optim.SGD(learn.model.parameters(), lr=0.1)
    learn.forward = forward
    with pytest.raises(torch.OutOfMemoryError) as caught:
        fit(learn, SplitOnOOM())
    assert any("cannot be split: " in n and says in n for n in caught.value.__notes__)


def test_what_the_model_returns_without_rows_is_an_error() -> None:
    learn = learner()
    plain = learn.model.forward
    learn.model.forward = lambda x: plain(x).T
    learn.loss_func = lambda pred, yb: F.cross_entropy(pred.T, yb)
    with pytest.raises(DataError, match="for 4 rows the model returns a part of shape") as caught:
        fit(learn, SplitOnOOM(rows=4))
    assert any("at most 4 rows at a time" in note for note in caught.value.__notes__)


def test_gradients_that_waited_for_a_step_are_put_back_when_it_fails() -> None:
    learn = learner(Full(backward=0))
    run = Runner([SplitOnOOM()])
    seen: list[Any] = []

    def set_gradients(run: Any) -> None:
        for p in run.model.parameters():
            p.grad = torch.full_like(p, 7.0)

    run.on("begin_batch", set_gradients)
    run.on("after_batch", lambda run: seen.extend(p.grad for p in run.model.parameters()))
    with pytest.raises(torch.OutOfMemoryError):
        run.fit(1, learn)
    assert seen
    assert all(bool((grad == 7.0).all()) for grad in seen)


def test_a_loss_that_handlers_have_changed_is_an_error_where_random_numbers_are_drawn() -> None:
    run = Runner(SplitOnOOM())
    run.on("after_loss", lambda run: setattr(run, "loss", run.loss + run.pred.square().mean()))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run.fit(1, learner(Full(backward=3), dropout=0.3))
    assert any("SplitOnOOM(rows=4) splits from the start" in n for n in caught.value.__notes__)


def test_a_loss_that_handlers_have_changed_is_right_where_none_are() -> None:
    def trained(full: Full, *cbs: Any) -> Learner:
        learn, run = learner(full), Runner(list(cbs))
        run.on("after_loss", lambda run: setattr(run, "loss", run.loss + run.pred.square().mean()))
        run.fit(1, learn)
        return learn

    assert close(trained(Full()), trained(Full(backward=3), SplitOnOOM()))


def test_a_prediction_may_be_changed_in_place() -> None:
    def trained(*cbs: Any) -> Learner:
        learn, run = learner(), Runner(list(cbs))
        run.on("after_pred", _halve)
        run.fit(1, learn)
        return learn

    assert close(trained(), trained(SplitOnOOM(rows=3)))
    assert close(trained(), trained(SplitOnOOM()))


def _halve(run: Any) -> None:
    run.pred.mul_(0.5)


def test_the_model_is_called_by_itself_after_the_fit() -> None:
    learn = learner()
    fit(learn, SplitOnOOM(rows=2))
    assert learn.model_wrapped is learn.model


def test_nothing_of_a_batch_is_held_when_it_is_over() -> None:
    import gc
    import weakref

    learn, run, found = learner(), Runner(SplitOnOOM(rows=3)), []
    run.on("after_pred", lambda run: found.append(weakref.ref(run.pred)), during="train")
    run.on("after_epoch", lambda run: found.extend([r() is None for r in found[:2]]))
    gc.disable()
    try:
        run.fit(1, learn)
    finally:
        gc.enable()
    assert found[-2:] == [True, True]


def test_a_batch_of_ones_own_is_an_error() -> None:
    class Own(Runner):
        def one_batch(self) -> None:
            super().one_batch()

    with pytest.raises(TypeError, match="Own has a one_batch of its own"):
        Own(SplitOnOOM()).fit(1, learner())


def test_a_model_that_is_no_module_is_an_error() -> None:
    learn = learner()
    learn.model, learn.opt = (lambda x: x), torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    with pytest.raises(TypeError, match=r"SplitOnOOM needs an nn\.Module"):
        Runner(SplitOnOOM()).fit(1, learn)


@pytest.mark.parametrize("rows", [0, -1, 1.5, True, "8"])
def test_a_number_of_rows_that_is_none_is_an_error(rows: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="rows"):
        SplitOnOOM(rows)


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_handler_may_go_through_the_graph_before(rows: int | None, dropout: float) -> None:
    def trained(*cbs: Any, looks: bool) -> tuple[Learner, list[Any]]:
        learn, run, found = learner(dropout=dropout), Runner(list(cbs)), []

        def look(run: Any) -> None:
            params = list(run.model.parameters())
            found.append(torch.autograd.grad(run.loss, params, retain_graph=True))

        if looks:
            run.on("after_loss", look, during="train")
            run.on(
                "after_backward",
                lambda run: found.append(tuple(p.grad.clone() for p in run.model.parameters())),
            )
        run.fit(1, learn)
        return learn, found

    plain, _ = trained(SplitOnOOM(rows), looks=False)
    watched, found = trained(SplitOnOOM(rows), looks=True)
    assert close(plain, watched)
    for before, after in zip(found[::2], found[1::2], strict=True):
        assert all(map(torch.equal, before, after))


def test_an_input_with_a_gradient_of_its_own_is_not_split() -> None:
    learn = learner()
    run = Runner(SplitOnOOM(rows=3))
    run.on("begin_batch", lambda run: run.xb.requires_grad_() is None or None, during="train")
    with pytest.raises(DataError, match="has a gradient of its own"):
        run.fit(1, learn)


@pytest.mark.parametrize("full", [Full(forward=3), Full(backward=3)])
def test_an_optimizer_that_asks_for_the_loss_again_has_each_split(full: Full) -> None:
    def trained(full: Full, *cbs: Any) -> Learner:
        learn = learner(full)
        learn.opt = torch.optim.LBFGS(learn.model.parameters(), lr=0.1, max_iter=3)
        Runner(list(cbs)).fit(1, learn)
        return learn

    split = trained(Full(full.forward, full.backward), SplitOnOOM())
    assert split.model.full.failed > 0
    assert torch.allclose(weights(trained(Full())), weights(split), rtol=1e-6)
