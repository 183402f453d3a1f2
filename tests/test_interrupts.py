"""Ctrl-C and SIGTERM, with real signals; in subprocesses where the process may end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from eventtrain import Callback, Learner, Runner
from eventtrain.interrupts import OnInterrupt


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def interrupt(run: Runner) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_closes_every_scope_and_then_raises(learner: Learner) -> None:
    run = Runner()
    events: list[str] = []
    run.on("after_loss", interrupt, once=True)
    for event in ("after_batch", "after_train", "after_epoch", "after_cancel_fit", "after_fit"):
        run.on(event, lambda run, event=event: events.append(event))
    with pytest.raises(KeyboardInterrupt):
        run.fit(1, learner)
    assert events == ["after_batch", "after_train", "after_epoch", "after_cancel_fit", "after_fit"]


def test_ctrl_c_is_the_reason_of_the_cancellation(learner: Learner) -> None:
    run = Runner(on_interrupt="return")
    run.on("after_loss", interrupt, once=True)
    result = run.fit(1, learner)
    assert (result.outcome, result.reason) == ("cancelled", "SIGINT")
    assert result.cancellations[0].by == "SIGINT"


def test_the_result_stays_readable_after_ctrl_c(learner: Learner) -> None:
    run = Runner()
    run.on("after_step", interrupt, once=True)
    with pytest.raises(KeyboardInterrupt):
        run.fit(1, learner)
    assert run.result is not None
    assert (run.result.outcome, run.result.steps) == ("cancelled", 1)


def test_a_second_ctrl_c_raises_at_once(learner: Learner) -> None:
    run = Runner()
    reached: list[str] = []

    def slow(run: Runner) -> None:
        interrupt(run)
        reached.append("after the first")
        interrupt(run)
        reached.append("after the second")

    run.on("after_loss", slow, once=True)
    with pytest.raises(KeyboardInterrupt):
        run.fit(1, learner)
    assert reached == ["after the first"]


def test_ctrl_c_in_the_last_event_still_raises(learner: Learner) -> None:
    run = Runner()
    run.on("after_fit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.fit(1, learner)
    assert run.result is not None
    assert run.result.outcome == "completed"


class InterruptsWhenDropped:
    """Sends Ctrl-C from a finalizer, where an exception would be lost."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("on_interrupt", ["raise", "return"])
def test_ctrl_c_while_the_state_is_put_away_is_not_lost(
    learner: Learner, on_interrupt: OnInterrupt
) -> None:
    run = Runner(on_interrupt=on_interrupt)
    run.on("after_fit", lambda run: setattr(run, "pred", InterruptsWhenDropped()), once=True)
    with pytest.raises(KeyboardInterrupt):
        run.fit(1, learner)
    assert run.result is not None
    assert run.result.outcome == "completed"
    assert run.fit(1, learner).outcome == "completed"


def test_ctrl_c_while_the_state_is_put_in_place_keeps_the_fit_from_starting(
    learner: Learner,
) -> None:
    class Interrupting(Callback):
        def set_runner(self, run: Runner) -> None:
            super().set_runner(run)
            if run.learn is not None:  # not when the runner is made
                interrupt(run)

    run, events = Runner(Interrupting()), []
    run.on("begin_fit", lambda run: events.append("begin_fit"))
    with pytest.raises(KeyboardInterrupt):
        run.fit(1, learner)
    assert events == []
    assert run.result is not None
    assert (run.result.outcome, run.result.reason) == ("cancelled", "SIGINT")


def test_ctrl_c_during_validate_cancels_the_validation(learner: Learner) -> None:
    run = Runner(on_interrupt="return")
    run.on("after_loss", interrupt, once=True)
    assert run.validate(learner).outcome == "cancelled"


def test_a_handler_of_the_users_own_is_given_the_signal_afterwards(learner: Learner) -> None:
    received: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        run = Runner()
        run.on("after_loss", lambda run: os.kill(os.getpid(), signal.SIGTERM), once=True)
        run.on("after_fit", lambda run: received.append(0))
        assert run.fit(1, learner).reason == "SIGTERM"
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert received == [0, signal.SIGTERM]


