"""Where a resumed run goes on, as the loop asks for it."""

from __future__ import annotations

import pytest

from eventtrain import Runner
from eventtrain.resuming import FromTheStart, Resumption


def resumption(phase: str | None) -> Resumption:
    """Of a snapshot that was taken in ``phase`` of the first epoch."""
    position = {"epoch": 0, "phase": phase, "batch": 1}
    return Resumption({"position": position, "phase_start": {}}, "a snapshot")


def run_in(epoch: int) -> Runner:
    run = Runner()
    run.epoch = epoch
    return run


@pytest.mark.parametrize(("phase", "is_trained"), [("train", False), ("validate", True)])
def test_training_was_done_where_a_run_was_interrupted_after_it(
    phase: str, is_trained: bool
) -> None:
    assert resumption(phase).enter_epoch(run_in(0)) == is_trained


def test_in_another_epoch_nothing_was_done() -> None:
    assert not resumption("validate").enter_epoch(run_in(1))


def test_between_epochs_nothing_was_done() -> None:
    assert not resumption(None).enter_epoch(run_in(0))


def test_at_the_beginning_nothing_was_done() -> None:
    assert not FromTheStart().enter_epoch(run_in(0))
