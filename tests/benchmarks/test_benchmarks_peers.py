"""The peers suite checks what it times, and does without what is not installed."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure import Options, Suite
from benchmarks.peers import COUNTS, run
from benchmarks.peers.groups import OURS, Pair, labels, least_overhead, overheads
from benchmarks.peers.process import Process
from benchmarks.peers.registry import PEERS, Peer, load_adapters, peer
from benchmarks.peers.verify import NotTrainedError
from benchmarks.peers.work import BY_HAND, BY_PEER, Fit, Work, by_hand, make_batches
from benchmarks.peers.worker import introduce, time_round

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"
ADAPTERS = load_adapters()
INSTALLED = [
    name for name, each in ADAPTERS.items() if each.version or os.environ.get(each.variable)
]
NAMES = {
    "Composer", "HF Trainer", "Ignite", "Keras", "Lightning", "Lightning barebones", "TorchTNT",
    "eventtrain", "fastai", "pytorch-accelerated", "skorch",
}  # fmt: skip


def calls_by_hand(work: Work) -> Fit:
    """The hand-written loop, with handlers called before it."""
    functions = work.functions("hook", "batch")

    def fit() -> None:
        for batch in work.batches:
            for function in functions:
                function(batch)
        by_hand(work)()

    return fit


def stranger(prepare: Callable[[Work], Fit], package: str = "torch") -> Peer:
    """A peer that no adapter registers."""
    return Peer("stranger", package, {"begin_batch": "hook"}, prepare)


@pytest.fixture(scope="module")
def suite() -> Suite:
    """A quick run of the suite, with whatever is installed here."""
    return run(Options(quick=True))


@pytest.fixture
def process() -> Iterator[Callable[[Peer], Process]]:
    """Start processes, and end them with the test."""
    started: list[Process] = []

    def start(one: Peer) -> Process:
        started.append(Process(one, 0, (0,)))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_every_adapter_registers_its_peers() -> None:
    assert set(ADAPTERS) == NAMES


def test_two_peers_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match="two peers are named 'Ignite'"):
        peer("Ignite", package="torch", hooks={})(by_hand)
    assert PEERS["Ignite"].package == "pytorch-ignite"


def test_hooks_are_given_for_our_per_batch_events_only() -> None:
    ours = list(ADAPTERS[OURS].hooks)
    assert len(ours) == 6
    for each in ADAPTERS.values():
        assert each.hooks
        assert [event for event in ours if event in each.hooks] == list(each.hooks)


def test_every_peer_is_in_the_readme_with_its_package_and_hooks() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for each in ADAPTERS.values():
        hooks = [each.hooks.get(event) for event in ADAPTERS[OURS].hooks]
        cells = [f"`{hook}`" if hook else "none" for hook in hooks]
        assert f"\n| {each.name} | `{each.package}` | {' | '.join(cells)} |\n" in readme


def test_importing_an_adapter_does_not_import_its_framework() -> None:
    for module in (FOLDER / "adapters").glob("[!_]*.py"):
        top = [
            line for line in module.read_text().splitlines() if re.match(r"(import|from) ", line)
        ]
        names = {re.split(r"[ .]", line)[1] or "." for line in top}
        assert names <= {
            ".",
            "__future__",
            "typing",
            "types",
            "collections",
            "os",
            "tempfile",
            "torch",
        }


@pytest.mark.parametrize("name", INSTALLED)
def test_an_installed_peer_trains_as_the_hand_written_loop(name: str, suite: Suite) -> None:
    (note,) = [note for note in suite.notes if note.startswith(f"{name}: ")]
    assert re.search(
        r"30 steps counted in 30 batches, final weights (equal bit for bit|close)", note
    )


def test_a_peer_that_is_not_installed_is_skipped_with_the_reason(suite: Suite) -> None:
    missing = set(ADAPTERS) - set(INSTALLED)
    for name in missing:
        package = ADAPTERS[name].package
        assert f"{name}: skipped: {package} is not installed" in suite.notes
    assert sum("skipped" in note for note in suite.notes) == len(missing)


def test_every_installed_peer_has_a_row_in_each_case(suite: Suite) -> None:
    assert len(suite.groups) == len(COUNTS) + 1
    peers = [ADAPTERS[OURS], *(ADAPTERS[name] for name in INSTALLED if name != OURS)]
    for group, count in zip(suite.groups, COUNTS, strict=False):
        assert list(group.rounds) == ["hand-written loop", *labels(peers, count).values()]
        assert {len(seconds) for seconds in group.rounds.values()} == {2}
    assert list(suite.groups[-1].rounds) == [each.name for each in peers]


def test_the_suite_promises_that_all_who_are_installed_trained(suite: Suite) -> None:
    (target,) = [target for target in suite.targets if "trained" in target.text]
    assert target.passed


def test_our_overhead_is_held_against_the_peers_where_there_are_any(suite: Suite) -> None:
    found = [target for target in suite.targets if "overhead" in target.text]
    assert len(found) == (len(COUNTS) if len(INSTALLED) > 1 else 0)


def test_a_peer_that_does_not_step_is_refused() -> None:
    with pytest.raises(NotTrainedError, match="0 optimizer steps in place of 30"):
        introduce(stranger(lambda work: lambda: None), 0, [0])


def test_a_peer_that_trains_otherwise_is_refused() -> None:
    def backwards(work: Work) -> Fit:
        work.batches.reverse()
        return by_hand(work)

    with pytest.raises(NotTrainedError, match="final weights are off"):
        introduce(stranger(backwards), 0, [0])


def test_a_peer_whose_handlers_are_not_called_is_refused() -> None:
    with pytest.raises(NotTrainedError, match="0 calls of handlers at hook in place of 300"):
        introduce(stranger(by_hand), 0, [10])


def test_a_peer_that_does_all_of_it_is_introduced() -> None:
    found = introduce(stranger(calls_by_hand), 0, [0, 10])
    assert found["steps"] == 30
    assert found["exact"] is True


def test_weights_that_are_close_but_not_equal_are_told_apart() -> None:
    def nearly(work: Work) -> Fit:
        fit = calls_by_hand(work)

        def then_nudge() -> None:
            fit()
            work.model.bias.data += 1e-7

        return then_nudge

    assert introduce(stranger(nearly), 0, [0])["exact"] is False


def test_a_missing_package_skips_its_peer_before_it_is_prepared() -> None:
    found = introduce(stranger(lambda work: 1 / 0, package="no-such-package"), 0, [0])
    assert found == {"skipped": "no-such-package is not installed"}


def test_every_timed_fit_is_checked_too() -> None:
    fits = 0

    def lazy_from_the_third(work: Work) -> Fit:
        nonlocal fits
        fits += 1
        return by_hand(work) if fits < 3 else lambda: None

    one = stranger(lazy_from_the_third)
    answer = time_round(one, 0, handlers=0, lengths=(2, 4), passes=1)
    assert set(answer) == {BY_HAND, BY_PEER}
    with pytest.raises(NotTrainedError):
        time_round(one, 0, handlers=0, lengths=(2, 4), passes=1)


def test_setting_up_a_fit_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = importlib.import_module("benchmarks.peers.worker")
    # What one fit takes: 1000 s to set up, 1 s a batch by hand and 2 s with the peer.
    costs = iter([1005.0, 1010.0, 1020.0, 1040.0])

    def pretend(fit: Fit) -> float:
        fit()
        return next(costs)

    monkeypatch.setattr(worker, "seconds", pretend)
    one = stranger(by_hand)
    answer = time_round(one, 0, handlers=0, lengths=(5, 20), passes=1)
    assert answer == {BY_HAND: 1.0, BY_PEER: 2.0}


def test_the_model_and_its_batches_are_the_same_in_every_fit() -> None:
    first, second = (Work(make_batches(3, seed=1), seed=1) for _ in range(2))
    assert first.model.weight.equal(second.model.weight)
    assert all(
        a.equal(b)
        for one, other in zip(first.batches, second.batches, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_handlers_are_compiled_one_by_one() -> None:
    class Callback:
        def on_batch(self, trainer: Any, index: int = 0, *args: Any, **kwargs: Any) -> None:
            raise AssertionError

    made = Work([], handlers=3).callbacks(Callback, ["on_batch"])
    assert all(isinstance(each, Callback) for each in made)
    assert all(each.on_batch("trainer", 1, 2, more=3) is None for each in made)
    assert len({id(type(each).on_batch.__code__) for each in made}) == 3


def test_a_peer_is_compared_with_the_loop_in_its_own_process() -> None:
    pairs = {"fast": Pair([1e-6, 2e-6], [2e-6, 3e-6]), "slow": Pair([5e-6, 4e-6], [9e-6, 8e-6])}
    group = overheads("title", pairs)
    assert group.baseline == "hand-written loop"
    assert group.time(group.baseline).median == pytest.approx(3)
    assert group.difference("fast").median == pytest.approx(1)
    assert group.difference("slow").median == pytest.approx(4)
    assert group.ratio("slow").max == pytest.approx(2)
    assert group.ratio("slow", to="fast").max == pytest.approx(4.5)


@pytest.mark.parametrize(("ours", "passed"), [(3e-6, True), (5e-6, False)])
def test_the_smallest_overhead_of_the_peers_is_what_counts(ours: float, passed: bool) -> None:
    pairs = {
        OURS: Pair([1e-6], [1e-6 + ours]),
        "a": Pair([1e-6], [9e-6]),
        "b": Pair([2e-6], [6e-6]),
    }
    target = least_overhead("no handlers", overheads("title", pairs), OURS)
    assert target is not None
    assert target.value == pytest.approx(ours * 1e6 - 4)
    assert target.passed is passed


def test_without_peers_there_is_nothing_to_hold_us_against() -> None:
    group = overheads("title", {OURS: Pair([1e-6], [2e-6])})
    assert least_overhead("no handlers", group, OURS) is None


def test_an_interpreter_that_does_not_start_is_reported(
    monkeypatch: pytest.MonkeyPatch, process: Callable[[Peer], Process], tmp_path: Path
) -> None:
    one = stranger(by_hand)
    assert one.variable == "EVENTTRAIN_BENCH_PYTHON_STRANGER"
    monkeypatch.setenv(one.variable, str(tmp_path / "python"))
    started = process(one)
    assert started.answer() is None
    assert re.match(r"failed: .*python does not start: ", started.problem or "")


def test_a_peer_runs_under_the_interpreter_named_for_it(
    monkeypatch: pytest.MonkeyPatch, process: Callable[[Peer], Process], tmp_path: Path
) -> None:
    if sys.platform == "win32":
        pytest.skip("needs a shell script that stands for an interpreter")
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho \'{"version": "of another interpreter"}\'\n')
    script.chmod(0o755)
    one = Peer("My Peer 2", "torch", {}, by_hand)
    monkeypatch.setenv("EVENTTRAIN_BENCH_PYTHON_MY_PEER_2", str(script))
    assert process(one).answer() == {"version": "of another interpreter"}


def test_a_worker_that_fails_says_why(process: Callable[[Peer], Process]) -> None:
    started = process(stranger(by_hand))  # no adapter in the worker has this name
    assert started.answer() is None
    assert started.problem == "failed: KeyError: 'stranger'"
    assert not started.skipped


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a shell script stand for the stranger's interpreter."""
    if sys.platform == "win32":
        pytest.skip("needs a shell script that stands for an interpreter")

    def write(text: str) -> None:
        file = tmp_path / "python"
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        monkeypatch.setenv("EVENTTRAIN_BENCH_PYTHON_STRANGER", str(file))

    return write


