"""CutMix against masks drawn by hand; what it shares with Mixup is tested there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventtrain import DataBunch, Learner, Runner
from eventtrain.callbacks import Checkpoint, CutMix

HEIGHT, WIDTH = 6, 9
Check = Callable[[Runner], None]


@pytest.fixture
def images() -> Callable[[], Learner]:
    """Learners on batches of images in which every pixel tells which image it is of."""

    def make() -> Learner:
        torch.manual_seed(0)
        x = torch.arange(1.0, 9.0).view(8, 1, 1, 1).expand(8, 2, HEIGHT, WIDTH).contiguous()
        y = torch.arange(8) % 3
        model = nn.Sequential(nn.Flatten(), nn.Linear(2 * HEIGHT * WIDTH, 3))
        opt = torch.optim.SGD(model.parameters(), lr=0.001)
        data = DataBunch([(x[:4], y[:4]), (x[4:], y[4:])], [(x[:4], y[:4])])
        return Learner(model, opt, nn.functional.cross_entropy, data)

    return make


def each_batch(learner: Learner, check: Check, epochs: int = 30) -> None:
    run = Runner(cbs=CutMix())
    calls: list[int] = []

    @run.on("after_loss", during="train")
    def look(run: Runner) -> None:
        check(run)
        calls.append(1)

    run.fit(epochs, learner)
    assert len(calls) == 2 * epochs


def foreign(run: Runner) -> Tensor:
    """Mark the pixels that differ from the image as loaded: bool [batch, channels, h, w]."""
    mark: Tensor = run.xb != run.batch[0]
    return mark


def test_every_pixel_is_of_the_image_or_of_its_partner(images: Any) -> None:
    def check(run: Runner) -> None:
        partner = run.batch[0][run.cut_mix.permutation]  # type: ignore[attr-defined]
        assert torch.equal(run.xb, torch.where(foreign(run), partner, run.batch[0]))

    each_batch(images(), check)


def test_what_is_replaced_is_one_box_the_same_for_all_images(images: Any) -> None:
    def check(run: Runner) -> None:
        mark = foreign(run)
        other = run.cut_mix.permutation != torch.arange(4)  # type: ignore[attr-defined]
        if not other.any() or not mark.any():
            return
        box = mark[other][0, 0]
        assert torch.equal(mark[other], box.expand_as(mark[other]))
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & columns)
        for line in (rows, columns):
            at = line.nonzero().flatten()
            assert len(at) == at[-1] - at[0] + 1

    each_batch(images(), check)


def test_the_losses_are_mixed_by_the_area_that_stayed(images: Any) -> None:
    seen: set[float] = set()

    def check(run: Runner) -> None:
        rows = run.cut_mix.permutation  # type: ignore[attr-defined]
        mark = foreign(run)[rows != torch.arange(4)]
        if len(mark) == 0:
            return
        lam = 1 - mark[0, 0].sum().item() / (HEIGHT * WIDTH)
        seen.add(lam)
        own, other = (nn.functional.cross_entropy(run.pred, y) for y in (run.yb, run.yb[rows]))
        torch.testing.assert_close(run.loss, lam * own + (1 - lam) * other)

    each_batch(images(), check)
    assert len(seen) > 10


def test_the_sides_are_the_root_of_the_share_and_cut_at_the_edges() -> None:
    class Middle:
        """Chooses where the box's middle lies."""

        def __init__(self, *middles: int) -> None:
            self.middles = list(middles)

        def randrange(self, stop: int) -> int:
            assert self.middles[0] < stop
            return self.middles.pop(0)

    x = torch.stack([torch.zeros(8, 12), torch.ones(8, 12)])
    rows = torch.tensor([1, 0])
    mixed, lam = CutMix().mix(x, rows, 0.75, Middle(4, 6))  # type: ignore[arg-type]
    expected = torch.zeros(8, 12)
    expected[2:6, 3:9] = 1  # half of each side, around the middle
    assert torch.equal(mixed, torch.stack([expected, 1 - expected]))
    assert lam == 0.75
    mixed, lam = CutMix().mix(x, rows, 0.75, Middle(0, 11))  # type: ignore[arg-type]
    expected = torch.zeros(8, 12)
    expected[:2, 8:] = 1
    assert torch.equal(mixed[0], expected)
    assert lam == pytest.approx(1 - 2 * 4 / 96)


def test_images_of_whole_numbers_stay_so() -> None:
    x = torch.arange(2 * 4 * 4, dtype=torch.uint8).view(2, 4, 4)
    import random

    mixed, _ = CutMix().mix(x, torch.tensor([1, 0]), 0.5, random.Random(0))
    assert mixed.dtype == torch.uint8


def test_the_loaders_images_are_left_alone(images: Any) -> None:
    learner = images()
    before = [xb.clone() for xb, _ in learner.data.train_dl]
    Runner(cbs=CutMix()).fit(3, learner)
    assert all(torch.equal(a, b) for a, (b, _) in zip(before, learner.data.train_dl, strict=True))


def test_inputs_that_are_no_images_are_told(learner: Learner) -> None:
    with pytest.raises(ValueError, match=r"height, width\], got \[4, 5\]"):
        Runner(cbs=CutMix()).fit(1, learner)


def test_validation_is_untouched(images: Any) -> None:
    learner = images()
    run = Runner(cbs=CutMix())
    seen: list[bool] = []
    run.on("after_pred", lambda run: seen.append(run.xb is run.batch[0]), during="validate")
    run.fit(2, learner)
    assert seen == [True, True]
    assert learner.loss_func is nn.functional.cross_entropy


def test_a_resumed_fit_ends_like_one_that_was_never_interrupted(
    images: Any, tmp_path: Path
) -> None:
    whole, first, second = images(), images(), images()
    torch.manual_seed(2)
    Runner(cbs=CutMix()).fit(3, whole)
    run = Runner(cbs=[CutMix(), Checkpoint(tmp_path)])
    stop = {"when": lambda run: run.in_train and run.n_iter == 3}
    run.on("after_batch", lambda run: run.token.cancel("fit"), **stop)
    torch.manual_seed(2)
    run.fit(3, first)
    Runner(cbs=[CutMix(), Checkpoint(tmp_path)]).fit(3, second, resume=tmp_path)
    assert torch.equal(second.model[1].weight, whole.model[1].weight)
    assert not torch.equal(first.model[1].weight, whole.model[1].weight)


def test_nothing_is_read_from_the_device(images: Any, no_sync: Any) -> None:
    learner, run = images(), Runner(cbs=CutMix())
    with no_sync:
        assert run.fit(3, learner).outcome == "completed"


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan")])
def test_alpha_must_be_positive(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        CutMix(alpha)
