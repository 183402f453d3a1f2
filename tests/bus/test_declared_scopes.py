"""Scopes of one's own: one call, and every part of the house knows them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from eventtrain import CancellationToken, EventBus, EventLog, Learner, Runner
from eventtrain.reports.replay import draw


class Evolving(Runner):
    """After the training of each epoch, a phase of its own over two generations."""

    def training_phase(self) -> None:
        super().training_phase()
        with self.scope.evolve:
            self.emit.begin_evolve()
            for _ in range(2):
                self.emit.after_generation()


@pytest.fixture
def run() -> Evolving:
    run = Evolving(EventLog())
    run.bus.declare_scope(
        "evolve", inside="epoch", points=["after_generation"], is_phase=True, doc="breeding"
    )
    return run


def fired(run: Runner) -> list[str]:
    return [record["event"] for record in run.event_log.records]


def test_its_events_fire_in_order_with_the_others(run: Evolving, learner: Learner) -> None:
    run.fit(1, learner)
    at = fired(run).index("after_train")
    assert fired(run)[at + 1 : at + 6] == [
        "begin_evolve", "after_generation", "after_generation", "after_evolve", "begin_validate"
    ]  # fmt: skip


def test_it_absorbs_its_own_cancellation(run: Evolving, learner: Learner) -> None:
    run.on("after_generation", lambda run: run.token.cancel("evolve", "good enough"))
    result = run.fit(1, learner)
    assert fired(run).count("after_generation") == 1
    assert "after_cancel_evolve" in fired(run)
    assert (result.outcome, result.cancellations[0].scope) == ("completed", "evolve")


def test_its_closing_event_fires_when_the_fit_is_cancelled(run: Evolving, learner: Learner) -> None:
    run.on("after_generation", lambda run: run.token.cancel("fit", "enough"))
    assert run.fit(1, learner).outcome == "cancelled"
    closing = ["after_evolve", "after_epoch", "after_row", "after_cancel_fit", "after_fit"]
    assert fired(run)[-5:] == closing


def test_a_failure_in_it_is_a_failure_of_the_fit(run: Evolving, learner: Learner) -> None:
    run.on("after_generation", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        run.fit(1, learner)
    assert fired(run)[-4:] == ["fit_failed", "after_evolve", "after_epoch", "after_fit"]


def test_during_takes_it_and_the_phase_is_put_back(run: Evolving, learner: Learner) -> None:
    phases: list[Any] = []
    run.on("after_generation", lambda run: phases.append(run.phase), during="evolve")
    run.on("after_generation", lambda run: phases.append("never"), during="train")
    run.on("after_evolve", lambda run: phases.append(run.phase), priority=-1e9)
    run.on("begin_validate", lambda run: phases.append(run.phase))
    run.fit(1, learner)
    assert phases == ["evolve", "evolve", "evolve", "validate"]


def test_during_names_it_among_the_phases_that_there_are(run: Evolving) -> None:
    with pytest.raises(ValueError, match="train, validate, predict, evolve, got 'evolv'"):
        run.on("after_generation", print, during="evolv")


def test_the_picture_draws_it_where_it_is(run: Evolving) -> None:
    run.on("after_generation", lambda run: None, name="select")
    lines = str(run).splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("begin_evolve"))
    assert lines[at].startswith("    begin_evolve") and lines[at].endswith("(breeding)")
    drawn = [line.split()[0] for line in lines[at : at + 8] if line]
    names = [name for name in drawn if not name.startswith("[")]
    assert names[:3] == ["begin_evolve", "after_generation", "after_evolve"]
    assert lines[at + 1].endswith("1 handler: select")
    assert "[0] select" in run.picture(details=True)


def test_explain_lists_its_handlers(run: Evolving) -> None:
    run.on("after_generation", lambda run: None, name="select")
    rows = run.bus.explain("after_generation").to_dicts()
    assert [(row["event"], row["handler"]) for row in rows] == [("after_generation", "select")]


def test_a_replay_draws_it_from_the_log_alone(run: Evolving, learner: Learner) -> None:
    run.fit(1, learner)
    lines = draw(run.event_log.records)
    at = next(i for i, line in enumerate(lines) if "begin_evolve" in line)
    assert [line.split()[0] for line in lines[at : at + 4]] == [
        "begin_evolve", "after_generation", "after_generation", "after_evolve"
    ]  # fmt: skip
    assert lines[at].startswith("    begin_evolve")
    assert lines[at + 1].startswith("      after_generation")


def test_a_profile_has_a_lane_for_it(run: Evolving, learner: Learner, tmp_path) -> None:
    with run.bus.profile() as profile:
        run.fit(1, learner)
    profile.to_chrome_trace(tmp_path / "trace.json")
    assert '"evolve"' in (tmp_path / "trace.json").read_text()


def test_a_run_that_is_under_way_has_it_too(learner: Learner) -> None:
    run, seen = Runner(), []

    def breed(run: Any) -> None:
        run.bus.declare_scope("evolve", inside="epoch")
        run.on("after_evolve", lambda run: seen.append("closed"))
        with run.scope.evolve:
            run.emit.begin_evolve()

    run.on("after_train", breed)
    run.fit(1, learner)
    assert seen == ["closed"]


def test_a_loop_of_ones_own_can_have_other_scopes_altogether() -> None:
    bus, seen = EventBus(events=(), scopes=()), []
    bus.declare_scope("game")
    bus.declare_scope("move", inside="game")
    for name in bus:
        bus.on(name, lambda run, name=name: seen.append(name))
    emit, scope = bus.bind(SimpleNamespace(), CancellationToken())
    with scope.game:
        emit.begin_game()
        with scope.move:
            emit.begin_move()
    assert seen == ["begin_game", "begin_move", "after_move", "after_game"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "epoch"}, "already"),
        ({"name": "a b"}, "identifier"),
        ({"name": "round", "inside": "epok"}, "inside of 'epok'.*Did you mean 'epoch'"),
        ({"name": "round", "points": ["after_loss"]}, "after_loss' already"),
        ({"name": "round", "points": ["_x"]}, "identifier"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_declared(
    arguments: dict[str, Any], message: str
) -> None:
    bus = EventBus()
    before = list(bus)
    with pytest.raises(ValueError, match=message):
        bus.declare_scope(**arguments)
    assert list(bus) == before
    assert "round" not in bus.vocabulary.scopes


def test_what_declare_scope_returns_stands_for_its_name(learner: Learner) -> None:
    run = Evolving()
    evolve = run.bus.declare_scope(
        "evolve", inside="epoch", is_phase=True, points=["after_generation"]
    )
    phases: list[str] = []
    run.on("begin_evolve", lambda run: phases.append(run.phase), during=evolve)
    run.on(run.bus.signal("after_generation"), lambda run: run.token.cancel(evolve, "enough"))
    result = run.fit(1, learner)
    assert (result.outcome, result.cancellations[0].scope) == ("completed", "evolve")
    assert phases == ["evolve"]
