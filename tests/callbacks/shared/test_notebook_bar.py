"""The bar over a whole fit, drawn as text: what it says, and how far it is."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventtrain import AvgStatsCallback, Learner, Runner
from eventtrain.callbacks import Checkpoint, MaxSteps, Progress
from eventtrain.callbacks.shared.bar_texts import Wanted
from eventtrain.callbacks.shared.notebook_bar import NotebookBar

tqdm = pytest.importorskip("tqdm", reason="needs tqdm (extra 'watch')").tqdm

Make = Callable[..., Learner]


class Watched(Runner):
    """A runner with a bar for notebooks that is drawn into a text."""

    def __init__(self, *others: Any, loss: bool = False) -> None:
        self.text = io.StringIO()
        progress = Progress(every=0, file=self.text, disable=False)
        options = {"mininterval": 0, "miniters": 1, "disable": False, "file": self.text}
        wanted = Wanted(loss, None, leave=True)
        self.view = progress._view = NotebookBar(tqdm, wanted, options, 0.0, has_table=False)
        super().__init__([AvgStatsCallback(report=None), progress, *others])

    @property
    def drawn(self) -> list[tuple[str, str]]:
        """What the bar said, and how far it was, each time that one of them had changed."""
        found = re.findall(r"\r([^\r]*?):[^\r]*?\| *(\d+/\d+) ", self.text.getvalue())
        return list(dict.fromkeys(found))


def test_it_says_what_is_under_way_and_counts_the_batches_of_training(learner: Learner) -> None:
    run = Watched()
    run.fit(2, learner)
    epochs = [
        [
            *[(f"epoch {epoch} train", f"{3 * epoch + batch}/6") for batch in (1, 2, 3)],
            *[(f"epoch {epoch} validate {batch}/2", f"{3 * epoch + 3}/6") for batch in (1, 2)],
        ]
        for epoch in (0, 1)
    ]
    assert run.drawn == [("fit", "0/6"), *epochs[0], *epochs[1], ("fit", "6/6")]


def test_it_goes_on_with_the_training_after_a_validation_within_an_epoch(learner: Learner) -> None:
    run = Watched()
    run.fit(steps=3, learn=learner, validate_every=2)
    assert [text for text, _ in run.drawn] == [
        "fit",
        *["epoch 0 train"] * 2,
        *["epoch 0 validate 1/2", "epoch 0 validate 2/2"],
        "epoch 0 train",
        *["epoch 0 validate 1/2", "epoch 0 validate 2/2"],
        "fit",
    ]
    assert run.drawn[-1][1] == "3/3"


def test_a_fit_that_is_resumed_in_an_epoch_begins_where_it_stands(
    make_learner: Make, tmp_path: Path
) -> None:
    cancelled = Runner(Checkpoint(tmp_path))
    cancelled.on("after_step", lambda run: run.token.cancel("fit") if run.steps == 5 else None)
    cancelled.fit(3, make_learner())
    run = Watched(Checkpoint(tmp_path))
    initial: list[int] = []
    run.on("after_batch", lambda run: initial.append(run.view.bar.initial), priority=-90)
    run.fit(3, make_learner(), resume="auto")
    assert run.drawn[:2] == [("fit", "0/9"), ("epoch 1 train", "6/9")]
    assert set(initial) == {5}
    assert run.drawn[-1] == ("fit", "9/9")


@pytest.mark.parametrize("scope", ["batch", "train", "epoch"])
def test_what_was_skipped_lies_behind_too(scope: str, learner: Learner) -> None:
    run = Watched()
    run.on("after_pred", lambda run: run.token.cancel(scope), during="train")
    run.fit(2, learner)
    assert run.drawn[-1] == ("fit", "6/6")
    assert ("epoch 1 train", "4/6") in run.drawn


def test_it_ends_where_a_callback_ends_the_fit(learner: Learner) -> None:
    run = Watched(MaxSteps(4))
    run.fit(3, learner)
    assert run.drawn[-1] == ("cancelled in epoch 1", "4/4")


def test_a_loader_without_length_has_epochs_counted(learner: Learner) -> None:
    batches = list(learner.data.train_dl)
    learner.data.train_dl = iter_of(batches)
    run = Watched()
    run.fit(2, learner)
    assert [place for _, place in run.drawn if place] == sorted(place for _, place in run.drawn)
    assert run.drawn[-1] == ("fit", "2/2")


class iter_of:
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def test_the_loss_of_the_batch_may_stand_beside_it(learner: Learner) -> None:
    run, losses = Watched(loss=True), []
    run.on("after_batch", lambda run: losses.append(run.loss.item()))
    run.fit(1, learner)
    assert all(f"loss={loss:.4g}]" in run.text.getvalue() for loss in losses)


def test_nothing_is_read_unless_the_loss_is_shown(learner: Learner, no_sync: Any) -> None:
    _, _, progress = Watched().cbs
    with no_sync:
        Runner(progress).fit(1, learner)


def test_a_second_fit_after_a_failure_starts_clean(learner: Learner) -> None:
    run = Watched()
    fail = run.on("after_pred", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    assert run.view.bar is None
    assert run.drawn[-1] == ("failed in epoch 0", "1/3")
    fail.disconnect()
    run.fit(1, learner)
    assert run.drawn[-1] == ("fit", "3/3")
