"""What does a batch cost in eventtrain beside other training frameworks?

Every framework is optional, and has a process of its own, in which it first shows
that it trains as the hand-written loop does. See README.md in this folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..measure import Options, Suite, Target
from .groups import OURS, Pair, baselines, labels, least_overhead, overheads
from .process import Process
from .registry import Peer, load_adapters
from .work import BY_HAND, BY_PEER

COUNTS = {0: "no handlers", 10: "10 idle handlers on every hook"}
"""How many handlers listen on every hook, and how the tables say it."""


def run(options: Options) -> Suite:
    """Measure eventtrain and every peer that is installed."""
    peers = load_adapters()
    ordered = [peers[OURS], *(peer for name, peer in peers.items() if name != OURS)]
    processes = [Process(peer, options.seed, tuple(COUNTS)) for peer in ordered]
    try:
        said = {process.peer.name: process.answer() for process in processes}
        pairs = _rounds(processes, options)
    finally:
        for process in processes:
            process.close()
    measured = [process.peer for process in processes if process.problem is None]
    suite = _suite(measured, pairs, said)
    installed = [process for process in processes if not process.skipped]
    text = "of the frameworks installed, those that trained as the hand-written loop does"
    share = len(measured) / max(1, len(installed))
    suite.targets.append(Target(text, share, 1.0, at_least=True))
    suite.notes += [_note(process, said[process.peer.name]) for process in processes]
    return suite


def _rounds(processes: Sequence[Process], options: Options) -> dict[int, dict[str, Pair]]:
    """Time everybody in turns, the first round for nothing."""
    pairs = {count: {process.peer.name: Pair() for process in processes} for count in COUNTS}
    lengths = (options.pick(50, 10), options.pick(550, 60))
    for number in range(-1, options.pick(5, 2)):
        turn = number % len(processes)
        for count in COUNTS:
            for process in [*processes[turn:], *processes[:turn]]:
                answer = process.ask(handlers=count, lengths=lengths, passes=options.pick(3, 1))
                if answer is not None and number >= 0:
                    pair = pairs[count][process.peer.name]
                    pair.by_hand.append(answer[BY_HAND])
                    pair.by_peer.append(answer[BY_PEER])
    return pairs


def _suite(
    measured: Sequence[Peer], pairs: dict[int, dict[str, Pair]], said: dict[str, Any]
) -> Suite:
    suite = Suite()
    if not measured:
        return suite
    for count, case in COUNTS.items():
        rows = labels(measured, count)
        group = overheads(
            f"tiny step, {case}, a batch",
            {row: pairs[count][name] for name, row in rows.items()},
            {row: {"version": said[name]["version"]} for name, row in rows.items()},
        )
        suite.groups.append(group)
        if OURS in rows and (target := least_overhead(case, group, rows[OURS])):
            suite.targets.append(target)
    suite.groups.append(baselines({peer.name: pairs[0][peer.name] for peer in measured}))
    return suite


def _note(process: Process, said: dict[str, Any] | None) -> str:
    peer = process.peer
    if said is None or process.problem is not None:
        return f"{peer.name}: {process.problem}"
    weights = "equal bit for bit" if said["exact"] else "close, but not bit for bit"
    return (
        f"{peer.name}: {peer.package} {said['version']}, torch {said['torch']}; "
        f"{said['steps']} steps counted in {said['steps']} batches, final weights {weights} to the "
        f"hand-written loop's; hooks: {', '.join(peer.hooks.values())}"
    )
