"""torchrun starts all ranks again when one is lost, and the run goes on as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from agents import Told, agents

PROGRAM = Path(__file__).with_name("restarted_program.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="needs gloo",
    ),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What each of two ranks tells at the end, where none is lost."""
    told = agents(1, 2, PROGRAM, tmp_path_factory.mktemp("whole"))
    assert [each.pop("attempt") for each in told] == [0, 0]
    assert {each.pop("began at") for each in told} == {0}
    return told


@pytest.mark.parametrize("number", [1, 2], ids=["one agent", "two agents"])
def test_a_run_that_lost_rank_zero_ends_with_the_weights_bit_for_bit(
    whole: Told, tmp_path: Path, number: int
) -> None:
    lost = agents(number, 2 // number, PROGRAM, tmp_path, "KILL", restarts=3)
    # Each agent counts the restarts that its own ranks made necessary.
    assert [each.pop("attempt") for each in lost] == ([1, 1] if number == 1 else [1, 0])
    # The checkpoint of the last step before may not have been on the disk yet.
    assert {each.pop("began at") for each in lost} <= {7, 8, 9}
    assert lost == whole
