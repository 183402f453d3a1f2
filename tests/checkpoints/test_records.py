"""The record beside a checkpoint: believed as it was written, or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from eventtrain import CheckpointError, DataBunch, Learner, Runner, TensorLoader, load_checkpoint
from eventtrain.callbacks import Checkpoint
from eventtrain.checkpoints.files import list_checkpoints, next_path, write_checkpoint
from eventtrain.checkpoints.records import FORMAT, Record, read_record, record_text


def written(folder: Path, metrics: dict[str, float] | None = None) -> Record:
    path, serial = next_path(folder)
    record = Record(path, serial, "fit", 1, "train", 2, 3, metrics or {"loss": 0.25})
    write_checkpoint(record, {"format": FORMAT, "model": {"weight": torch.zeros(2)}})
    (found,) = [each for each in list_checkpoints(folder) if each.serial == serial]
    return found


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return written(tmp_path_factory.mktemp("one"))


def test_what_is_written_down_is_read(record: Record) -> None:
    assert read_record(record.path, 1) == replace(record, serial=1)
    assert record.metrics == {"loss": 0.25}


def test_whatever_byte_is_changed_nothing_else_is_believed(record: Record) -> None:
    beside = record.path.with_suffix(".json")
    whole = beside.read_bytes()
    try:
        for place in range(len(whole)):
            for bit in range(8):
                changed = bytearray(whole)
                changed[place] ^= 1 << bit
                beside.write_bytes(changed)
                with suppress(ValueError):
                    # The last digit of a number may be more than what a float holds.
                    assert read_record(record.path, 1) == record
    finally:
        beside.write_bytes(whole)


def test_nothing_can_be_cut_off_and_be_believed(record: Record) -> None:
    beside = record.path.with_suffix(".json")
    whole = beside.read_bytes()
    try:
        for length in range(len(whole.rstrip())):
            beside.write_bytes(whole[:length])
            with pytest.raises(ValueError):
                read_record(record.path)
    finally:
        beside.write_bytes(whole)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner),
)


@settings(max_examples=60)
@given(content=JSON)
def test_other_content_is_not_believed_and_the_checkpoint_itself_is_asked(
    record: Record, content: Any
) -> None:
    beside = record.path.with_suffix(".json")
    whole = beside.read_bytes()
    try:
        beside.write_text(json.dumps(content))
        assert list_checkpoints(record.path.parent) == [record]
        with pytest.raises(CheckpointError, match="is damaged: its record"):
            load_checkpoint(record.path)
    finally:
        beside.write_bytes(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": []},
        {"metrics": {"loss": "0.25"}},
        {"metrics": {"loss": True}},
        {"metrics": {"loss": None}},
        {"metrics": {"loss": 10**400}},
        {"metrics": {"loss": {}}},
        {"epoch": -1},
        {"epoch": "1"},
        {"batch": 1.5},
        {"steps": True},
        {"phase": 3},
        {"fit": None},
        {"fit": ["fit"]},
    ],
    ids=str,
)
def test_a_right_sum_over_another_kind_of_content_is_not_believed(
    changes: dict[str, Any], record: Record, tmp_path: Path
) -> None:
    wrong = replace(record, path=tmp_path / record.path.name, **changes)
    wrong.path.with_suffix(".json").write_text(record_text(wrong, record.sha256))
    with pytest.raises(ValueError, match="of another kind"):
        read_record(wrong.path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e300, 3])
def test_numbers_of_any_size_and_none_are_metrics(value: float, tmp_path: Path) -> None:
    found = written(tmp_path, {"loss": value}).metrics["loss"]
    assert found == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "\x00", "\xff"])
def test_text_without_end_is_not_believed(text: str, record: Record, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-000001.pt"
    path.write_bytes(record.path.read_bytes())
    path.with_suffix(".json").write_text(text, encoding="latin1")
    with pytest.raises(CheckpointError, match=r"000001\.pt is damaged: its record.*Resume from"):
        load_checkpoint(path)
    assert list_checkpoints(tmp_path) == [replace(record, path=path)]


def test_a_record_of_an_earlier_format_has_no_sum(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-000001.pt"
    about = json.loads(record.path.with_suffix(".json").read_text())
    del about["record_sha256"]
    path.with_suffix(".json").write_text(json.dumps({**about, "format": 2}))
    assert read_record(path, 1) == replace(record, path=path, serial=1)
    path.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="its sum is another"):
        read_record(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "away")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


STRANGE = [make_folder, make_link_to_nothing, make_loop]
SYMLINKS = pytest.mark.skipif(os.name == "nt", reason="making links needs rights there")


@SYMLINKS
@pytest.mark.parametrize("make", STRANGE)
def test_what_only_has_the_name_of_a_checkpoint_is_left_alone(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    written(tmp_path)
    strange = tmp_path / "checkpoint-000002.pt"
    make(strange)
    strange.with_suffix(".json").write_text("{}")
    with pytest.warns(RuntimeWarning, match=r"000002\.pt: it is no file; the one before"):
        assert load_checkpoint(tmp_path)["format"] == FORMAT
    with pytest.warns(RuntimeWarning, match=r"000002\.pt and its record are damaged: it is left"):
        Runner(Checkpoint(tmp_path)).fit(1, learner())
    assert os.path.lexists(strange)
    assert strange.with_suffix(".json").exists()


@SYMLINKS
@pytest.mark.parametrize("make", STRANGE)
def test_what_only_has_the_name_of_a_record_is_left_alone(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    strange = tmp_path / "checkpoint-000001.json"
    make(strange)
    Runner(Checkpoint(tmp_path)).fit(1, learner())
    assert os.path.lexists(strange)


def test_a_folder_in_the_place_of_a_record_outlasts_its_checkpoint(tmp_path: Path) -> None:
    Runner(Checkpoint(tmp_path)).fit(2, learner())
    strange = tmp_path / "checkpoint-000001.json"
    strange.unlink()
    strange.mkdir()
    result = Runner(Checkpoint(tmp_path)).fit(4, learner(), resume="auto")
    assert result.outcome == "completed"
    assert strange.is_dir() and not strange.with_suffix(".pt").exists()


@SYMLINKS
def test_a_link_to_a_checkpoint_is_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    record = written(tmp_path / "there")
    for path in (record.path, record.path.with_suffix(".json")):
        (tmp_path / "here" / path.name).symlink_to(path)
    assert load_checkpoint(tmp_path / "here")["format"] == FORMAT


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0"])
def test_a_name_that_cannot_be_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / name)


def learner() -> Learner:
    torch.manual_seed(0)
    data = DataBunch(TensorLoader(torch.randn(8, 2), torch.randn(8, 1), bs=4))
    model = torch.nn.Linear(2, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return Learner(model, opt, torch.nn.functional.mse_loss, data)


def fit(folder: Path, damage: Callable[[Path], None]) -> Checkpoint:
    """Train for four epochs of which the second is the best, and do harm after the third."""
    values = iter([5.0, 1.0, 3.0, 2.0])
    checkpoint = Checkpoint(folder, keep_last=1, monitor="score")
    run = Runner(checkpoint)
    run.on("after_epoch", lambda run: run.history[-1].update(score=next(values)))
    run.on("begin_train", lambda run: damage(folder), when=lambda run: run.epoch == 3)
    run.fit(4, learner())
    return checkpoint


def flip_the_metric(folder: Path) -> None:
    record = folder / "checkpoint-000002.json"
    record.write_text(record.read_text().replace('"score": 1.0', '"score": 9.0'))


def remove_the_record(folder: Path) -> None:
    (folder / "checkpoint-000002.json").unlink()


@pytest.mark.parametrize("damage", [flip_the_metric, remove_the_record])
def test_the_best_stays_though_its_record_is_damaged(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    checkpoint = fit(tmp_path, damage)
    assert checkpoint.best == tmp_path / "checkpoint-000002.pt"
    assert [record.serial for record in list_checkpoints(tmp_path)] == [2, 4]


def test_the_best_stays_and_is_told_of_though_it_is_damaged_with_its_record(tmp_path: Path) -> None:
    def damage(folder: Path) -> None:
        flip_the_metric(folder)
        content = bytearray((folder / "checkpoint-000002.pt").read_bytes())
        content[100] ^= 1  # of the first entry, which is data
        (folder / "checkpoint-000002.pt").write_bytes(content)

    with pytest.warns(RuntimeWarning, match=r"000002\.pt and its record are damaged: it is left"):
        fit(tmp_path, damage)
    assert [record.serial for record in list_checkpoints(tmp_path)] == [2, 4]
