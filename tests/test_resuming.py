"""Where a resumed run goes on, as the loop asks for it."""

from __future__ import annotations

from itertools import product

import pytest

from eventtrain import Runner
from eventtrain.events import Vocabulary
from eventtrain.resuming import FromTheStart, Resumption

PHASES = [name for name in Vocabulary().children("epoch") if name in Vocabulary().phases]


def resumption(phase: str | None) -> Resumption:
    """Of a snapshot that was taken in ``phase`` of the first epoch."""
    position = {"epoch": 0, "phase": phase, "batch": 1}
    return Resumption({"position": position, "phase_start": {}}, "a snapshot")


def run_in(epoch: int) -> Runner:
    run = Runner()
    run.epoch = epoch
    return run


@pytest.mark.parametrize(("resumed", "asked"), list(product(PHASES, PHASES)))
def test_phases_before_the_one_that_is_resumed_are_past(resumed: str, asked: str) -> None:
    is_before = PHASES.index(asked) < PHASES.index(resumed)
    assert resumption(resumed).is_past(asked, run_in(0)) == is_before


@pytest.mark.parametrize("phase", PHASES)
def test_in_another_epoch_no_phase_is_past(phase: str) -> None:
    assert not any(resumption(phase).is_past(each, run_in(1)) for each in PHASES)


@pytest.mark.parametrize("phase", PHASES)
def test_between_epochs_no_phase_is_past(phase: str) -> None:
    assert not resumption(None).is_past(phase, run_in(0))


@pytest.mark.parametrize("phase", PHASES)
def test_at_the_beginning_no_phase_is_past(phase: str) -> None:
    assert not FromTheStart().is_past(phase, run_in(0))