def test_a_worker_that_dies_is_reported_with_its_last_words(
    process: Callable[[Peer], Process], script: Callable[[str], None]
) -> None:
    script("echo out of luck >&2\nexit 3")
    started = process(stranger(by_hand))
    assert started.answer() is None
    assert started.problem == "failed: its process ended (3): out of luck"
    assert started.ask(handlers=0) is None


@pytest.mark.parametrize("line", ["activating environment", "7", "\\0377"])
def test_a_worker_that_answers_something_else_is_reported_with_it(
    line: str, process: Callable[[Peer], Process], script: Callable[[str], None]
) -> None:
    script(f"printf '{line}\\n'")
    started = process(stranger(by_hand))
    assert started.answer() is None
    assert re.match(r"failed: it answered '.+', which is no", started.problem or "")


def test_a_worker_that_is_late_is_ended_with_all_that_it_started(
    process: Callable[[Peer], Process],
    script: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.peers.process.TIMEOUT", 0.2)
    script("sleep 1000\necho")  # the sleep holds the pipe open when only its shell is ended
    started = process(stranger(by_hand))
    assert started.answer() is None
    assert started.problem == "failed: timeout, no answer within 0.2 s"


INTRODUCED = '{"version": "1", "torch": "2", "steps": 30, "exact": %s}'
TIMED = '{"by hand": 1.0, "by peer": 2.0}'


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Suite]:
    """Run the suite on eventtrain and a stranger, both played by scripts; return what it finds."""
    if sys.platform == "win32":
        pytest.skip("needs a shell script that stands for an interpreter")

    def found(*stranger_says: str, ours: str = INTRODUCED % "true") -> Suite:
        said = {"EVENTTRAIN": [ours, *[TIMED] * 6], "STRANGER": stranger_says}
        for name, lines in said.items():
            file = tmp_path / name
            first, *others = (f"echo '{line}'" for line in lines)
            file.write_text("\n".join(["#!/bin/sh", first, *(f"read _; {o}" for o in others)]))
            file.chmod(0o755)
            monkeypatch.setenv(f"EVENTTRAIN_BENCH_PYTHON_{name}", str(file))
        peers = {OURS: ADAPTERS[OURS], "stranger": stranger(by_hand)}
        monkeypatch.setattr("benchmarks.peers.load_adapters", lambda: peers)
        return run(Options(quick=True))

    return found


