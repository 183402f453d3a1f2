"""What was measured, as groups and targets of a suite."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..measure import UNITS, Group, Spread, Target
from .registry import Peer

HAND_WRITTEN = "hand-written loop"
OURS = "eventtrain"


@dataclass
class Pair:
    """Seconds a batch, one value a round, of two fits that took turns in one process."""

    by_hand: list[float] = field(default_factory=list)
    by_peer: list[float] = field(default_factory=list)


@dataclass
class PairedGroup(Group):
    """A group whose variants ran in processes of their own, a baseline beside each.

    A variant is compared with the baseline of its own process and round. The row
    of the baseline is the median of all processes in each round.

    Attributes:
        beside: For each variant the seconds of the baseline in its process.
    """

    beside: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self, name: str, to: str | None = None) -> Spread:
        """Return the variant over ``to`` (the baseline of its process), round by round."""
        return Spread.of([a / b for a, b in self._beside(name, to)])

    def difference(self, name: str, to: str | None = None) -> Spread:
        """Return the variant minus ``to`` (the baseline of its process), in ``unit``."""
        return Spread.of([(a - b) / UNITS[self.unit] for a, b in self._beside(name, to)])

    def _beside(self, name: str, to: str | None) -> list[tuple[float, float]]:
        other = self.rounds[to] if to else self.beside.get(name, self.rounds[name])
        return list(zip(self.rounds[name], other, strict=True))


def overheads(
    title: str, pairs: Mapping[str, Pair], parameters: Mapping[str, dict[str, Any]] | None = None
) -> PairedGroup:
    """Return what a batch costs with each peer, beside the hand-written loop."""
    each_round = zip(*(pair.by_hand for pair in pairs.values()), strict=True)
    rounds = {HAND_WRITTEN: [statistics.median(values) for values in each_round]}
    rounds |= {name: pair.by_peer for name, pair in pairs.items()}
    beside = {name: pair.by_hand for name, pair in pairs.items()}
    return PairedGroup(title, "us", rounds, dict(parameters or {}), beside=beside)


def baselines(pairs: Mapping[str, Pair]) -> Group:
    """Return what the hand-written loop costs in the process of each peer."""
    title = "the hand-written loop, in the process of each, a batch"
    return Group(title, "us", {name: pair.by_hand for name, pair in pairs.items()})


def labels(peers: Sequence[Peer], handlers: int) -> dict[str, str]:
    """Return the row of each peer; with handlers it says on how many hooks they are."""
    if not handlers:
        return {peer.name: peer.name for peer in peers}
    return {
        peer.name: f"{peer.name}, {len(peer.hooks)} hook{'s' * (len(peer.hooks) != 1)}"
        for peer in peers
    }


def least_overhead(case: str, group: Group, ours: str) -> Target | None:
    """Hold our overhead against the smallest of the peers', where there is one."""
    medians = {
        name: group.difference(name).median for name in group.rounds if name != group.baseline
    }
    own = medians.pop(ours, None)
    if own is None or not medians:
        return None
    text = f"{case}: eventtrain's overhead a batch, less the smallest of the peers'"
    return Target(text, own - min(medians.values()), 0.0, "us")