def test_an_inner_fit_hands_ctrl_c_on_to_the_outer_one(make_learner) -> None:
    outer = Runner(on_interrupt="return")
    inner = Runner()

    def nested(run: Runner) -> None:
        inner.on("after_loss", interrupt, once=True)
        inner.fit(1, make_learner())

    outer.on("after_loss", nested, once=True)
    assert outer.fit(1, make_learner()).outcome == "cancelled"
    assert inner.result is not None
    assert inner.result.outcome == "cancelled"


def test_a_failure_leaves_the_signal_handlers_as_they_were(learner: Learner) -> None:
    run = Runner()
    run.on("after_loss", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)


def test_an_ignored_signal_stays_ignored(learner: Learner) -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = Runner()
        run.on("after_loss", interrupt, once=True)
        assert run.fit(1, learner).outcome == "completed"
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_fit_in_another_thread_leaves_signals_alone(learner: Learner) -> None:
    run = Runner()
    seen: list[object] = []
    run.on("begin_fit", lambda run: seen.append(signal.getsignal(signal.SIGINT)))
    thread = threading.Thread(target=run.fit, args=(1, learner))
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_an_unknown_answer_to_interrupts_is_refused() -> None:
    with pytest.raises(ValueError, match="on_interrupt"):
        Runner(on_interrupt="ignore")  # type: ignore[arg-type]


PROGRAM = """
import os, signal
import torch
from torch import nn
from eventtrain import DataBunch, Learner, Runner

model = nn.Linear(1, 1)
batch = (torch.ones(1, 1), torch.ones(1, 1))
opt = torch.optim.SGD(model.parameters(), lr=0.1)
learn = Learner(model, opt, nn.functional.mse_loss, DataBunch([batch] * 3))
run = Runner()
run.on("after_fit", lambda run: print("closed", run.outcome, flush=True))
run.on("after_loss", lambda run: os.kill(os.getpid(), signal.{name}), once=True)
run.fit(1, learn)
print("not reached")
"""


def ends_by(name: str) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(PROGRAM).format(name=name)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120
    )


def test_sigterm_closes_the_fit_and_then_ends_the_process() -> None:
    done = ends_by("SIGTERM")
    assert done.stdout == "closed cancelled\n"
    assert done.returncode == -signal.SIGTERM


def test_ctrl_c_closes_the_fit_and_then_ends_the_process() -> None:
    done = ends_by("SIGINT")
    assert done.stdout == "closed cancelled\n"
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr


