"""The recorder against a loop written by hand, and its pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eventtrain import AvgStatsCallback, Learner, Runner
from eventtrain.callbacks import Recorder

pytest.importorskip("matplotlib", reason="needs matplotlib (extra 'watch')")
from matplotlib.figure import Figure
from PIL import Image

Make = Callable[..., Learner]


def by_hand(learner: Learner, epochs: int) -> list[float]:
    """Train and return the losses; cut the learning rate in half after every batch."""
    losses = []
    for _ in range(epochs):
        for xb, yb in learner.data.train_dl:
            loss = learner.loss_func(learner.model(xb), yb)
            losses.append(loss.item())
            loss.backward()
            learner.opt.step()
            learner.opt.zero_grad()
            learner.opt.param_groups[0]["lr"] /= 2
    return losses


def halving(*callbacks: Any) -> Runner:
    run = Runner(callbacks)

    @run.on("after_batch", during="train")
    def halve(run: Runner) -> None:
        run.opt.param_groups[0]["lr"] /= 2

    return run


def two_groups(learner: Learner) -> Learner:
    weight, bias = learner.model.parameters()
    groups: list[dict[str, Any]] = [{"params": [weight], "lr": 0.1}, {"params": [bias], "lr": 0.2}]
    learner.opt = torch.optim.SGD(groups, momentum=0.9)
    return learner


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_losses_and_rates_are_those_of_a_loop_by_hand(make_learner: Make) -> None:
    recorder, expected = Recorder(), make_learner()
    learner = make_learner()
    halving(recorder).fit(2, learner)
    assert recorder.losses == by_hand(expected, 2)
    assert recorder.lrs == [0.1 / 2**n for n in range(6)]
    assert torch.equal(learner.model.weight, expected.model.weight)


def test_nothing_is_read_in_a_batch(learner: Learner, no_sync: Any) -> None:
    learner.opt = torch.optim.Adam(
        learner.model.parameters(), lr=torch.tensor(0.1), capturable=False, foreach=False
    )
    recorder = Recorder()
    run = Runner(recorder)
    entered = []
    run.on("after_loss", lambda run: entered.append(no_sync.__enter__()), priority=1000)
    run.on("after_loss", lambda run: no_sync.__exit__(), priority=-1000)
    run.fit(1, learner)
    assert len(entered) == 5
    assert recorder.lrs == pytest.approx([0.1] * 3)


def test_the_losses_are_on_the_device_until_asked_for(learner: Learner) -> None:
    recorder = Recorder()
    run = Runner(recorder)
    kinds = []
    run.on("after_batch", lambda run: kinds.append({type(x) for x in recorder._new["loss"]}))
    run.fit(1, learner)
    assert kinds[:3] == [{torch.Tensor}] * 3
    assert recorder._new["loss"] == []


def test_every_parameter_group_is_kept(learner: Learner) -> None:
    recorder = Recorder()
    Runner(recorder).fit(1, two_groups(learner))
    assert recorder.values("lr", group=1) == [0.2] * 3
    assert recorder.values("lr", group=None) == [[0.1, 0.2]] * 3
    assert recorder.values("momentum", group=1) == [0.9] * 3


def test_adams_betas_are_kept_as_pairs(learner: Learner) -> None:
    learner.opt = torch.optim.Adam(learner.model.parameters(), betas=(0.8, 0.9))
    recorder = Recorder()
    Runner(recorder).fit(1, learner)
    assert recorder.values("betas") == [(0.8, 0.9)] * 3


def test_a_group_that_comes_later_has_none_before(learner: Learner) -> None:
    recorder = Recorder("lr")
    run = Runner(recorder)
    more = torch.nn.Parameter(torch.zeros(1))
    run.on("after_batch", lambda run: run.opt.add_param_group({"params": [more]}), once=True)
    run.fit(1, learner)
    assert recorder.values("lr", group=1) == [None, 0.1, 0.1]


def test_a_field_that_the_optimizer_lacks_is_told_before_training(learner: Learner) -> None:
    with pytest.raises(ValueError, match=r"SGD has no field 'betas'.*momentum"):
        Runner(Recorder(["lr", "betas"])).fit(1, learner)


def test_a_field_that_was_not_kept_is_an_error(learner: Learner) -> None:
    recorder = Recorder("lr")
    Runner(recorder).fit(1, learner)
    with pytest.raises(KeyError, match="momentum"):
        recorder.values("momentum")


def test_no_fields_means_losses_alone(learner: Learner, tmp_path: Path) -> None:
    recorder = Recorder([])
    Runner(recorder).fit(1, learner)
    assert recorder.fields == () and len(recorder.losses) == 3
    assert [path.name for path in recorder.save_plots(tmp_path)] == ["loss.png"]


def test_without_axes_the_plots_make_their_own(learner: Learner) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    recorder = Recorder()
    Runner(recorder).fit(1, learner)
    try:
        first = recorder.plot_loss()
        second = recorder.plot_lr()
        third = recorder.plot_sched()
        assert len({id(ax.figure) for ax in (first, second, *third)}) == 3
        assert len(third) == len(recorder.fields) == 3
    finally:
        pyplot.close("all")


def test_fields_must_be_names() -> None:
    with pytest.raises(TypeError, match="3"):
        Recorder([3])  # type: ignore[list-item]


def test_an_optimizer_without_groups_gives_losses_alone(learner: Learner) -> None:
    class Plain:
        def step(self) -> None: ...
        def zero_grad(self) -> None: ...

    learner.opt = Plain()
    recorder = Recorder()
    Runner(recorder).fit(1, learner)
    assert len(recorder.losses) == 3
    assert recorder.fields == ()


def test_rows_hold_metrics_outcome_and_batches(learner: Learner) -> None:
    recorder = Recorder()
    run = Runner([AvgStatsCallback(report=None), recorder])
    run.fit(2, learner)
    assert [row["batches"] for row in recorder.rows] == [3, 6]
    assert recorder.rows[1]["valid_loss"] == run.history[1]["valid_loss"]
    assert recorder.rows[1]["outcome"] == "completed"


def test_a_loss_that_cancels_its_batch_is_recorded(learner: Learner) -> None:
    recorder = Recorder()
    run = Runner(recorder)
    run.on("after_loss", lambda run: run.token.cancel("batch"))
    run.fit(1, learner)
    assert len(recorder.losses) == 3


def test_a_failed_fit_leaves_what_there_was(learner: Learner) -> None:
    recorder = Recorder()
    run = Runner(recorder)

    @run.on("after_step", when=lambda run: run.batch_index == 1)
    def fail(run: Runner) -> None:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        run.fit(1, learner)
    assert len(recorder.losses) == 2
    assert recorder.rows[0]["outcome"] == "failed"


def test_a_loss_changed_in_place_later_is_recorded_as_it_was(learner: Learner) -> None:
    recorder, seen = Recorder(), []
    run = Runner(recorder)
    run.on("after_loss", lambda run: seen.append(run.loss.item()), during="train")
    run.on("after_batch", lambda run: run.loss.detach().zero_(), during="train")
    run.fit(1, learner)
    assert recorder.losses == seen


def test_a_second_fit_starts_over(learner: Learner) -> None:
    recorder = Recorder()
    run = Runner(recorder)
    run.fit(2, learner)
    run.fit(1, learner)
    assert len(recorder.losses) == len(recorder.lrs) == 3
    run.fit(0, learner)
    assert recorder.losses == []


def test_validation_and_prediction_alone_record_nothing(learner: Learner) -> None:
    recorder = Recorder()
    run = Runner(recorder)
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    assert recorder.losses == [] and recorder.rows == []


def test_an_interrupted_recording_goes_on_where_it_was(make_learner: Make) -> None:
    whole = Recorder()
    halving(whole).fit(2, make_learner())
    first, learner = Recorder(), make_learner()
    halving(first).fit(1, learner)
    state = through_a_file(first.state_dict())
    second = Recorder()
    run = halving(second)
    run.on("begin_fit", lambda run: second.load_state_dict(state), priority=-100)
    run.fit(1, learner)
    assert second.losses == whole.losses
    assert second.lrs == whole.lrs
    assert [row["batches"] for row in second.rows] == [3, 6]


def test_the_loss_plot_draws_losses_less_the_last(learner: Learner) -> None:
    recorder = Recorder()
    Runner([AvgStatsCallback(report=None), recorder]).fit(2, learner)
    ax = Figure().add_subplot()
    assert recorder.plot_loss(ax, skip_last=1) is ax
    train, valid = ax.lines
    assert list(train.get_ydata()) == recorder.losses[:5]
    assert list(train.get_xdata()) == [1, 2, 3, 4, 5]
    assert list(valid.get_xdata()) == [3]


@pytest.mark.parametrize("skip_last", [3, 4, 6, 7])
def test_a_loss_plot_less_all_losses_is_empty(skip_last: int, learner: Learner) -> None:
    recorder = Recorder()
    Runner(recorder).fit(1, learner)
    (line,) = recorder.plot_loss(Figure().add_subplot(), skip_last=skip_last).lines
    assert list(line.get_xdata()) == []


def test_an_epoch_that_was_cut_short_has_no_validation_in_the_plot(learner: Learner) -> None:
    recorder = Recorder()
    run = Runner([AvgStatsCallback(report=None), recorder])
    run.on("after_batch", lambda run: run.token.cancel("epoch"), during="validate", once=True)
    run.fit(2, learner)
    assert "valid_loss" in recorder.rows[0]
    line = recorder.plot_loss(Figure().add_subplot()).lines[1]
    assert list(line.get_xdata()) == [6]


def test_smoothing_is_a_bias_corrected_average(learner: Learner) -> None:
    recorder = Recorder()
    Runner(recorder).fit(1, learner)
    a, b, c = recorder.losses
    smooth = recorder.plot_loss(Figure().add_subplot(), smooth=0.5).lines[1].get_ydata()
    assert list(smooth) == pytest.approx([a, (a + 2 * b) / 3, (a + 2 * b + 4 * c) / 7])


def test_smoothing_steps_over_losses_that_are_not_finite(learner: Learner) -> None:
    recorder = Recorder()
    learner.loss_func = lambda pred, yb: pred.mean() * math.nan
    Runner(recorder).fit(1, learner)
    line = recorder.plot_loss(Figure().add_subplot(), smooth=0.5).lines[1]
    assert all(math.isnan(value) for value in line.get_ydata())


@pytest.mark.parametrize("options", [{"skip_last": -1}, {"smooth": 1.0}, {"smooth": -0.1}])
def test_plot_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Recorder().plot_loss(Figure().add_subplot(), **options)


def test_the_rate_plot_has_a_line_for_every_group(learner: Learner) -> None:
    recorder = Recorder()
    Runner(recorder).fit(1, two_groups(learner))
    ax = recorder.plot_lr(Figure().add_subplot())
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.1] * 3, [0.2] * 3]


def test_the_schedules_have_axes_each(learner: Learner) -> None:
    recorder = Recorder()
    Runner(recorder).fit(1, learner)
    axes = list(Figure().subplots(1, 2))
    assert recorder.plot_sched("lr", "momentum", axes=axes) == axes
    assert [ax.get_ylabel() for ax in axes] == ["lr", "momentum"]


def test_both_parts_of_betas_have_a_line_for_every_group(learner: Learner) -> None:
    groups = [{"params": [p]} for p in learner.model.parameters()]
    learner.opt = torch.optim.Adam(groups, betas=(0.8, 0.9))
    recorder = Recorder()
    Runner(recorder).fit(1, learner)
    (ax,) = recorder.plot_sched("betas", axes=[Figure().subplots()])
    lines = {line.get_label(): list(line.get_ydata()) for line in ax.get_lines()}
    assert lines == {
        f"group {group}[{part}]": [(0.8, 0.9)[part]] * 3 for group in (0, 1) for part in (0, 1)
    }


def test_rows_hold_what_policies_wrote(learner: Learner) -> None:
    recorder = Recorder()
    run = Runner(recorder)
    run.on("after_epoch", lambda run: run.history[-1].update(seen=1), priority=-50)
    run.fit(1, learner)
    assert recorder.rows[0]["seen"] == 1


def test_changing_the_values_it_returns_changes_nothing(learner: Learner) -> None:
    recorder = Recorder()
    Runner(recorder).fit(1, learner)
    recorder.values("lr", group=None).clear()
    recorder.values("lr").clear()
    assert recorder.lrs == [0.1] * 3


def test_the_pictures_are_saved(learner: Learner, tmp_path: Path) -> None:
    recorder = Recorder()
    Runner([AvgStatsCallback(report=None), recorder]).fit(2, learner)
    paths = recorder.save_plots(tmp_path / "plots")
    assert [path.name for path in paths] == ["loss.png", "schedules.png"]
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert image.width > 400


def test_a_field_is_missed_in_a_whole_sentence_where_none_was_kept() -> None:
    with pytest.raises(KeyError, match="no field 'lr' was recorded; there are none"):
        Recorder().values("lr")


def test_validations_within_a_fit_are_its_rows(learner: Learner) -> None:
    recorder = Recorder()
    Runner([AvgStatsCallback(report=None), recorder]).fit(2, learner, validate_every=4)
    assert [(row["step"], row["batches"]) for row in recorder.rows] == [(4, 4), (6, 6)]


def on_two(learner: Learner) -> Learner:
    valid = learner.data.valid_dl
    batches = list(valid)
    learner.data.valid_dl = {"all": valid, "few": batches[:1]}
    return learner


def validations_in(ax: Any) -> dict[str, list[float]]:
    return {
        line.get_label(): list(line.get_ydata())
        for line in ax.lines
        if line.get_label().startswith("validation")
    }


def test_each_of_several_validation_loaders_has_a_line_of_its_own(learner: Learner) -> None:
    recorder = Recorder()
    run = Runner([AvgStatsCallback(report=None), recorder])
    rows = run.fit(3, on_two(learner)).history
    ax = recorder.plot_loss(Figure().add_subplot())
    assert validations_in(ax) == {
        f"validation, {name}": [row[f"valid_{name}_loss"] for row in rows]
        for name in ("all", "few")
    }
    assert len({line.get_color() for line in ax.lines}) == 3
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["training, each batch", "validation, all", "validation, few"]


def test_more_of_them_than_colours_have_other_marks(learner: Learner) -> None:
    recorder = Recorder()
    valid = learner.data.valid_dl
    learner.data.valid_dl = {f"set{i}": valid for i in range(9)}
    Runner([AvgStatsCallback(report=None), recorder]).fit(1, learner)
    ax = recorder.plot_loss(Figure().add_subplot())
    assert len({(line.get_color(), line.get_marker()) for line in ax.lines[1:]}) == 9


def test_a_recorder_that_goes_on_knows_them_still(learner: Learner) -> None:
    first, second = Recorder(), Recorder()
    Runner([AvgStatsCallback(report=None), first]).fit(2, on_two(learner))
    second.load_state_dict(through_a_file(first.state_dict()))
    axes = [each.plot_loss(Figure().add_subplot()) for each in (first, second)]
    assert validations_in(axes[0]) == validations_in(axes[1]) != {}


def test_a_state_of_an_earlier_format_has_the_loss_of_one_loader(learner: Learner) -> None:
    first, second = Recorder(), Recorder()
    Runner([AvgStatsCallback(report=None), first]).fit(2, learner)
    state = first.state_dict()
    del state["validations"]
    second.load_state_dict(state)
    assert list(validations_in(second.plot_loss(Figure().add_subplot()))) == ["validation"]
