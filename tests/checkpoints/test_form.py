"""A content that no run can go on from is refused, whatever is wrong with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from eventtrain import (
    AvgStatsCallback,
    Callback,
    CheckpointError,
    DataBunch,
    Learner,
    Runner,
    TensorLoader,
    load_checkpoint,
)
from eventtrain.callbacks import Checkpoint
from eventtrain.checkpoints.files import list_checkpoints, write_checkpoint
from eventtrain.checkpoints.form import check_position


class Counting(Callback):
    """Keeps something."""

    def __init__(self) -> None:
        self.n = 0

    def after_batch(self, run: Runner) -> None:
        self.n += 1

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n = state["n"]


def learner() -> Learner:
    torch.manual_seed(0)
    data = DataBunch(TensorLoader(torch.randn(16, 3), torch.randn(16, 1), bs=4, shuffle=True))
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    opt = torch.optim.Adam(model.parameters(), lr=0.1)
    return Learner(model, opt, nn.functional.mse_loss, data)


def runner(folder: Path) -> Runner:
    return Runner([AvgStatsCallback(report=None), Counting(), Checkpoint(folder)])


@pytest.fixture(scope="module", params=["within an epoch", "between epochs"])
def saved(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    run = runner(folder)
    if request.param == "within an epoch":
        run.on("after_batch", lambda run: run.token.cancel("fit", "away"),
               when=lambda run: run.n_iter == 6)  # fmt: skip
    run.fit(2, learner())
    return folder


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places in a nest of dictionaries, two below the top and not in tensors."""
    if isinstance(value, dict) and len(place) < 3:
        for key, each in value.items():
            yield (*place, key)
            yield from places(each, (*place, key))


# What it tells for those who look in, or what need not be there.
LEFT_TO_OTHERS = {
    "validate_every",
    "epochs",
    "record",
    "opt_class",
    "last_batch",
    "loader_state",
    "frozen",
    "loaders",
    "buffers",
    "parameters",
}
OF_LOADER = {"loader_state"}  # in whatever form it says it
LEFT_TO_OTHERS |= {"world_size", "syncs_buffers", "arrival_order", "valid_names", "valid_name"}


def refused(content: dict[str, Any], folder: Path) -> None:
    """See that nothing has changed when a run is refused."""
    record = list_checkpoints(folder)[-1]
    write_checkpoint(record, content)
    learn, run = learner(), runner(folder)
    before = str((learn.model.state_dict(), learn.opt.state_dict()))
    random = torch.get_rng_state()
    files = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match="checkpoint"):
        run.fit(3, learn, resume=record.path)
    assert str((learn.model.state_dict(), learn.opt.state_dict())) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert {path: path.read_bytes() for path in folder.iterdir()} == files


def changed(content: Any, place: tuple[Any, ...], value: Any = None, *, drop: bool = False) -> Any:
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if drop:
        inner[f"{place[-1]}_"] = inner.pop(place[-1])
    else:
        inner[place[-1]] = value
    return content


def test_a_wrong_key_at_any_place_is_refused(saved: Path) -> None:
    content = load_checkpoint(saved)
    tried = 0
    for place in places(content):
        key = place[0]
        may_lack = len(place) == 1 and key in LEFT_TO_OTHERS
        # A row's numbers, and what an optimizer, a loader or NumPy add of their own.
        if may_lack or key in ("record", "last_batch") or place[-1] in ("numpy", "numbers"):
            continue
        if key == "history" or place[:2] == ("opt", "state") or key == "gradients":
            continue
        if key == "callbacks" and len(place) == 3 and place[1] != "counting":
            continue
        refused(changed(content, place, drop=True), saved)
        tried += 1
    assert tried > 20
    write_checkpoint(list_checkpoints(saved)[-1], content)
    runner(saved).fit(2, learner(), resume="auto")


VALUES = st.one_of(
    st.none(),
    st.integers(-3, 3).filter(lambda n: n < 0),
    st.text(max_size=3),
    st.just([1]),
    st.just([[]]),
    st.just(10**30),
    st.just(torch.zeros(3)),
    st.floats(),
)


@settings(max_examples=60)
@given(data=st.data())
def test_another_kind_of_value_at_the_top_is_refused(saved: Path, data: st.DataObject) -> None:
    content = load_checkpoint(saved)
    key = data.draw(
        st.sampled_from(
            sorted(
                content.keys() - {"epochs", "validate_every", "record", "last_batch"} - OF_LOADER
            )
        )
    )
    value = data.draw(VALUES)
    if value is None and key in ("phase_start", "opt_class", "valid_name"):
        return
    try:
        refused(changed(content, (key,), value), saved)
    finally:
        write_checkpoint(list_checkpoints(saved)[-1], content)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("position", "epoch"), -1),
        (("position", "batch"), 1.5),
        (("position", "phase"), 3),
        (("counters", "steps"), None),
        (("counters", "n_iter"), "6"),
        (("model", "0.weight"), 3),
        (("model", "0.weight"), torch.zeros(2)),
        (("opt", "param_groups"), [{}]),
        (("opt", "param_groups"), []),
        (("opt", "state"), {0: 3}),
        (("callbacks", "counting"), {}),
        (("callbacks", "counting"), [1]),
        (("callbacks", "counting"), {"m": 3}),
        (("random", "global", "torch"), torch.zeros(3, dtype=torch.uint8)),
        (("random", "global", "python"), (3, (1, 2), None)),
        (("random", "loaders"), [{}]),
        (("random", "loaders", 0, "order"), [4]),
        (("random", "loaders", 0, "order"), {"seed": "5"}),
        (("random", "loaders", 0, "order"), {"seed": -1}),
        (("gradients",), {"0.weight": "none"}),
        (("gradients",), {"0.weight": torch.zeros(7)}),
    ],
    ids=str,
)
def test_what_cannot_be_put_back_is_refused(
    place: tuple[Any, ...], value: Any, saved: Path
) -> None:
    content = load_checkpoint(saved)
    try:
        refused(changed(content, place, value), saved)
    finally:
        write_checkpoint(list_checkpoints(saved)[-1], content)


@pytest.mark.parametrize("begun_at", [2, -1, "1", None])
def test_a_phase_that_began_behind_what_was_done_is_refused(begun_at: Any) -> None:
    position = {"epoch": 0, "phase": "train", "batch": 2}
    check_position({"position": position, "phase_start": {"begun_at": 1}}, "a snapshot")
    with pytest.raises(CheckpointError, match="contradict"):
        check_position({"position": position, "phase_start": {"begun_at": begun_at}}, "a snapshot")
