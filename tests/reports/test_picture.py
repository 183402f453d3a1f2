"""The picture of the loop: every event in its place, every handler under its event."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from eventtrain import Callback, Event, EventBus, Learner, Runner
from eventtrain.bus.handlers import Handler, Options
from eventtrain.events import EVENTS, event_names
from eventtrain.reports.picture import picture

README = (Path(__file__).parents[2] / "README.md").read_text()


def nothing(run: Any) -> None: ...


def lines_of(bus: EventBus, sender: Any = None) -> list[str]:
    return picture(bus, sender).splitlines()


def below(lines: list[str], event: str, start: int = 0) -> list[str]:
    """Handlers drawn right under an event."""
    at = next(i for i in range(start, len(lines)) if lines[i].split()[:1] == [event])
    found = []
    for line in lines[at + 1 :]:
        if not line.strip().startswith("["):
            break
        found.append(line.strip())
    return found


def test_without_handlers_it_is_the_loop() -> None:
    fit, predict = picture(EventBus()).split("\n\n")
    shown = re.findall(r"\b(?:begin|after)_\w+", fit)
    left_out = {n for n in event_names() if "cancel" in n or "predict" in n or n == "fit_failed"}
    assert set(shown) == set(event_names()) - left_out
    assert re.findall(r"\b(?:begin|after)_\w+", predict) == [
        "begin_predict",
        "begin_batch",
        "after_pred",
        "after_batch",
        "after_predict",
    ]


def test_it_has_the_code_and_the_events_of_the_picture_in_the_readme() -> None:
    drawn = next(
        text
        for text in re.findall(r"```text\n(.*?)```", README, re.DOTALL)
        if text.startswith("begin_fit")
    )
    fit = picture(EventBus()).split("\n\n")[0]
    events = r"\b(?:begin|after)_\w+"
    assert re.findall(events, fit) == re.findall(events, drawn)
    for code in (
        "pred = model(xb)",
        "loss = loss_func(pred, yb)",
        "loss.backward()",
        "opt.step()",
        "opt.zero_grad()",
    ):
        assert code in drawn and code in fit


def test_what_it_draws_is_what_fires(learner: Learner) -> None:
    run, fired = Runner(), []
    for event in EVENTS:
        run.bus.on(event.name, lambda run, name=event.name: fired.append(name), name="log")
    bare = picture(EventBus())
    fit, predict = bare.split("\n\n")
    run.fit(1, learner)
    once = list(dict.fromkeys(fired[: fired.index("begin_validate")]))
    assert once == re.findall(r"\b(?:begin|after)_\w+", fit[: fit.index("begin_validate")])
    once = list(dict.fromkeys(fired[fired.index("begin_validate") :]))
    assert once == re.findall(r"\b(?:begin|after)_\w+", fit[fit.index("begin_validate") :])
    fired.clear()
    run.predict(learner, learner.data.valid_dl)
    assert list(dict.fromkeys(fired)) == re.findall(r"\b(?:begin|after)_\w+", predict)


def test_scopes_are_indented() -> None:
    lines = lines_of(EventBus())
    depths = {line.split()[0]: (len(line) - len(line.lstrip())) // 2 for line in lines[:18]}
    assert [depths[f"begin_{s}"] for s in ("fit", "epoch", "train", "batch", "step")] == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip
    assert depths["after_loss"] == depths["after_step"] == 4
    assert depths["after_batch"] == 3


def test_handlers_stand_under_their_event_in_true_order_with_priority() -> None:
    bus = EventBus()
    bus.on("after_train", nothing, name="last", priority=-10)
    bus.on("after_train", nothing, name="second", priority=0.5)
    bus.on("after_train", nothing, name="first", before="second")
    bus.on("after_train", nothing, name="top", priority=100)
    assert below(lines_of(bus), "after_train") == [
        "[100] top",
        "[0] first",
        "[0.5] second",
        "[-10] last",
    ]


def test_filters_are_drawn_and_a_phase_has_its_own_handlers_only() -> None:
    bus = EventBus()
    bus.on("after_loss", nothing, name="often", every=10)
    bus.on("after_loss", nothing, name="learning", during="train")
    bus.on("after_pred", nothing, name="guess", during="predict")
    lines = lines_of(bus)
    validation = next(i for i, line in enumerate(lines) if "begin_validate" in line)
    assert below(lines, "after_loss") == ["[0] often  every=10", "[0] learning  during=train"]
    assert below(lines, "after_loss", validation) == ["[0] often  every=10"]
    assert picture(bus).count("guess") == 1
    assert below(lines, "after_pred", lines.index("")) == ["[0] guess  during=predict"]


@pytest.mark.parametrize(
    "event", [n for n in event_names() if n.startswith("after_cancel_") or n == "fit_failed"]
)
def test_events_of_what_goes_wrong_are_drawn_where_they_have_handlers(event: str) -> None:
    bus = EventBus()
    assert event not in picture(bus)
    bus.on(event, nothing)
    assert below(lines_of(bus), event) == ["[0] nothing"]


def test_the_step_stands_between_its_events() -> None:
    bus = EventBus()
    bus.on("after_cancel_step", nothing)
    words = [line.strip() for line in lines_of(bus)]
    at = words.index("begin_step")
    assert words[at : at + 6] == [
        "begin_step",
        "opt.step()",
        "after_cancel_step",
        "[0] nothing",
        "after_step",
        "opt.zero_grad()",
    ]


def test_an_event_of_ones_own_stands_below_with_its_meaning() -> None:
    bus = EventBus()
    bus.declare("after_sample", "images have been drawn")
    bus.on("after_sample", nothing)
    *_, title, event, handler = lines_of(bus)
    assert title == "events of your own"
    assert event.split(maxsplit=1) == ["after_sample", "images have been drawn"]
    assert handler == "    [0] nothing"


def test_a_vocabulary_of_ones_own_is_drawn() -> None:
    bus = EventBus([Event("tick", "", "point", (), "the clock ticks")])
    assert lines_of(bus)[-1].split() == ["tick", "the", "clock", "ticks"]


def test_for_a_sender_only_its_handlers_are_drawn() -> None:
    bus = EventBus()
    first, second = Runner(bus=bus), Runner(bus=bus)
    first.on("after_epoch", nothing, name="mine")
    second.on("after_epoch", nothing, name="theirs")
    bus.on("after_epoch", nothing, name="everyone")
    assert below(lines_of(bus, first), "after_epoch") == ["[0] mine", "[0] everyone"]
    assert below(lines_of(bus), "after_epoch") == [
        "[0] mine  for Runner",
        "[0] theirs  for Runner",
        "[0] everyone",
    ]


def test_a_plugin_is_named() -> None:
    bus = EventBus()
    bus.attach([Handler("after_fit", nothing, Options(), plugin="export 1.0")])
    assert below(lines_of(bus), "after_fit") == ["[0] nothing  plugin export 1.0"]


def test_printing_a_runner_shows_the_picture(capsys: pytest.CaptureFixture[str]) -> None:
    class Watch(Callback):
        priority = 7

        def after_batch(self) -> None: ...

    run = Runner(Watch())
    print(run)
    printed = capsys.readouterr().out.rstrip("\n")
    assert printed == run.picture() == picture(run.bus, run, details=False)
    assert "1 handler: watch" in printed
    assert run.picture(details=True) == picture(run.bus, run)
    assert "[7] watch" in run.picture(details=True)
    with pytest.raises(TypeError, match="details must be"):
        run.picture("full")  # type: ignore[arg-type]
    assert repr(run) == "<Runner, idle: train_eval, watch>"


def test_no_line_ends_in_blanks() -> None:
    assert all(line == line.rstrip() for line in lines_of(EventBus()))


def folded(run: Runner) -> list[str]:
    return str(run).splitlines()


def test_the_printed_runner_fits_on_a_screen_however_many_handlers_there_are() -> None:
    run = Runner()
    for number in range(50):
        for event in EVENTS:
            run.on(event.name, nothing, name=f"a_handler_with_a_long_name_{number}")
        run.bus.declare(f"after_sample_{number}", "images have been drawn " * 9)
    lines = folded(run)
    assert len(lines) < 50  # eight of them for events of one's own
    assert max(map(len, lines)) < 80
    assert "  ... +44" in lines
    assert len(lines) - len(folded(Runner())) < 12


def test_handlers_stand_folded_in_the_line_of_their_event() -> None:
    run = Runner()
    for number in range(12):
        run.on("after_backward", nothing, name=f"number_{number}")
    run.on("after_row", nothing, name="alone", every=3)
    lines = {line.split()[0]: line.split(maxsplit=1)[1:] for line in folded(run) if line}
    assert lines["after_backward"] == ["12 handlers: number_0, number_1, number_2, ... +9"]
    assert lines["after_row"] == ["1 handler: alone"]
    assert lines["after_loss"] == []


def test_a_folded_picture_has_a_handler_of_one_phase_in_that_alone() -> None:
    run = Runner()
    run.on("after_loss", nothing, name="learning", during="train")
    assert [line.split()[0] for line in folded(run) if "learning" in line] == ["after_loss"]


def test_what_is_said_of_a_scope_stands_behind_its_handlers() -> None:
    run = Runner()
    run.on("begin_epoch", nothing)
    (line,) = [line for line in folded(run) if "begin_epoch" in line]
    assert line.endswith("nothing  (every epoch)")


def test_a_folded_picture_says_how_to_see_each_handler() -> None:
    assert "run.picture(details=True)" in folded(Runner())[-1]
    assert "run.picture" not in picture(EventBus(), details=False)


def test_handlers_of_what_goes_wrong_share_a_line_of_the_folded_picture() -> None:
    run = Runner()
    for event in ("after_cancel_batch", "after_cancel_fit", "fit_failed"):
        run.on(event, nothing, name="watch")
    run.on("fit_failed", nothing, name="tell")
    lines = folded(run)
    assert f"{'cancelled or failed':28}2 handlers: watch, tell" in lines
    assert not any(line.strip().startswith(("after_cancel", "fit_failed")) for line in lines)
