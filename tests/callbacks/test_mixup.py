"""Mixup against the same arithmetic by hand; what it shares with CutMix is tested here."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, accuracy
from eventtrain.callbacks import Checkpoint, CutMix, Mixup
from eventtrain.priorities import METRICS, MOVE_DATA

Make = Callable[..., Learner]
cross_entropy = nn.functional.cross_entropy


def same_weights(one: Learner, other: Learner) -> bool:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def draws(run: Runner) -> list[tuple[float, list[int]]]:
    """Return the list that gets share and permutation of every training batch."""
    seen: list[tuple[float, list[int]]] = []

    @run.on("after_loss", during="train")
    def look(run: Runner) -> None:
        cb: Any = next(cb for cb in run.cbs if isinstance(cb, Mixup))
        seen.append((cb.lam, cb.permutation.tolist()))

    return seen


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_are_those_of_a_loop_that_mixes_itself(reduction: str, make_learner: Make) -> None:
    def loss_func(pred: Tensor, yb: Tensor) -> Tensor:
        return cross_entropy(pred, yb, reduction=reduction)

    learner, by_hand = make_learner(), make_learner()
    learner.loss_func = loss_func
    run = Runner(cbs=Mixup())
    if reduction == "none":

        @run.on("after_loss", during="train")
        def average(run: Runner) -> None:
            assert run.loss.shape == (4,)
            run.loss = run.loss.mean()

    seen = draws(run)
    torch.manual_seed(5)
    run.fit(2, learner)
    batches = list(by_hand.data.train_dl) * 2
    assert len(seen) == len(batches)
    for (lam, rows), (xb, yb) in zip(seen, batches, strict=True):
        mixed = lam * xb + (1 - lam) * xb[rows]
        pred = by_hand.model(mixed)
        loss = lam * loss_func(pred, yb) + (1 - lam) * loss_func(pred, yb[rows])
        loss.mean().backward()
        by_hand.opt.step()
        by_hand.opt.zero_grad()
    assert same_weights(learner, by_hand)


def test_the_mixed_loss_is_that_of_mixed_one_hot_targets(learner: Learner) -> None:
    run = Runner(cbs=Mixup(alpha=1.0))
    seen = draws(run)

    @run.on("after_loss", during="train")
    def compare(run: Runner) -> None:
        lam, rows = seen[-1]
        one_hot = nn.functional.one_hot(run.yb, 3).float()
        target = lam * one_hot + (1 - lam) * one_hot[rows]
        torch.testing.assert_close(run.loss, cross_entropy(run.pred, target))

    assert run.fit(2, learner).outcome == "completed"


def test_metrics_see_the_original_targets_and_loss_function(learner: Learner) -> None:
    run = Runner(cbs=[Mixup(), AvgStatsCallback(accuracy, report=None)])
    events = ["begin_batch", "after_pred", "after_loss", "after_backward", "after_batch"]
    seen: list[bool] = []

    @run.on(events, during="train", priority=-900)
    def look(run: Runner) -> None:
        seen.append(run.loss_func is cross_entropy and run.yb is run.batch[1])

    run.on("after_loss", look, during="train", priority=500, name="look early")
    result = run.fit(1, learner)
    assert seen == [True] * 18
    assert "train_accuracy" in result.history[0]


def test_validation_and_prediction_are_untouched(make_learner: Make) -> None:
    learner = make_learner()
    plain = Runner(cbs=AvgStatsCallback(report=None)).validate(learner).history
    run = Runner(cbs=[Mixup(), AvgStatsCallback(report=None)])
    assert run.validate(learner).history == plain
    expected = Runner().predict(learner, learner.data.valid_dl)
    assert torch.equal(run.predict(learner, learner.data.valid_dl), expected)


def test_the_validation_in_a_fit_measures_the_loss_as_it_is(learner: Learner) -> None:
    history = Runner(cbs=[Mixup(), AvgStatsCallback(report=None)]).fit(1, learner).history
    alone = Runner(cbs=AvgStatsCallback(report=None)).validate(learner).history
    assert history[0]["valid_loss"] == alone[0]["valid_loss"]


def test_a_batch_draws_one_whole_number(learner: Learner) -> None:
    generator, by_hand = (torch.Generator().manual_seed(3) for _ in range(2))
    Runner(cbs=Mixup(generator=generator)).fit(2, learner)
    torch.empty(6, dtype=torch.int64).random_(generator=by_hand)
    assert torch.equal(generator.get_state(), by_hand.get_state())


def test_shares_are_drawn_as_in_the_papers_by_default() -> None:
    assert (Mixup().alpha, CutMix().alpha) == (0.4, 1.0)


def test_the_loaders_tensors_are_left_alone(learner: Learner) -> None:
    batches = [(xb.clone(), yb.clone()) for xb, yb in learner.data.train_dl]
    kept = [(xb.clone(), yb.clone()) for xb, yb in batches]
    learner.data = DataBunch(batches, None)
    Runner(cbs=Mixup()).fit(1, learner)
    for batch, before in zip(batches, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, before, strict=True))


def test_shares_follow_the_beta_distribution(make_learner: Make) -> None:
    run = Runner(cbs=Mixup(alpha=0.4))
    seen = draws(run)
    torch.manual_seed(0)
    run.fit(100, make_learner(20, valid=0))
    shares = [lam for lam, _ in seen]
    expected = torch.distributions.Beta(torch.tensor(0.4), torch.tensor(0.4))
    assert statistics.mean(shares) == pytest.approx(expected.mean.item(), abs=0.03)
    assert statistics.pvariance(shares) == pytest.approx(expected.variance.item(), abs=0.01)
    assert all(0 <= share <= 1 for share in shares)


def test_all_permutations_are_drawn_alike(make_learner: Make) -> None:
    run = Runner(cbs=Mixup())
    seen = draws(run)
    torch.manual_seed(0)
    run.fit(100, make_learner(24, valid=0))
    counts: dict[tuple[int, ...], int] = {}
    for _, rows in seen:
        counts[tuple(rows)] = counts.get(tuple(rows), 0) + 1
    assert len(counts) == 24
    assert all(60 < count < 145 for count in counts.values())  # 100 expected, deviation 10


# Where random numbers come from


def test_torchs_seed_fixes_everything_by_default(make_learner: Make) -> None:
    def fit(seed: int) -> list[Any]:
        run = Runner(cbs=Mixup())
        seen = draws(run)
        torch.manual_seed(seed)
        run.fit(1, make_learner())  # sets the seed to 0, whatever it was
        return seen

    first = fit(1)
    assert fit(1) == first
    assert len({lam for lam, _ in first}) == 3


def test_a_generator_of_its_own_leaves_torchs_alone(make_learner: Make) -> None:
    learner = make_learner()
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(1)
    run = Runner(cbs=Mixup(generator=generator))
    seen = draws(run)
    run.fit(1, learner)
    assert torch.equal(torch.get_rng_state(), before)
    generator.manual_seed(1)
    run.fit(1, learner)
    assert seen[3:] == seen[:3]


def test_pythons_own_generator_is_left_alone(learner: Learner) -> None:
    import random

    before = random.getstate()
    Runner(cbs=Mixup()).fit(1, learner)
    assert random.getstate() == before


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("after", [2, 3, 4])
def test_a_resumed_fit_ends_like_one_that_was_never_interrupted(
    after: int, own: bool, make_learner: Make, tmp_path: Path
) -> None:
    def mixup() -> Mixup:
        return Mixup(generator=torch.Generator().manual_seed(1) if own else None)

    whole, first, second = (make_learner() for _ in range(3))
    torch.manual_seed(2)
    Runner(cbs=mixup()).fit(3, whole)
    run = Runner(cbs=[mixup(), Checkpoint(tmp_path)])
    stop = {"when": lambda run: run.in_train and run.n_iter == after}
    run.on("after_batch", lambda run: run.token.cancel("fit"), **stop)
    torch.manual_seed(2)
    run.fit(3, first)
    torch.manual_seed(9)
    Runner(cbs=[mixup(), Checkpoint(tmp_path)]).fit(3, second, resume=tmp_path)
    assert same_weights(second, whole)
    assert not same_weights(first, whole)


def test_the_state_survives_a_file() -> None:
    one, other = (Mixup(generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert one.generator is not None and other.generator is not None
    assert torch.equal(one.generator.get_state(), other.generator.get_state())


def test_the_state_of_a_generator_needs_a_generator() -> None:
    state = Mixup(generator=torch.Generator()).state_dict()
    with pytest.raises(ValueError, match="make it with one"):
        Mixup().load_state_dict(state)
    with pytest.raises(ValueError, match="make it without one"):
        Mixup(generator=torch.Generator()).load_state_dict({})


def test_without_a_generator_of_its_own_there_is_nothing_to_take_back() -> None:
    mixup = Mixup()
    mixup.load_state_dict(mixup.state_dict())
    assert mixup.state_dict() == {}


def test_nothing_is_read_from_the_device(learner: Learner, no_sync: Any) -> None:
    run = Runner(cbs=Mixup())
    with no_sync:
        assert run.fit(2, learner).outcome == "completed"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mixing", [Mixup, CutMix])
def test_cuda_is_not_waited_for(
    mixing: Any, learner: Learner, sync_debug_mode: Callable[[str], None]
) -> None:
    learner.model = nn.Sequential(nn.Flatten(), learner.model).cuda()
    x, y = torch.randn(4, 1, 5, device="cuda"), torch.zeros(4, dtype=torch.long, device="cuda")
    learner.data = DataBunch([(x, y)] * 3, None)
    run = Runner(cbs=mixing())
    for event, mode in {"begin_train": "error", "after_train": "default"}.items():
        run.on(event, lambda run, mode=mode: sync_debug_mode(mode), priority=1000)
    assert run.fit(1, learner).outcome == "completed"


# Putting back


@pytest.mark.parametrize("event", ["begin_batch", "after_pred", "after_loss", "after_backward"])
@pytest.mark.parametrize("how", ["cancel", "raise"])
@pytest.mark.parametrize("priority", [0, -2000])
def test_the_loss_function_is_put_back_whatever_happens(
    event: str, how: str, priority: float, learner: Learner
) -> None:
    run = Runner(cbs=Mixup())

    def spoil(run: Runner) -> None:
        if how == "raise":
            raise ArithmeticError
        run.token.cancel("fit")

    run.on(event, spoil, priority=priority)
    in_closing: list[bool] = []
    run.on("after_batch", lambda run: in_closing.append(run.loss_func is cross_entropy))
    if how == "raise":
        with pytest.raises(ArithmeticError):
            run.fit(1, learner)
    else:
        run.fit(1, learner)
    assert learner.loss_func is cross_entropy
    assert in_closing == [True]


def test_the_loss_function_is_put_back_when_it_fails_itself(learner: Learner) -> None:
    def broken(pred: Tensor, yb: Tensor) -> Tensor:
        raise ArithmeticError

    learner.loss_func = broken
    with pytest.raises(ArithmeticError):
        Runner(cbs=Mixup()).fit(1, learner)
    assert learner.loss_func is broken


def test_a_loss_function_that_somebody_sets_meanwhile_stays(learner: Learner) -> None:
    def other(pred: Tensor, yb: Tensor) -> Tensor:
        return cross_entropy(pred, yb) * 2

    run = Runner(cbs=Mixup())

    @run.on("after_pred", priority=-2000, during="train")
    def replace(run: Runner) -> None:
        assert run.learn is not None
        run.learn.loss_func = other

    run.fit(1, learner)
    assert learner.loss_func is other


def test_a_second_fit_mixes_as_the_first(learner: Learner) -> None:
    run = Runner(cbs=Mixup())
    seen = draws(run)
    run.fit(1, learner)
    run.fit(1, learner)
    assert len(seen) == 6
    assert learner.loss_func is cross_entropy


def test_a_fit_of_no_epochs_draws_nothing(learner: Learner) -> None:
    before = torch.get_rng_state()
    Runner(cbs=Mixup()).fit(0, learner)
    assert torch.equal(torch.get_rng_state(), before)


# With another one that mixes


def two_mixers(order: int, epochs: int) -> tuple[list[str], Learner]:
    """Train with Mixup and CutMix; return who mixed each batch, and the learner."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 1, 4, 4), torch.randint(0, 3, (32,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    learn = Learner(model, opt, cross_entropy, DataBunch([(x[:4], y[:4])] * 20))
    run = Runner([Mixup(), CutMix()][::order])
    seen: list[str] = []

    def note(run: Runner) -> None:
        assert run.mixup._is_mixing != run.cut_mix._is_mixing
        seen.append("mixup" if run.mixup._is_mixing else "cutmix")

    run.on("after_loss", note)
    run.fit(epochs, learn)
    return seen, learn


