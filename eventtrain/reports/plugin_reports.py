"""What the installed plugins are, found out by trying each on a bus of its own."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

from ..bus.event_bus import EventBus
from ..bus.explain import Explanation
from ..callback import Callback
from ..errors import OrderError, PluginError, describe
from ..plugins import (
    Plugin,
    goes_through,
    installed_plugins,
    load_plugin,
    several_offer,
    takes_bus,
)

Status = Literal["ok", "needs options", "needs handlers", "needs a package", "broken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginReport:
    """An installed plugin as it would be in a run.

    Attributes:
        name: What it is asked for by.
        distribution, version: The package that brings it; ``None`` where it does not tell.
        entry_point: What its entry point names, as ``module:object``.
        status: ``"ok"``; ``"needs options"``, without which it cannot be loaded;
            ``"needs handlers"``, when its order refers to handlers of others that a
            run must have; ``"needs a package"``, which an extra of eventtrain brings;
            ``"broken"``.
        reason: What it needs, or why it cannot be loaded; ``None`` when it is ok.
        kind: What the entry point resolves to, in words; ``None`` where it does not.
        options: Its options with their defaults, as they would be written.
        handlers: Its handlers by event, in the order in which they run. Only
            those of plugins that are ok are known.
    """

    name: str
    distribution: str | None
    version: str | None
    entry_point: str
    status: Status
    reason: str | None
    kind: str | None
    options: tuple[str, ...]
    handlers: Explanation

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "options": list(self.options), "handlers": self.handlers.to_dicts()}


def report_plugins() -> list[PluginReport]:
    """Load every installed plugin without options onto a bus that nothing runs on.

    A broken one is reported, not raised, and each is loaded for itself. What
    plugins print meanwhile goes to standard error.
    """
    installed = installed_plugins()
    with redirect_stdout(sys.stderr):
        return [
            _report(plugin, [other for other in installed if other.name == plugin.name])
            for plugin in installed
        ]


def _report(plugin: Plugin, of_that_name: Sequence[Plugin]) -> PluginReport:
    dist, bus = plugin.entry.dist, EventBus()
    status: Status = "broken"
    kind: str | None = None
    options: tuple[str, ...] = ()
    missing: list[str] = []
    try:
        offered = plugin.resolve()
        kind = _kind(offered)
        options, missing = _options(offered)
    except BaseException as error:
        if goes_through(error):
            raise
        reason: str | None = describe(error)
    else:
        status, reason = _try(plugin, bus, missing)
    if len(of_that_name) > 1:
        status, reason = "broken", several_offer(of_that_name)
    return PluginReport(
        name=plugin.name,
        distribution=None if dist is None else dist.name,
        version=None if dist is None else dist.version,
        entry_point=plugin.entry.value,
        status=status,
        reason=reason,
        kind=kind,
        options=options,
        handlers=bus.explain(),
    )


def _try(plugin: Plugin, bus: EventBus, missing: Sequence[str]) -> tuple[Status, str | None]:
    """Load ``plugin``, unless it cannot be loaded without options."""
    if missing:
        given = ", ".join(f"{name!r}: ..." for name in missing)
        return "needs options", f"Runner(plugins={{{plugin.name!r}: {{{given}}}}})"
    try:
        load_plugin(plugin, {}, bus, object(), lambda callbacks: None, None)
    except PluginError as error:
        cause = error.__cause__
        if isinstance(cause, OrderError) and cause.missing is not None:
            return "needs handlers", f"one called {cause.missing!r}, which a run must have"
        if plugin.is_own and isinstance(cause, ModuleNotFoundError):
            return "needs a package", str(cause)
        return "broken", error.reason
    return "ok", None


def _kind(offered: object) -> str | None:
    if isinstance(offered, type) and issubclass(offered, Callback):
        return "Callback class"
    if takes_bus(offered):
        return "register function"
    return "factory" if callable(offered) else None


def _options(offered: Any) -> tuple[tuple[str, ...], list[str]]:
    """Return all options as text, and the names of those without a default."""
    try:
        parameters = list(inspect.signature(offered).parameters.values())
    except (TypeError, ValueError):  # nothing callable, or a builtin that does not tell
        return (), []
    if takes_bus(offered):
        parameters = parameters[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    texts = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in named]
    return tuple(texts), [p.name for p in named if p.default is p.empty]
