"""Several validation loaders by name: a phase, and columns, of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventtrain import (
    AvgStatsCallback,
    CheckpointError,
    DataBunch,
    EmptyLoaderError,
    Learner,
    Runner,
    TensorLoader,
    accuracy,
    load_checkpoint,
)
from eventtrain.callbacks import (
    EMA,
    BatchTransform,
    Checkpoint,
    EarlyStopping,
    MixedPrecision,
    Throughput,
    Timing,
    ToDevice,
)

Y = torch.arange(24) % 3
X = torch.randn(24, 5, generator=torch.Generator().manual_seed(1)) + Y.unsqueeze(1)


def loader(rows: slice, bs: int, seed: int | None = None) -> TensorLoader:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return TensorLoader(X[rows], Y[rows], bs=bs, shuffle=seed is not None, generator=generator)


def sets(**more: Any) -> dict[str, Any]:
    """Of unequal sizes, the last batch of each short, drawn in an order of their own."""
    return {"easy": loader(slice(0, 7), 3, 5), "hard": loader(slice(7, 24), 4, 6), **more}


def learner(valid: Any = None) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.2), nn.Linear(8, 3))
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    data = DataBunch(loader(slice(None), 5, 4), sets() if valid is None else valid)
    return Learner(model, opt, nn.functional.cross_entropy, data)


def measured(model: Any, rows: slice) -> tuple[float, float]:
    with torch.no_grad():
        pred = model.eval()(X[rows])
        return float(nn.functional.cross_entropy(pred, Y[rows])), float(accuracy(pred, Y[rows]))


EASY, HARD = slice(0, 7), slice(7, 24)


def trace(run: Runner) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    for event in ("begin_validate", "after_validate", "after_row"):
        run.on(event, lambda run, event=event: found.append((event, run.valid_name)))
    return found


def test_each_has_a_phase_in_the_order_of_the_mapping() -> None:
    run = Runner()
    seen = trace(run)
    run.fit(1, learner())
    phases = [
        (event, name) for name in ("easy", "hard") for event in ("begin_validate", "after_validate")
    ]
    assert seen == [*phases, ("after_row", None)]


def test_the_row_has_columns_by_name_that_equal_those_by_hand() -> None:
    learn = learner()
    row = Runner(AvgStatsCallback(accuracy, None)).fit(1, learn).history[0]
    expected = (*measured(learn.model, EASY), *measured(learn.model, HARD))
    columns = [f"valid_{name}_{what}" for name in ("easy", "hard") for what in ("loss", "accuracy")]
    assert list(row) == ["epoch", "train_loss", "train_accuracy", *columns]
    assert [row[name] for name in columns] == pytest.approx(expected, abs=1e-6)


def test_validate_alone_measures_them_all_and_prints_one_line() -> None:
    learn, lines = learner(), []
    row = Runner(AvgStatsCallback(accuracy, lines.append)).validate(learn).history[0]
    assert row["valid_easy_loss"] == pytest.approx(measured(learn.model, EASY)[0], abs=1e-6)
    assert row["valid_hard_loss"] == pytest.approx(measured(learn.model, HARD)[0], abs=1e-6)
    assert len(lines) == 2  # titles and numbers


def test_while_one_is_used_valid_dl_is_that_one_and_afterwards_the_mapping_is_there_again() -> None:
    learn, run, seen = learner(), Runner(), []
    valid = learn.data.valid_dl
    run.on("begin_batch", lambda run: seen.append(run.data.valid_dl), during="validate")
    run.fit(1, learn)
    assert learn.data.valid_dl is valid
    assert seen == [valid["easy"]] * 3 + [valid["hard"]] * 5


def test_a_loader_that_a_handler_sets_stays_under_its_name() -> None:
    learn, run, other = learner(), Runner(), [(X[:3], Y[:3])]
    easy = learn.data.valid_dl["easy"]

    def replace(run: Any) -> None:
        if run.valid_name == "hard":
            run.data.valid_dl = other

    run.on("begin_validate", replace)
    run.fit(1, learn)
    assert learn.data.valid_dl == {"easy": easy, "hard": other}


def test_the_mapping_is_there_again_after_an_exception() -> None:
    learn, run = learner(), Runner()
    valid = learn.data.valid_dl

    def fail(run: Any) -> None:
        raise OSError("no")

    run.on("after_loss", fail, during="validate")
    with pytest.raises(OSError, match="no"):
        run.fit(1, learn)
    assert learn.data.valid_dl is valid
    assert run.valid_name is None


def test_what_is_logged_stands_under_the_name_of_its_loader() -> None:
    run = Runner()
    run.on("after_loss", lambda run: run.log("size", len(run.xb), weight=1), during="validate")
    row = run.fit(1, learner()).history[0]
    assert (row["valid_easy_size"], row["valid_hard_size"]) == (7 / 3, 17 / 5)


def test_rates_and_times_stand_under_the_names_too() -> None:
    row = Runner([Throughput(skip=0), Timing(history=True)]).fit(1, learner()).history[0]
    for name in ("easy", "hard"):
        assert row[f"valid_{name}_samples_per_second"] > 0
        assert row[f"seconds_validate_{name}_total"] > 0


@pytest.mark.parametrize("name", ["easy", "hard"])
def test_cancelling_the_validation_on_one_leaves_the_others(name: str) -> None:
    run, batches = Runner(AvgStatsCallback(None, None)), []
    run.on("begin_batch", lambda run: batches.append(run.valid_name), during="validate")

    def cancel(run: Any) -> None:
        if run.valid_name == name:
            run.token.cancel("validate", "seen enough")

    run.on("after_batch", cancel, during="validate")
    result = run.fit(1, learner())
    assert result.outcome == "completed"
    assert batches.count(name) == 1
    assert len(batches) == 1 + {"easy": 5, "hard": 3}[name]


def test_a_number_of_one_that_was_cut_short_is_not_judged_though_the_next_was_not() -> None:
    run = Runner([AvgStatsCallback(None, None), stop := EarlyStopping("valid_easy_loss")])

    def cancel(run: Any) -> None:
        if run.valid_name == "easy":
            run.token.cancel("validate", "seen enough")

    run.on("after_batch", cancel, during="validate")
    run.fit(2, learner())
    assert stop.best is None


def test_cancelling_the_fit_in_the_first_ends_it_there() -> None:
    run = Runner()
    seen = trace(run)
    run.on("begin_batch", lambda run: run.token.cancel("fit", "stop"), during="validate")
    assert run.fit(2, learner()).reason == "stop"
    assert seen == [("begin_validate", "easy"), ("after_validate", "easy"), ("after_row", None)]


def test_early_stopping_reads_a_column_of_one_of_them() -> None:
    learn = learner()
    stop = EarlyStopping("valid_hard_loss", patience=1, min_delta=100.0)
    result = Runner([AvgStatsCallback(None, None), stop]).fit(9, learn)
    assert (result.outcome, len(result.history)) == ("cancelled", 2)


def test_a_column_that_is_not_there_is_answered_with_those_that_are() -> None:
    run = Runner([AvgStatsCallback(None, None), EarlyStopping("valid_loss")])
    with pytest.raises(Exception, match="valid_easy_loss"):
        run.fit(2, learner())


def test_by_steps_every_row_has_the_columns_of_all() -> None:
    learn = learner()
    rows = Runner(AvgStatsCallback(None, None)).fit(7, learn, validate_every=4).history
    assert [row["step"] for row in rows][-1] == 35
    assert all({"valid_easy_loss", "valid_hard_loss"} <= row.keys() for row in rows)
    assert rows[-1]["valid_hard_loss"] == pytest.approx(measured(learn.model, HARD)[0], abs=1e-6)


def test_a_validation_in_between_keeps_the_columns_of_its_epoch_apart() -> None:
    run, asides = Runner(AvgStatsCallback(None, None)), []

    def validate(run: Any) -> None:
        if run.n_iter == 1:
            asides.append(run.validate_now())

    learn = learner()
    run.on("after_batch", validate, during="train")
    row = run.fit(1, learn).history[0]
    assert row["valid_easy_loss"] == pytest.approx(measured(learn.model, EASY)[0], abs=1e-6)
    assert {"valid_easy_loss", "valid_hard_loss"} <= asides[0].keys()
    assert asides[0]["valid_easy_loss"] != row["valid_easy_loss"]


def test_averaged_weights_precision_and_transforms_are_those_of_each() -> None:
    """Equal to the same instant by hand: the averages, under bfloat16, on what is transformed."""
    learn, ema, instants = learner(), EMA(0.5), []

    def double(xb: Tensor, yb: Tensor) -> Any:
        return xb * 2, yb

    def by_hand(run: Any) -> None:
        model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.2), nn.Linear(8, 3)).eval()
        ema.copy_to(model)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            losses = [
                nn.functional.cross_entropy(model(X[rows] * 2), Y[rows]) for rows in (EASY, HARD)
            ]
        instants.append([float(loss) for loss in losses])

    run = Runner(
        [
            ema,
            MixedPrecision("bf16"),
            BatchTransform(double, during=None),
            AvgStatsCallback(None, None),
        ]
    )
    run.on("after_row", by_hand)
    rows = run.fit(2, learn, validate_every=3).history
    found = [[row["valid_easy_loss"], row["valid_hard_loss"]] for row in rows]
    assert len(found) == 4
    for ours, theirs in zip(found, instants, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_batches_that_are_copied_ahead_are_those_of_each() -> None:
    rows = [
        Runner([AvgStatsCallback(None, None), *cbs]).fit(1, learner()).history
        for cbs in ([], [ToDevice()])
    ]
    assert rows[0] == rows[1]


def test_one_may_have_parts_of_the_loss_that_another_lacks() -> None:
    learn = learner({"easy": [(X[:4], Y[:4])], "hard": [(X[4:9], Y[4:9])]})

    def parted(pred: Tensor, yb: Tensor) -> Any:
        loss = nn.functional.cross_entropy(pred, yb)
        return {"loss": loss, "ce": loss} if len(yb) == 4 else {"loss": loss}

    learn.loss_func = parted
    row = Runner(AvgStatsCallback(None, None)).fit(1, learn).history[0]
    assert "valid_easy_ce" in row
    assert "valid_hard_ce" not in row


def test_two_that_would_share_a_column_are_refused() -> None:
    learn = learner({"a": [(X[:4], Y[:4])], "a_b": [(X[4:9], Y[4:9])]})

    def b_loss(pred: Tensor, yb: Tensor) -> Tensor:
        return accuracy(pred, yb)

    with pytest.raises(ValueError, match=r"two of the validation loaders .*valid_a_b_loss"):
        Runner(AvgStatsCallback(b_loss, None)).fit(1, learn)


def test_an_empty_one_is_named() -> None:
    with pytest.raises(EmptyLoaderError, match="validate loader 'none'"):
        Runner().fit(1, learner(sets(none=[])))


@pytest.mark.parametrize(
    ("valid", "error"),
    [
        ({}, "without a loader"),
        ({"easy": None}, r"valid_dl\['easy'\] is None"),
        ({"": [1]}, "one of the names is ''"),
        ({1: [1]}, "one of the names is 1"),
        ({"easy": {"x": 1}}, "whose keys are no batches"),
        ({"easy": X}, "whose rows are no batches"),
    ],
)
def test_what_is_no_mapping_of_loaders_is_refused(valid: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        DataBunch([1], valid)
    learn = learner()
    learn.data.valid_dl = valid
    with pytest.raises((TypeError, ValueError), match=error):
        Runner().fit(1, learn)


def test_valid_ds_is_by_name_too() -> None:
    data = learner().data
    assert {name: len(ds) for name, ds in data.valid_ds.items()} == {"easy": 7, "hard": 17}


def whole(learn: Learner, folder: Path, **options: Any) -> tuple[Runner, list[Any]]:
    batches: list[Any] = []
    run = Runner(
        [AvgStatsCallback(accuracy, None), EMA(0.9), Checkpoint(folder), *options.get("cbs", ())]
    )

    def note(run: Any) -> None:
        batches.append((run.epoch, run.phase, run.valid_name, run.batch_index, run.xb.tolist()))

    run.on("begin_batch", note)
    run.on("after_loss", lambda run: run.log("first", run.xb[0, 0]), during="validate")
    return run, batches


def places() -> Iterator[tuple[str, str, int]]:
    for event in ("begin_batch", "after_loss", "after_batch"):
        for name, count in (("easy", 3), ("hard", 5)):
            yield from ((event, name, batch) for batch in (0, 1, count - 1))
    for event in ("begin_validate", "after_validate"):
        yield from ((event, name, -1) for name in ("easy", "hard"))


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The weights, rows and batches of a fit that nobody cuts."""
    theirs = learner()
    run, batches = whole(theirs, tmp_path_factory.mktemp("uncut"))
    rows = run.fit(3, theirs).history
    return theirs.model.state_dict(), rows, batches


