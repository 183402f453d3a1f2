"""Who takes part: one function a peer, registered by a decorator."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from .work import Fit, Work

PEERS: dict[str, Peer] = {}
"""Every peer by its name, in the order in which the adapters' files are named."""


@dataclass(frozen=True)
class Peer:
    """A training framework, and how to train with it.

    Attributes:
        name: What the tables call it.
        package: Its distribution, as ``pip install`` takes it.
        hooks: Those of our six per-batch events for which it has a hook: theirs by ours.
        prepare: Makes everything ready and returns the fit, which is called once.
    """

    name: str
    package: str
    hooks: Mapping[str, str]
    prepare: Callable[[Work], Fit]

    @property
    def variable(self) -> str:
        """Name of the environment variable that names another interpreter for it."""
        return f"EVENTTRAIN_BENCH_PYTHON_{re.sub('[^A-Z0-9]+', '_', self.name.upper())}"

    @property
    def version(self) -> str | None:
        """Version of its distribution, or of a module that just lies on the path."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            if find_spec(self.package.replace("-", "_")) is None:
                return None
            return str(importlib.import_module(self.package.replace("-", "_")).__version__)

    @property
    def missing(self) -> str:
        """Why it is skipped where it has no version."""
        return f"{self.package} is not installed"


def peer(
    name: str, *, package: str, hooks: Mapping[str, str]
) -> Callable[[Callable[[Work], Fit]], Callable[[Work], Fit]]:
    """Register the decorated function as the ``prepare`` of a ``Peer``; the rest as there."""

    def register(prepare: Callable[[Work], Fit]) -> Callable[[Work], Fit]:
        if name in PEERS:
            raise ValueError(f"two peers are named {name!r}")
        PEERS[name] = Peer(name, package, hooks, prepare)
        return prepare

    return register


def load_adapters() -> dict[str, Peer]:
    """Import every file in ``adapters`` and return the peers."""
    adapters = importlib.import_module(".adapters", __package__)
    for module in pkgutil.iter_modules(adapters.__path__):
        importlib.import_module(f"{adapters.__name__}.{module.name}")
    return PEERS
