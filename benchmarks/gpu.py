"""What is the share of dispatch in real training steps, from launch-bound to compute-bound?

On a CUDA device where there is one. Elsewhere on the CPU, and on the ``meta``
device, which does no arithmetic: what is left there is what the host does.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable

import torch

from eventtrain import DataBunch, Learner, Runner

from .device_clock import UNTIMED, Batches, seconds_a_batch, timed
from .loops import EVENTS, Way, fit, idle_handlers, subscribed, written_loop
from .measure import Group, Options, Suite, Target, compare_clocks
from .steps import CASES, CapturedRunner, CapturedStep, Case, learner
from .syncs import count_syncs

HAND = "hand-written loop"
SAME = "hand-written loop, same 10 handlers"
COUNTS = (0, 1, 10, 100)
LIMITS = {"launch": 1.03, "compute": 1.01}
CLOCKS = {"wall": "", "events": ", CUDA events", "host": ", host until all is queued"}
Skip = str
"""Why something was not measured."""
Found = dict[str, Group]
"""What each of the ``CLOCKS`` says."""
MOST = 120.0
"""Seconds after which a case should be done; the number of rounds follows from it."""


def run(options: Options) -> Suite:
    """Measure every case on every device that is there, or on the one that was asked for."""
    suite = Suite()
    for device in _devices(options):
        suite.notes.append(_about(device))
        cases = CASES[device.type]
        for case in cases[:1] if options.quick else cases:
            found = _plain(case, device, options)
            _add(suite, device, found)
            if not isinstance(found, Skip):
                suite.targets += _targets(case, found["wall"], device)
        for variation in (_compiled, _captured):
            _add(suite, device, variation(cases[min(1, len(cases) - 1)], device, options))
        reads = _syncs(cases[0], device, options)
        if isinstance(reads, Skip):
            suite.notes.append(f"{device}: {reads}")
        else:
            suite.targets.append(reads)
    return suite


def _add(suite: Suite, device: torch.device, found: Found | Skip) -> None:
    if isinstance(found, Skip):
        suite.notes.append(f"{device}: {found}")
    else:
        suite.groups += found.values()
        suite.notes += _hidden(found)


def ways(
    counts: tuple[int, ...] = COUNTS,
    *,
    hand: Way | None = None,
    make: Callable[[], Runner] = Runner,
) -> dict[str, Way]:
    """Return a hand-written loop, and the Runner with several numbers of handlers.

    Args:
        counts: How many handlers there are on every event.
        hand: The loop without handlers; by default the plain one, and the one
            with ten calls at every event besides.
        make: Makes the Runner.
    """
    found = {HAND: hand or written_loop(idle_handlers(0))}
    if hand is None:
        found[SAME] = written_loop(idle_handlers(10))
    for count in counts:
        found[runner(count)] = fit(subscribed(idle_handlers(count), make()))
    return found


def runner(count: int) -> str:
    """Name the Runner with ``count`` handlers on every event of a batch."""
    return f"Runner, {count} handler{'s' * (count != 1)} an event"


def _devices(options: Options) -> list[torch.device]:
    if options.device is not None:
        device = torch.device(options.device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # the clocks are those of the current device
        return [device]
    names = ["cuda"] if torch.cuda.is_available() else ["cpu", "meta"]
    return [torch.device(name) for name in names]


def _about(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} is {torch.cuda.get_device_name(device)}"
    if device.type == "meta":
        return (
            "meta: nothing is computed there, so its times are those of the host alone. Torch "
            "works out shapes in Python there, which takes longer than to launch a kernel."
        )
    lacking = "" if torch.cuda.is_available() else " There is no CUDA device: no GPU was measured."
    return f"{device}: the host computes too, so no dispatch hides behind a kernel.{lacking}"


def _measure(
    name: str,
    ways: dict[str, Way],
    learn: Learner,
    batches: Batches,
    device: torch.device,
    options: Options,
) -> Found:
    """Time the ways side by side; return a group for every clock.

    Many short passes: on a machine that is not idle, a long one is hardly ever undisturbed.
    More rounds where a step takes long: the ratio that is looked for is nearer to one there.
    """
    seconds = 0.001 if options.quick else 0.02
    batch = seconds_a_batch(ways[HAND], learn, batches, device)
    count = max(2, round(seconds / batch))
    rounds, passes = (31, 5) if count == 2 else (11, 8)
    a_round = passes * len(ways) * (count + UNTIMED) * batch
    rounds = max(7, min(rounds, round(MOST / a_round)))
    variants = {label: timed(way, learn, batches, count, device) for label, way in ways.items()}
    clocks = compare_clocks(
        variants, rounds=options.pick(rounds, 2), passes=options.pick(passes, 1)
    )
    parameters = {
        runner(handlers): {"handlers": handlers, "loop": "Runner", "device": device.type}
        for handlers in COUNTS
        if runner(handlers) in ways
    }
    unit = "us" if seconds / count < 1e-3 else "ms"
    return {
        clock: Group(f"{device}: {name}, a batch{CLOCKS[clock]}", unit, rounds, parameters)
        for clock, rounds in clocks.items()
    }


def _targets(case: Case, group: Group, device: torch.device) -> list[Target]:
    """Hold ten handlers an event against the limit, where the case is one that has a limit."""
    limit = LIMITS.get(case.bound)
    if limit is None or device.type == "meta":
        return []
    return [
        Target(f"{device}: {case.name} ({case.bound}-bound): {runner(10)}, over the {over}",
               group.ratio(runner(10), over).median, limit)
        for over in (HAND, SAME)
    ]  # fmt: skip


def _hidden(groups: Found) -> list[str]:
    """Say how much of what the Runner costs the host did not make the step any longer."""
    if "host" not in groups:
        return []
    parts = []
    for count in COUNTS:
        if runner(count) not in groups["host"].rounds:
            continue
        on_host = groups["host"].difference(runner(count)).median
        in_all = groups["wall"].difference(runner(count)).median
        if on_host > 0:
            share = f"{min(1.0, max(0.0, 1 - in_all / on_host)):.0%}"
        else:
            share = "below the noise"  # the host took no longer: nothing is there to be hidden
        parts.append(f"{runner(count)}: {share}")
    return [
        f"{groups['wall'].title}: share of dispatch hidden behind the kernels: {'; '.join(parts)}"
    ]


def _plain(case: Case, device: torch.device, options: Options) -> Found | Skip:
    try:
        learn, batches = learner(case, device, options.seed)
        return _measure(case.name, ways(), learn, batches, device, options)
    except torch.OutOfMemoryError as error:  # a large case on a small device
        return f"{case.name} left out: {_reason(error)}"


def _compiled(case: Case, device: torch.device, options: Options) -> Found | Skip:
    if options.quick:
        return "torch.compile left out: a quick run does not wait for it"
    if device.type == "meta":
        return "torch.compile left out: there is no code to generate for it"
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "torch.compile left out: it needs a C++ compiler, and there is no g++ or clang++"
    learn, batches = learner(case, device, options.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own
            learn.model = torch.compile(learn.model)
            learn.loss_func(learn.model(batches[0][0]), batches[0][1]).backward()
    except Exception as error:  # whatever the compiler trips over is no fault of a loop's
        return f"torch.compile left out: {_reason(error)}"
    name = f"{case.name}, torch.compile"
    return _measure(name, ways((0, 10)), learn, batches, device, options)


def _captured(case: Case, device: torch.device, options: Options) -> Found | Skip:
    if device.type != "cuda":
        return "the step captured in a CUDA graph left out: it needs a CUDA device"
    learn, batches = learner(case, device, options.seed)
    try:
        step = CapturedStep.on_cuda(learn, batches)
    except Exception as error:  # not every driver and allocator setting can capture
        return f"the step captured in a CUDA graph left out: {_reason(error)}"
    both = ways((0, 10), hand=step.written_loop(), make=lambda: CapturedRunner(step))
    return _measure(f"{case.name}, CUDA graph", both, learn, batches, device, options)


def _reason(error: Exception) -> str:
    """Return the kind of an error and the first line of what it says, if it says anything."""
    said = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *said[:1]])


def _syncs(case: Case, device: torch.device, options: Options) -> Target | Skip:
    learn, batches = learner(case, device, options.seed)
    if device.type == "cuda" and not count_syncs(batches[0][0].sum().item, device):
        return "reads from it left out: torch is not told of one that is made on purpose"
    learn.data = DataBunch(batches)
    run = subscribed(idle_handlers(10))
    count = count_syncs(lambda: run.fit(2, learn), device)
    text = f"{device}: times that a fit with 10 handlers on {len(EVENTS)} events reads from it"
    return Target(text, count, 0, "reads")