@pytest.mark.parametrize(("event", "name", "batch"), list(places()))
def test_a_fit_cut_anywhere_in_them_goes_on_bit_for_bit(
    event: str, name: str, batch: int, uncut: Any, tmp_path: Path
) -> None:
    weights, rows, expected = uncut

    cut, (run, before) = learner(), whole(learner(), tmp_path / "cut")

    def cancel(run: Any) -> None:
        here = -1 if batch == -1 else run.batch_index
        if (run.epoch, run.phase, run.valid_name, here) == (1, "validate", name, batch):
            run.token.cancel("fit", "cut")

    run.on(event, cancel)
    assert run.fit(3, cut).reason == "cut"

    ours = learner()
    run, after = whole(ours, tmp_path / "cut")
    result = run.fit(3, ours, resume="auto")
    assert result.outcome == "completed"
    assert result.history == rows
    for key, value in weights.items():
        assert torch.equal(ours.model.state_dict()[key], value)
    assert after == expected[len(expected) - len(after) :]
    assert len(before) + len(after) >= len(expected)


def saved_in_hard(folder: Path) -> None:
    learn = learner()
    run, _ = whole(learn, folder)
    run.on(
        "after_batch",
        lambda run: run.token.cancel("fit"),
        when=lambda run: run.valid_name == "hard",
    )
    run.fit(2, learn)


