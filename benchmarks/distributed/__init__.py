"""What does training on two processes cost, beside DDP by hand and other frameworks?

All processes are started by torchrun, on this machine, and gloo carries. What a batch asks of other
ranks and of the device is counted; times are compared within the same processes.
"""

from __future__ import annotations

import os
from typing import Any

from torch import distributed as dist

from ..measure import Group, Options, Suite, Target
from ..peers.groups import Pair, PairedGroup
from .counts import COLLECTIVES, READINGS, STORE, bytecodes_per_batch
from .frameworks import FRAMEWORKS
from .leaving import BY_HAND, HANDLER, THREAD
from .loops import FLAG, HAND, OURS, by_runner_alone, plain
from .ranks import Told, interpreter_of, start
from .saving import TORCH_SAVE, Large, blocking
from .work import TINY
from .worker import US

LIMIT_BYTECODES = {"to agree": 320, "for being one of several": 700}  # 279 and 606 on Python 3.11


def run(options: Options) -> Suite:
    """Measure eventtrain on two processes, and every framework that is installed."""
    if not (os.name == "posix" and dist.is_available() and dist.is_gloo_available()):
        return Suite(notes=["left out: it needs torch with gloo, on POSIX"])
    ours = start(US, options)
    if ours.problem:
        raise RuntimeError(f"the ranks of eventtrain have failed: {ours.problem}")
    others: dict[str, Told] = {}
    missing = []
    for who, (peer, _) in FRAMEWORKS.items():
        python = interpreter_of(peer)
        if python is None:
            missing.append(f"{peer.name}: not installed ({peer.package})")
        else:
            others[who] = start(who, options, python)
    suite = _suite(ours.found, {who: told.found for who, told in others.items() if told.found})
    _add_checkpoints(suite, ours.found, options)
    _add_bytecodes(suite, ours.found, options)
    suite.notes += [
        f"{FRAMEWORKS[who][0].name}: {told.problem}" for who, told in others.items() if told.problem
    ]
    suite.notes += missing
    return suite


def _suite(ours: dict[str, Any], others: dict[str, dict[str, Any]]) -> Suite:
    """Return step times, counts and the way out."""
    suite = Suite([_steps(case, ours, others) for case in ours["seconds"]])
    for group in suite.groups:
        ratio = group.ratio(OURS).median
        suite.targets.append(Target(f"{OURS} over a {HAND}, {group.title}", ratio, 1.1))
    rounds = ours["leaving"]
    group = Group("from a request to the last rank out of its loop", "ms", rounds)
    suite.groups.append(group)
    worst = max(group.time(name).max for name in (HANDLER, THREAD)) / 1000
    suite.targets.append(Target("from a request to leaving, at worst", worst, 1.0, "s"))
    own, hand = ours["counts"][OURS], ours["counts"][HAND]
    for kind, more in ((STORE, own[STORE]), (COLLECTIVES, own[COLLECTIVES] - hand[COLLECTIVES]),
                       (READINGS, own[READINGS] - hand[READINGS])):  # fmt: skip
        text = f"{kind} a batch, beyond those of the {HAND}"
        suite.targets.append(Target(text, more, 0, "a batch"))
    for found in (ours, *others.values()):
        suite.notes += [
            f"{name}, a batch: " + ", ".join(f"{value:g} {kind}" for kind, value in row.items())
            for name, row in found["counts"].items()
            if found is ours or name != HAND
        ]
    suite.notes.append(
        f"{BY_HAND}: the ranks ask each other in each batch, so it leaves sooner, and each batch "
        f"pays for that, as the row of the {FLAG} says"
    )
    return suite


def _steps(case: str, ours: dict[str, Any], others: dict[str, dict[str, Any]]) -> PairedGroup:
    """Return the seconds of a batch by each, beside the loop by hand in the same processes."""
    pairs: dict[str, Pair] = {}
    for found in (ours, *others.values()):
        rounds = found["seconds"][case]
        pairs |= {name: Pair(rounds[HAND], each) for name, each in rounds.items() if name != HAND}
    beside = {name: pair.by_hand for name, pair in pairs.items()}
    return PairedGroup(
        f"{case}, 2 processes, a batch",
        "us",
        {HAND: ours["seconds"][case][HAND], **{name: pair.by_peer for name, pair in pairs.items()}},
        beside=beside,
    )


def _add_checkpoints(suite: Suite, ours: dict[str, Any], options: Options) -> None:
    """Add for how long a batch stands still that saves, on two processes and on one."""
    width = options.pick(2048, 16)
    alone = blocking(width, options.seed, options.pick(5, 1))
    together = ours["blocking"]["seconds"], ours["blocking"]["notes"]
    size = f"{Large(width, options.seed).megabytes:.3g} MB"
    for where, (seconds, notes) in (("2 processes", together), ("one process", alone)):
        suite.notes += [f"{where}: {note}" for note in notes]
        if TORCH_SAVE in seconds:
            title = f"how long a checkpoint of {size} holds the loop, {where}"
            suite.groups.append(Group(title, "ms", seconds))


def _add_bytecodes(suite: Suite, ours: dict[str, Any], options: Options) -> None:
    """Add what the ``Runner`` executes for others, DDP's own code taken off."""
    batches = TINY.batches(options.seed, 0)
    alone, hand = (
        bytecodes_per_batch(way, TINY, batches, options.seed) for way in (by_runner_alone, plain)
    )
    found = ours["bytecodes"]
    more = (found[OURS] - found[HAND]) - (alone - hand)
    for (what, limit), value in zip(LIMIT_BYTECODES.items(), (ours["agreeing"], more), strict=True):
        suite.targets.append(Target(f"bytecodes a batch {what}", value, limit, "a batch"))
    suite.notes.append(
        f"bytecode instructions a batch: {HAND}: {found[HAND]:g}; {OURS}: {found[OURS]:g}; in one "
        f"process, hand-written loop: {hand:g}; Runner: {alone:g}"
    )