def test_of_two_that_mix_one_chosen_at_random_mixes_each_batch() -> None:
    seen, _ = two_mixers(1, 10)
    assert 60 < seen.count("mixup") < 140  # 100 expected, deviation 7
    assert len({tuple(seen[i : i + 5]) for i in range(0, 200, 5)}) > 10


def test_the_order_in_which_two_were_made_makes_no_difference() -> None:
    (seen, one), (other_seen, other) = two_mixers(1, 2), two_mixers(-1, 2)
    assert seen == other_seen
    assert torch.equal(one.model[1].weight, other.model[1].weight)


def test_a_second_fit_has_its_own_draw_of_who_mixes_the_first_batch() -> None:
    def mixers(run: Runner) -> list[tuple[bool, float, float]]:
        seen: list[tuple[bool, float, float]] = []
        mixup, cut_mix = run.mixup, run.cut_mix
        note = lambda run: seen.append((mixup._is_mixing, mixup.lam, cut_mix.lam))  # noqa: E731
        run.on("after_loss", note, during="train")
        torch.manual_seed(5)
        run.fit(1, learner)
        return seen

    x, y = torch.randn(4, 1, 4, 4), torch.randint(0, 3, (4,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = Learner(model, opt, cross_entropy, DataBunch([(x, y)] * 4))
    run = Runner([Mixup(), CutMix()])
    torch.manual_seed(4)
    stop = run.on("after_pred", lambda run: run.token.cancel("fit"))
    run.fit(1, learner)  # ends in the batch of the same number as the next fit's first
    stop.disconnect()
    run.mixup.lam = run.cut_mix.lam = 1.0
    assert mixers(run) == mixers(Runner([Mixup(), CutMix()]))


def test_it_mixes_after_moving_and_before_measuring(learner: Learner) -> None:
    shapes: dict[int, bool] = {}
    run = Runner(cbs=Mixup())
    for priority in (MOVE_DATA - 1, METRICS + 1):
        look = lambda run, p=priority: shapes.update({p: run.xb is run.batch[0]})  # noqa: E731
        run.on("begin_batch", look, priority=priority, during="train")
    run.fit(1, learner)
    assert shapes == {MOVE_DATA - 1: True, METRICS + 1: False}


# What it refuses


X, Y = torch.zeros(4, 5), torch.zeros(4).long()


@pytest.mark.parametrize(
    ("part", "batch"),
    [
        ("inputs", ({"x": X}, Y)),
        ("targets", (X, {"y": Y})),
        ("inputs", (X[0, 0], Y)),
        ("targets", (X, Y[0])),
    ],
)
def test_batches_of_other_parts_are_told(part: str, batch: Any, learner: Learner) -> None:
    learner.data = DataBunch([batch], None)
    with pytest.raises(TypeError, match=f"Mixup needs {part} that are one tensor"):
        Runner(cbs=Mixup()).fit(1, learner)


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf"), "0.4", True])
def test_alpha_must_be_positive(alpha: Any) -> None:
    with pytest.raises(ValueError, match="alpha"):
        Mixup(alpha)


def test_alpha_may_be_a_number_of_numpys() -> None:
    assert Mixup(np.float32(0.5)).alpha == 0.5


def test_the_generator_must_be_one() -> None:
    with pytest.raises(TypeError, match="generator"):
        Mixup(generator=3)  # type: ignore[arg-type]


def test_inputs_of_half_precision_stay_so_and_whole_numbers_become_floats() -> None:
    rows, mixup = torch.tensor([1, 0]), Mixup()
    half = torch.ones(2, 3, dtype=torch.float16)
    assert mixup.mix(half, rows, 0.3, None)[0].dtype == torch.float16  # type: ignore[arg-type]
    whole = torch.tensor([[0], [200]], dtype=torch.uint8)
    mixed, _ = mixup.mix(whole, rows, 0.25, None)  # type: ignore[arg-type]
    assert mixed.tolist() == [[150.0], [50.0]]


@pytest.mark.parametrize("make", [Mixup, CutMix])
def test_inputs_and_targets_of_different_numbers_are_refused(make: type, learner: Learner) -> None:
    learner.data.train_dl = [(torch.randn(4, 1, 5), torch.zeros(3, 4))]
    with pytest.raises(ValueError, match=r"4 of inputs and 3 of targets.*first dimension"):
        Runner(make()).fit(1, learner)