@pytest.mark.parametrize(
    "valid",
    [
        {"easy": loader(EASY, 3, 5)},
        {"hard": loader(HARD, 4, 6), "easy": loader(EASY, 3, 5)},
        {"easy": loader(EASY, 3, 5), "other": loader(HARD, 4, 6)},
        loader(EASY, 3, 5),
    ],
)
def test_a_fit_on_others_is_not_resumed(valid: Any, tmp_path: Path) -> None:
    saved_in_hard(tmp_path)
    ours = learner(valid)
    before = {key: value.clone() for key, value in ours.model.state_dict().items()}
    with pytest.raises(CheckpointError, match="other validation loaders \\('easy', 'hard'\\)"):
        whole(ours, tmp_path)[0].fit(2, ours, resume="auto")
    for key, value in before.items():
        assert torch.equal(ours.model.state_dict()[key], value)


def test_one_whose_batches_are_others_is_refused_in_the_middle_of_it(tmp_path: Path) -> None:
    saved_in_hard(tmp_path)
    ours = learner({"easy": loader(EASY, 3, 5), "hard": loader(HARD, 2, 6)})
    with pytest.raises(CheckpointError, match="another validate loader"):
        whole(ours, tmp_path)[0].fit(2, ours, resume="auto")


def test_a_checkpoint_of_one_loader_is_not_resumed_on_several(tmp_path: Path) -> None:
    learn = learner(loader(EASY, 3, 5))
    whole(learn, tmp_path)[0].fit(1, learn)
    ours = learner()
    with pytest.raises(CheckpointError, match="one without a name"):
        whole(ours, tmp_path)[0].fit(2, ours, resume="auto")


