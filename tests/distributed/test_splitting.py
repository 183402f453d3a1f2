"""Batches that do not fit on one of two ranks, against a loop in one process in which they do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import splitting_program as program
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

PROGRAM = Path(program.__file__)
SPLIT = ["forward", "backward", "both", "from the start", "sharded whole"]
SHARDED = [
    f"sharded {how}" for how in ("forward", "backward", "both", "from the start", "checkpointed")
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="needs gloo",
    ),
]
Told = dict[str, list[dict[str, Any]]]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(scope="module")
def told(torchrun: Any, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What the two ranks told of each deed; they do all of them in one run."""
    return told_by(torchrun, tmp_path_factory.mktemp("splitting"))


def told_by(torchrun: Any, folder: Path, *last: str) -> Told:
    done = torchrun(str(PROGRAM), str(folder), *last, limit=120)
    files = [folder / f"{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in files), done.stderr
    ranks = [json.loads(file.read_text()) for file in files]
    return {deed: [rank[deed] for rank in ranks] for deed in ranks[0]}


def by_hand(
    loss_of: Loss,
    group: int = 1,
    clip: float | None = None,
    kind: type[nn.Module] = program.Model,
) -> Any:
    """The weights of a loop in one process, on whole batches."""
    torch.manual_seed(0)
    model = kind(program.Memory()).double()
    opt = program.sgd(model.parameters())
    x, y = program.data()
    starts = range(0, program.ROWS, program.BS)
    for _ in range(2):
        for first in range(0, len(starts), group):
            ends = [slice(s, s + program.BS) for s in starts[first : first + group]]
            rows = sum(len(x[end]) for end in ends)
            for end in ends:
                loss = loss_of(x[end], model(x[end]), y[end])
                (loss * len(x[end]) / rows).backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            opt.step()
            opt.zero_grad()
    return program.weights(model)


def mean(xb: Tensor, pred: Tensor, yb: Tensor) -> Tensor:
    return cross_entropy(pred, yb)


@pytest.mark.parametrize("deed", SPLIT)
def test_weights_are_those_of_whole_batches_in_one_process(told: Told, deed: str) -> None:
    for rank in told[deed]:
        assert rank["weights"] == pytest.approx(by_hand(mean), rel=1e-9)
        assert rank["steps"] == 6


@pytest.mark.parametrize("deed", SHARDED)
def test_parts_that_are_gathered_are_split_each_by_itself(told: Told, deed: str) -> None:
    for rank in told[deed]:
        assert rank["weights"] == pytest.approx(by_hand(mean, kind=program.Blocks), rel=1e-9)
        assert (rank["steps"], rank["is put back"]) == (6, True)


ALIKE = [
    *(*SPLIT, *SHARDED, "accumulates", "clips", "draws", "counts large"),
    *("sharded draws", "sharded accumulates", "sharded clips", "sharded resumes"),
    "sharded precision",
]


@pytest.mark.parametrize("deed", ALIKE)
def test_weights_history_and_size_are_equal_on_all_ranks(told: Told, deed: str) -> None:
    one, other = told[deed]
    for key in ("weights", "history", "rows", "steps"):
        assert one[key] == other[key]


@pytest.mark.parametrize(
    ("deed", "failed"),
    [
        *(("forward", 2), ("backward", 2), ("both", 2), ("sharded whole", 2)),
        # There, two parts had been called with as many rows before the third one failed.
        *(("sharded forward", 2), ("sharded backward", 4), ("sharded both", 4)),
    ],
)
def test_a_size_that_one_rank_has_found_is_that_of_all_from_the_next_phase_on(
    told: Told, deed: str, failed: int
) -> None:
    one, other = told[deed]
    assert one["sizes"] == [None] * 3 + [2] * 3
    assert other["sizes"] == [2] * 6
    assert (one["failed"], other["failed"]) == (0, failed)


@pytest.mark.parametrize("deed", ["fits", "fits sharded"])
def test_where_all_fits_nothing_changes_to_the_bit(told: Told, deed: str) -> None:
    for rank in told[deed]:
        assert rank["weights"] == rank["plain"]
        assert rank["rows"] is None


KINDS = [("", program.Model), ("sharded ", program.Blocks)]


@pytest.mark.parametrize(("how", "kind"), KINDS)
def test_a_group_of_batches_is_that_of_one_process(told: Told, how: str, kind: Any) -> None:
    for rank in told[f"{how}accumulates"]:
        assert rank["weights"] == pytest.approx(by_hand(mean, group=2, kind=kind), rel=1e-9)


@pytest.mark.parametrize(("how", "kind"), KINDS)
def test_gradients_are_clipped_as_those_of_the_whole_batch(told: Told, how: str, kind: Any) -> None:
    for rank in told[f"{how}clips"]:
        assert rank["weights"] == pytest.approx(by_hand(mean, clip=0.1, kind=kind), rel=1e-9)


def test_what_the_loss_is_a_mean_of_weighs_pieces_and_ranks(told: Told) -> None:
    for rank in told["counts large"]:
        assert rank["weights"] == pytest.approx(by_hand(program.mean_of_large), rel=1e-9)


@pytest.mark.parametrize(("how", "kind"), KINDS)
def test_a_lower_precision_goes_along(told: Told, how: str, kind: Any) -> None:
    one, other = told[f"{how}precision"]
    assert one["weights"] == other["weights"]
    assert one["weights"] == pytest.approx(by_hand(mean, kind=kind), abs=0.05)


def test_a_fit_that_was_cut_goes_on_with_the_size_of_each_rank_to_the_bit(told: Told) -> None:
    one, other = told["resumes"]
    assert (one["begun with"], other["begun with"]) == (None, 2)
    assert other["failed"] == 0
    for rank in (one, other):
        assert rank["weights"] == rank["whole"]


def test_a_divided_model_goes_on_with_the_size_of_its_checkpoint(told: Told) -> None:
    for rank in told["sharded resumes"]:
        assert rank["weights"] == pytest.approx(by_hand(mean, kind=program.Blocks), rel=1e-9)
        assert (rank["failed"], set(rank["sizes"])) == (0, {2})


def test_a_model_in_a_ddp_of_the_users_is_refused(told: Told) -> None:
    says = "give Learner the model itself"
    errors = [rank["error"] for rank in told["wrapped"]]
    assert any(error.startswith("RuntimeError") for error in errors)
    assert all(says in error for error in errors)  # who is second may hear of the first


@pytest.mark.parametrize(
    ("deed", "says"),
    [
        ("has no room", "one sample alone is too much"),
        ("has no room sharded", "one sample alone is too much"),
        ("draws behind", "SplitOnOOM(rows=...) splits from the start"),
    ],
)
def test_a_rank_that_cannot_go_on_frees_the_other(
    torchrun: Any, tmp_path: Path, deed: str, says: str
) -> None:
    one, other = told_by(torchrun, tmp_path, deed)[deed]
    assert other["error"].startswith("OutOfMemoryError")
    assert any(says in note for note in other["notes"])
    assert one["error"].startswith("RemoteError: rank 1 failed: OutOfMemoryError: no room")
