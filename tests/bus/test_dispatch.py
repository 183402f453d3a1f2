from __future__ import annotations

import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from eventtrain.bus.dispatch import Style, make_emission, source
from eventtrain.bus.handlers import Handler, Options
from eventtrain.bus.running import running_handler
from eventtrain.cancellation import CancellationToken, Scope, Unwind

STYLES: list[Style] = ["send", "checkpoint", "closing"]
COUNTS = [*range(6), 127, 128, 129, 140]
POSITIONS = [(n, i) for n in (1, 2, 5, 128, 129, 140) for i in {0, 1, n // 2, n - 1} if i < n]
SENDER = SimpleNamespace(epoch=1, batch_index=4)


def handlers(receivers: list[Callable[[Any], object]]) -> list[Handler]:
    return [Handler("e", r, Options(name=f"h{i}")) for i, r in enumerate(receivers)]


def emitter(
    style: Style, receivers: list[Callable[[Any], object]], token: CancellationToken | None = None
) -> Callable[[], None]:
    """Return a function without arguments that emits to ``receivers`` in ``style``."""
    token = token or CancellationToken()
    emission = make_emission(style, handlers(receivers), SENDER, token)
    return (lambda: emission(SENDER, token)) if style == "send" else emission


def noting(n: int, seen: list[int]) -> list[Callable[[Any], object]]:
    return [lambda run, i=i: seen.append(i) for i in range(n)]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("n", COUNTS)
def test_every_handler_runs_once_in_order(style: Style, n: int) -> None:
    seen: list[int] = []
    emit = emitter(style, noting(n, seen))
    emit()
    emit()
    assert seen == [*range(n), *range(n)]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("n", [1, 3, 128, 129])
def test_every_handler_is_given_the_sender(style: Style, n: int) -> None:
    seen: list[Any] = []
    emitter(style, [seen.append] * n)()
    assert len(seen) == n
    assert all(sender is SENDER for sender in seen)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("n", COUNTS)
def test_inside_each_handler_it_is_the_running_one(style: Style, n: int) -> None:
    seen: list[str] = []

    def ask(run: Any) -> None:
        handler = running_handler()
        assert handler is not None
        seen.append(handler.name)

    emitter(style, [ask] * n)()
    assert seen == [f"h{i}" for i in range(n)]


@pytest.mark.parametrize("style", STYLES)
def test_the_running_handler_is_found_from_deep_inside_it(style: Style) -> None:
    seen: list[str] = []

    def dig(depth: int) -> None:
        if depth:
            dig(depth - 1)
        else:
            handler = running_handler()
            assert handler is not None
            seen.append(handler.name)

    emitter(style, [lambda run: None, lambda run: dig(20), lambda run: None])()
    assert seen == ["h1"]


@pytest.mark.parametrize("outer", STYLES)
@pytest.mark.parametrize("inner", STYLES)
def test_of_nested_emissions_the_innermost_handler_is_running(outer: Style, inner: Style) -> None:
    seen: list[str] = []

    def ask(run: Any) -> None:
        handler = running_handler()
        assert handler is not None
        seen.append(handler.name)

    nested = emitter(inner, [lambda run: None, ask])

    def first(run: Any) -> None:
        nested()
        ask(run)

    emitter(outer, [first])()
    assert seen == ["h1", "h0"]


def test_outside_of_handlers_none_is_running() -> None:
    assert running_handler() is None


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("n", "i"), POSITIONS)
def test_a_note_names_the_handler_that_raised(style: Style, n: int, i: int) -> None:
    receivers = noting(n, [])
    receivers[i] = lambda run: 1 / 0
    with pytest.raises(ZeroDivisionError) as caught:
        emitter(style, receivers)()
    (note,) = caught.value.__notes__
    assert f"handler 'h{i}' of event 'e'" in note
    assert "epoch 1, batch 4" in note


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("n", "i"), POSITIONS)
@pytest.mark.parametrize("flag", [True, False])
def test_a_note_names_the_handler_that_returned_a_flag(
    style: Style, n: int, i: int, flag: bool
) -> None:
    receivers = noting(n, [])
    receivers[i] = lambda run: flag
    with pytest.raises(TypeError, match=f"returned {flag}") as caught:
        emitter(style, receivers)()
    (note,) = caught.value.__notes__
    assert f"handler 'h{i}' of event 'e'" in note