def test_best_weights_are_kept_by_a_column_of_one(tmp_path: Path) -> None:
    learn = learner()
    keeper = Checkpoint(tmp_path, monitor="valid_hard_loss")
    rows = Runner([AvgStatsCallback(None, None), EMA(0.9), keeper]).fit(4, learn).history
    assert keeper.best is not None
    learn.model.load_state_dict(load_checkpoint(keeper.best)["model"])
    best = min(row["valid_hard_loss"] for row in rows)
    assert measured(learn.model, HARD)[0] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("key", ["valid_easy_own", "valid_hard_own"])
def test_the_best_weights_by_what_is_logged_are_those_that_gave_it(key: str) -> None:
    learn = learner()
    run = Runner([AvgStatsCallback(None, None), EMA(0.9), EarlyStopping(key)])
    run.on("after_loss", lambda run: run.log("own", run.loss), during="validate")
    best = min(row[key] for row in run.fit(4, learn).history)
    rows = EASY if key == "valid_easy_own" else HARD
    assert measured(learn.model, rows)[0] == pytest.approx(best, abs=1e-6)


def test_a_fit_can_be_stepped_through_them() -> None:
    names = [run.valid_name for run in Runner().iterate(1, learner(), at="after_validate")]
    assert names == ["easy", "hard"]


def test_a_batch_that_two_of_them_give_is_weighed_in_each() -> None:
    batch = X[:4], Y[:4]
    learn, run, weights = learner({"easy": [batch], "hard": [batch]}), Runner(), []
    learn.weight = lambda batch: {None: 4, "easy": 2, "hard": 5}[run.valid_name]
    run.on("after_loss", lambda run: weights.append(run.weight), during="validate")
    run.fit(1, learn)
    assert weights == [2, 5]