class Injector:
    """Sends Ctrl-C at the n-th instruction of the code that closes scopes."""

    def __init__(self, point: int) -> None:
        self.point = point
        self.seen = 0
        self.armed = False

    def __call__(self, frame: Any, what: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        if not ("cancellation" in name or name.startswith("<eventtrain")):
            return self
        frame.f_trace_opcodes = True
        if what == "opcode" and self.armed:
            self.seen += 1
            if self.seen == self.point:
                self.armed = False
                signal.raise_signal(signal.SIGINT)
        return self


def begun_and_closed(point: int, learner: Learner, watched: Any) -> tuple[dict[str, int], int]:
    """Interrupt a fit, and once more at ``point``; count what began and what closed."""
    injector, run = Injector(point), Runner()
    counts: dict[str, int] = {}

    def count(name: str) -> Any:
        return lambda run: counts.update({name: counts.get(name, 0) + 1})

    for scope in ("fit", "epoch", "train", "batch"):
        run.on(f"begin_{scope}", count(f"begin_{scope}"), priority=1e9)
        run.on(f"after_{scope}", count(f"after_{scope}"), priority=1e9)

    def first(run: Runner) -> None:
        interrupt(run)
        injector.armed = True

    run.on(watched, first, once=True, priority=-1e9)
    sys.settrace(injector)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.fit(1, learner)
    finally:
        sys.settrace(None)
    assert run.result is not None
    return counts, injector.seen


@pytest.mark.slow
@pytest.mark.skipif(sys.gettrace() is not None, reason="a debugger or coverage traces already")
@pytest.mark.parametrize("watched", ["after_loss", "after_batch"])
def test_a_second_ctrl_c_at_any_point_of_the_closing_leaves_no_scope_open(
    watched: str, learner: Learner
) -> None:
    _, points = begun_and_closed(0, learner, watched)
    assert points > 150
    for point in range(1, points + 1):
        counts, _ = begun_and_closed(point, learner, watched)
        for scope in ("fit", "epoch", "train", "batch"):
            began, closed = (counts.get(f"{kind}_{scope}", 0) for kind in ("begin", "after"))
            assert began == closed, (point, scope, counts)


def test_a_second_ctrl_c_in_a_closing_handler_waits_for_the_others_of_that_event(
    learner: Learner,
) -> None:
    run, reached = Runner(), []
    run.on("after_loss", interrupt, once=True)

    def insist(run: Runner) -> None:
        interrupt(run)
        reached.append("after the second")

    run.on("after_batch", insist)
    run.on("after_batch", lambda run: reached.append("the next handler"))
    run.on("after_train", lambda run: reached.append("the next scope"))
    with pytest.raises(KeyboardInterrupt):
        run.fit(1, learner)
    assert reached == ["after the second", "the next handler", "the next scope"]
    assert run.result is not None
    assert run.result.outcome == "failed"


def test_a_third_ctrl_c_does_not_wait(learner: Learner) -> None:
    run, reached = Runner(), []
    run.on("after_loss", interrupt, once=True)

    def insist(run: Runner) -> None:
        interrupt(run)
        interrupt(run)
        reached.append("after the third")

    run.on("after_batch", insist)
    with pytest.raises(KeyboardInterrupt):
        run.fit(1, learner)
    assert reached == []


IN_A_CHILD = """
import os, signal, sys, time, torch
from torch import nn
from eventtrain import DataBunch, Learner, Runner, TensorLoader

model = nn.Linear(2, 1)
data = DataBunch(TensorLoader(torch.randn(8, 2), torch.randn(8, 1), 4))
learn = Learner(model, torch.optim.SGD(model.parameters(), 0.1), nn.functional.mse_loss, data)
run = Runner()
{body}
run.fit(1, learn)
print("completed")
"""


def in_a_child(body: str) -> subprocess.CompletedProcess[str]:
    program = IN_A_CHILD.format(body=textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


FORKS = not hasattr(os, "fork")


@pytest.mark.skipif(FORKS, reason="nothing is forked here")
def test_a_child_forked_by_a_handler_can_be_terminated() -> None:
    done = in_a_child("""
        import multiprocessing

        def start(run):
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
            child.start()
            time.sleep(0.2)
            child.terminate()
            child.join(5)
            print("exit code", child.exitcode)

        run.on("after_loss", start, once=True)
    """)
    assert "exit code -15" in done.stdout, done.stderr
    assert "completed" in done.stdout


@pytest.mark.skipif(FORKS, reason="nothing is forked here")
def test_a_busy_pool_that_a_handler_makes_ends() -> None:
    done = in_a_child("""
        import multiprocessing

        def start(run):
            with multiprocessing.get_context("fork").Pool(2) as pool:
                pool.map_async(time.sleep, [20, 20])
                time.sleep(0.2)
            print("the pool has ended")

        run.on("after_loss", start, once=True)
    """)
    assert "the pool has ended" in done.stdout, done.stderr
    assert "completed" in done.stdout


@pytest.mark.skipif(FORKS, reason="nothing is forked here")
def test_a_child_has_the_signal_handlers_that_stood_before_the_fit() -> None:
    done = in_a_child("""
        def mine(number, frame): ...
        signal.signal(signal.SIGTERM, mine)

        def fork(run):
            pid = os.fork()
            if pid == 0:
                is_mine = signal.getsignal(signal.SIGTERM) is mine
                python = signal.getsignal(signal.SIGINT) is signal.default_int_handler
                os.write(1, f"{is_mine} {python}\\n".encode())
                os._exit(0)
            os.waitpid(pid, 0)
            print("parent", signal.getsignal(signal.SIGTERM) is mine)

        run.on("after_loss", fork, once=True)
    """)
    assert "True True" in done.stdout, done.stderr
    assert "parent False" in done.stdout