@pytest.mark.parametrize("good_answers", [0, 1, 3])
def test_who_fails_the_check_at_any_time_is_reported_and_not_in_the_tables(
    good_answers: int, answers: Callable[..., Suite]
) -> None:
    good = [INTRODUCED % "true", *[TIMED] * 6][:good_answers]
    suite = answers(*good, '{"failed": "NotTrainedError: the final weights are off by up to 1"}')
    assert "stranger: failed: NotTrainedError: the final weights are off by up to 1" in suite.notes
    assert not any(name.startswith("stranger") for group in suite.groups for name in group.rounds)
    (target,) = [target for target in suite.targets if "trained" in target.text]
    assert target.value == 0.5
    assert not target.passed


def test_weights_that_are_only_close_are_called_so(answers: Callable[..., Suite]) -> None:
    suite = answers(INTRODUCED % "false", *[TIMED] * 6)
    (note,) = [note for note in suite.notes if note.startswith("stranger: ")]
    assert "final weights close, but not bit for bit to" in note
    assert all(target.passed for target in suite.targets)


def test_every_figure_of_a_peer_carries_its_version(answers: Callable[..., Suite]) -> None:
    suite = answers((INTRODUCED % "true").replace('"1"', '"9.8"'), *[TIMED] * 6)
    for group in suite.groups[:2]:
        versions = [each["version"] for each in group.parameters.values()]
        assert versions == ["1", "9.8"]


def test_an_empty_variable_names_no_interpreter(
    process: Callable[[Peer], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTTRAIN_BENCH_PYTHON_STRANGER", "")
    started = process(stranger(by_hand, package="no-such-package"))
    assert started.problem == "skipped: no-such-package is not installed"


def test_ctrl_c_while_a_worker_is_waited_for_leaves_no_thread_behind(
    process: Callable[[Peer], Process], script: Callable[[str], None]
) -> None:
    script("sleep 1000\necho")
    started = process(stranger(by_hand))
    threads = set(threading.enumerate())
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    interrupt = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            started.answer()
    finally:
        signal.signal(signal.SIGINT, old)
        interrupt.join()
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)
        assert not thread.is_alive()