@pytest.mark.parametrize("style", ["send", "checkpoint"])
@pytest.mark.parametrize(("n", "i"), POSITIONS)
def test_an_error_skips_the_handlers_after_it(style: Style, n: int, i: int) -> None:
    seen: list[int] = []
    receivers = noting(n, seen)
    receivers[i] = lambda run: 1 / 0
    with pytest.raises(ZeroDivisionError):
        emitter(style, receivers)()
    assert seen == list(range(i))


@pytest.mark.parametrize(("n", "i"), POSITIONS)
@pytest.mark.parametrize("value", [None, 5])
def test_sending_skips_the_handlers_after_the_one_that_cancels(
    n: int, i: int, value: object
) -> None:
    seen: list[int] = []
    receivers, token = noting(n, seen), CancellationToken()

    def cancel(run: Any) -> object:
        token.cancel()
        return value

    receivers[i] = cancel
    emitter("send", receivers, token)()
    assert seen == list(range(i))


@pytest.mark.parametrize(("n", "i"), POSITIONS)
@pytest.mark.parametrize("value", [None, 5])
def test_a_checkpoint_leaves_the_scope_at_the_handler_that_cancels(
    n: int, i: int, value: object
) -> None:
    seen: list[int] = []
    receivers, token = noting(n, seen), CancellationToken()

    def cancel(run: Any) -> object:
        token.cancel("batch")
        return value

    receivers[i] = cancel
    emit = emitter("checkpoint", receivers, token)
    with Scope(token, "batch") as scope:
        emit()
        seen.append(-1)
    assert seen == list(range(i))
    assert scope.outcome == "cancelled"


@pytest.mark.parametrize("n", [0, 1, 128, 129])
def test_a_checkpoint_that_finds_a_request_runs_no_handler(n: int) -> None:
    seen: list[int] = []
    token = CancellationToken()
    emit = emitter("checkpoint", noting(n, seen), token)
    with Scope(token, "batch") as scope:
        token.cancel("batch")
        emit()
        seen.append(-1)
    assert seen == []
    assert scope.outcome == "cancelled"


@pytest.mark.parametrize("n", [0, 1, 128, 129])
def test_sending_with_a_cancelled_token_runs_no_handler(n: int) -> None:
    seen: list[int] = []
    token = CancellationToken()
    token.cancel()
    emitter("send", noting(n, seen), token)()
    assert seen == []


@pytest.mark.parametrize("n", [1, 128, 129])
def test_sending_without_a_token_runs_every_handler(n: int) -> None:
    seen: list[int] = []
    make_emission("send", handlers(noting(n, seen)))(SENDER)
    assert seen == list(range(n))


@pytest.mark.parametrize(("n", "i"), POSITIONS)
def test_a_cancellation_has_no_note_for_a_user_to_see(n: int, i: int) -> None:
    token = CancellationToken()
    receivers = noting(n, [])
    receivers[i] = lambda run: token.cancel("batch")
    emit = emitter("checkpoint", receivers, token)
    scope = Scope(token, "batch")
    with pytest.raises(Unwind) as caught:
        try:
            scope.__enter__()
            emit()
        finally:
            scope.__exit__(None, None, None)
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize(("n", "i"), POSITIONS)
def test_closing_runs_every_handler_though_one_raises(n: int, i: int) -> None:
    seen: list[int] = []
    receivers = noting(n, seen)
    receivers[i] = lambda run: 1 / 0
    with pytest.raises(ZeroDivisionError):
        emitter("closing", receivers)()
    assert seen == [j for j in range(n) if j != i]


