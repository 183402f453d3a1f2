"""Several optimizers by name on two ranks, and going on from there on one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from forked_ranks import Ranks
from optimizers_program import fit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = tmp_path_factory.mktemp("ranks")
    ranks = Ranks("optimizers_program.py", folder, 2, "ddp", "fsdp2", "closure")
    ranks.wait(60)
    return ranks


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process does in two epochs and in three."""
    return [fit(tmp_path_factory.mktemp("alone"), "ddp", epochs) for epochs in (2, 3)]


def read(ranks: Ranks, deed: str, rank: int) -> Any:
    file = ranks.folder / deed / f"{rank}.json"
    assert file.exists(), ranks.said
    return json.loads(file.read_text())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_they_train_save_and_go_on_as_in_one_process(
    strategy: str, ranks: Ranks, alone: list[dict[str, Any]]
) -> None:
    for rank in range(2):
        _, last = read(ranks, strategy, rank)
        assert last["weights"] == pytest.approx(alone[0]["weights"], abs=1e-6)
        assert last["row"] == pytest.approx(alone[0]["row"], abs=1e-5)
        assert last["steps"] == 24


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_one_process_goes_on_from_what_two_have_saved(
    strategy: str, ranks: Ranks, alone: list[dict[str, Any]]
) -> None:
    found = fit(ranks.folder / strategy / "checkpoints", strategy, 3)
    assert found["weights"] == pytest.approx(alone[1]["weights"], abs=1e-6)
    assert found["steps"] == 36


def test_a_closure_is_refused_as_each_rank_would_decide_for_itself(ranks: Ranks) -> None:
    for rank in range(2):
        assert "another decision in each of the 2 processes" in read(ranks, "closure", rank)