@pytest.mark.parametrize(("n", "i"), POSITIONS)
def test_closing_runs_every_handler_though_one_cancels(n: int, i: int) -> None:
    seen: list[int] = []
    receivers, token = noting(n, seen), CancellationToken()
    receivers[i] = lambda run: token.cancel()
    emitter("closing", receivers, token)()
    assert seen == [j for j in range(n) if j != i]


def test_closing_runs_every_handler_though_the_token_was_cancelled_before() -> None:
    seen: list[int] = []
    token = CancellationToken()
    token.cancel()
    emitter("closing", noting(3, seen), token)()
    assert seen == [0, 1, 2]


def test_closing_takes_a_checkpoint_inside_a_handler_for_that_handlers_end() -> None:
    seen: list[Any] = []
    token = CancellationToken()

    def check(run: Any) -> None:
        token.cancel("epoch")
        token.check()
        seen.append("not reached")

    with Scope(token, "epoch") as scope:
        emitter("closing", [check, seen.append], token)()
        assert seen == [SENDER]
    assert scope.outcome == "cancelled"


@pytest.mark.parametrize("n", [5, 140])
def test_closing_raises_the_first_error_with_the_others_as_notes(n: int) -> None:
    def fail(kind: type[BaseException]) -> Callable[[Any], object]:
        def raise_it(run: Any) -> None:
            raise kind("boom")

        return raise_it

    receivers = noting(n, [])
    receivers[1], receivers[n - 1] = fail(KeyError), fail(OSError)
    with pytest.raises(KeyError) as caught:
        emitter("closing", receivers)()
    own, other = caught.value.__notes__
    assert "'h1'" in own
    assert "OSError: boom" in other
    assert f"'h{n - 1}'" in other


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("n", [3, 140])
def test_closing_lets_an_interrupt_win_over_earlier_errors(
    kind: type[BaseException], n: int
) -> None:
    seen: list[int] = []

    def interrupt(run: Any) -> None:
        raise kind

    receivers = noting(n, seen)
    receivers[0], receivers[1] = (lambda run: 1 / 0), interrupt
    with pytest.raises(kind) as caught:
        emitter("closing", receivers)()
    assert seen == list(range(2, n))
    assert any("ZeroDivisionError" in note for note in caught.value.__notes__)


def test_closing_lets_an_interrupt_between_two_handlers_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*arguments: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    def fail_last(run: Any) -> None:
        # Collecting its error stands for the moment between two handlers.
        monkeypatch.setitem(emission.__globals__, "keep", interrupted)
        raise OSError

    emission = emitter("closing", [lambda run: 1 / 0, fail_last])
    with pytest.raises(KeyboardInterrupt) as caught:
        emission()
    assert any("ZeroDivisionError" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("style", STYLES)
def test_an_error_without_other_errors_has_no_context(style: Style) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        emitter(style, [lambda run: None, lambda run: 1 / 0])()
    assert caught.value.__context__ is None


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("n", [2, 140])
def test_a_traceback_shows_the_generated_line(style: Style, n: int) -> None:
    receivers = noting(n, [])
    receivers[1] = lambda run: 1 / 0
    with pytest.raises(ZeroDivisionError) as caught:
        emitter(style, receivers)()
    frames = traceback.extract_tb(caught.value.__traceback__)
    lines = [f.line for f in frames if f.filename.startswith("<eventtrain dispatch")]
    assert any(("h1(sender)" if n == 2 else "call(sender)") in (line or "") for line in lines)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("n", [0, 1, 2, 128, -1])
def test_the_source_can_be_printed_and_is_python(style: Style, n: int) -> None:
    compile(source(style, n), "printed", "exec")
    assert source(style, n).count("(sender)") == (n if n >= 0 else 1)


def test_two_emissions_of_one_shape_are_independent() -> None:
    one: list[Any] = []
    other: list[Any] = []
    emit_one, emit_other = emitter("send", [one.append]), emitter("send", [other.append])
    emit_one()
    assert (len(one), len(other)) == (1, 0)
    emit_other()
    assert (len(one), len(other)) == (1, 1)
