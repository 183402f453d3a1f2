"""Plugins: packages that bring handlers, found through entry points and loaded in isolation.

A package names what it offers in the entry-point group ``eventtrain.plugins``.
What an entry resolves to is told apart by one rule:

1. a class derived from ``Callback`` is made into an instance, options as arguments;
2. anything callable whose first parameter is called ``bus`` is called with the bus,
   options as further arguments, and subscribes its handlers itself;
3. anything else callable is a factory: called with the options, it returns a
   callback or several.

Nothing that is installed changes a run unasked: a plugin is loaded when
``Runner(plugins=...)`` or the environment variable ``EVENTTRAIN_PLUGINS`` names
it, unless ``EVENTTRAIN_DISABLE_PLUGINS`` does too.

Source: the group of entry points and the blocking of plugins by name follow pluggy.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from .bus.event_bus import EventBus
from .bus.handlers import OnError
from .bus.receivers import is_async, name_of, why_not_run, why_nothing_ran
from .bus.running import Provider
from .callback import Callback, listify
from .cancellation import Unwind
from .errors import PluginError, describe, did_you_mean

GROUP = "eventtrain.plugins"
API_VERSION = 1
"""A plugin written for one version says so: ``eventtrain_plugin_api = 1``, as an
attribute of what its entry point resolves to, or of the module of that."""

Requested = str | Iterable[str] | Mapping[str, Mapping[str, Any]] | None
"""Names, ``"all"``, or names with the options of each."""

logger = logging.getLogger("eventtrain")


class Plugin:
    """An installed plugin: an entry point and the distribution that brings it."""

    def __init__(self, entry: EntryPoint) -> None:
        self.entry = entry

    def __repr__(self) -> str:
        return f"<Plugin: {self.label}>"

    @property
    def name(self) -> str:
        """The name it is asked for by."""
        return self.entry.name

    @property
    def distribution(self) -> str:
        """Name and version of the package."""
        dist = self.entry.dist
        return "an unknown distribution" if dist is None else f"{dist.name} {dist.version}"

    @property
    def label(self) -> str:
        """What ``explain`` and the notes on exceptions call it."""
        return f"{self.name} of {self.distribution}"

    @property
    def is_own(self) -> bool:
        """Whether eventtrain brings it: ``"all"`` does not mean it, as nobody has installed it."""
        return self.entry.dist is not None and self.entry.dist.name == "eventtrain"

    def error(self, what: str) -> PluginError:
        """Return the error that says that it could not be loaded, and why."""
        dist = self.entry.dist
        return PluginError(
            f"plugin {self.name!r} of {self.distribution} "
            f"(entry point {self.name} = {self.entry.value}) could not be loaded: {what}",
            plugin=self.name,
            distribution=None if dist is None else dist.name,
            version=None if dist is None else dist.version,
            entry_point=self.entry.value,
            reason=what,
        )

    def resolve(self) -> Any:
        """Import what the entry point names.

        Raises:
            RuntimeError: It is written for another version of the plugin API.
            Exception: Whatever importing it raises.
        """
        offered = self.entry.load()
        _check_version(offered)
        return offered


def installed_plugins() -> list[Plugin]:
    """Return every plugin that the installed packages offer, by name; none is imported.

    Those of eventtrain come last.
    """
    plugins = [Plugin(entry) for entry in entry_points(group=GROUP)]
    return sorted(plugins, key=lambda plugin: (plugin.is_own, plugin.name))


def requested_plugins(
    requested: Requested, environ: Mapping[str, str] = os.environ
) -> dict[str, dict[str, Any]]:
    """Return names and options of the plugins to load, what the environment says included.

    Args:
        requested: As given to ``Runner``.
        environ: Where ``EVENTTRAIN_PLUGINS`` and ``EVENTTRAIN_DISABLE_PLUGINS`` are
            read: names separated by commas, or ``all``.

    Raises:
        TypeError: A name is none, or the options of a plugin are no mapping with names as keys.
    """
    if isinstance(requested, str) or requested is None:
        wanted: dict[str, dict[str, Any]] = {name: {} for name in _names(requested or "")}
    elif isinstance(requested, Mapping):
        wanted = {name: _options(name, options) for name, options in requested.items()}
    else:
        wanted = {name: {} for name in requested}
    for name in wanted:
        if not isinstance(name, str):
            raise TypeError(
                f"plugins are asked for by name, got {name!r}: callbacks go first, Runner([...])"
            )
    for name in _names(environ.get("EVENTTRAIN_PLUGINS", "")):
        wanted.setdefault(name, {})
    if "all" in wanted:
        options = wanted.pop("all")
        for plugin in installed_plugins():
            if not plugin.is_own:
                wanted.setdefault(plugin.name, options)
    disabled = _names(environ.get("EVENTTRAIN_DISABLE_PLUGINS", ""))
    for name in list(wanted):
        if name in disabled or "all" in disabled:
            del wanted[name]
            logger.info("plugin %r is disabled by EVENTTRAIN_DISABLE_PLUGINS", name)
    return wanted


def load_plugins(
    requested: Requested,
    bus: EventBus,
    sender: object,
    adopt: Callable[[Sequence[Callback]], None],
    *,
    on_load_error: Literal["raise", "warn"] = "raise",
    on_error: OnError | None = None,
) -> list[Plugin]:
    """Load plugins onto a bus, each whole or not at all.

    Args:
        requested: See ``requested_plugins``.
        bus: Where their handlers go.
        sender: Whose events they get, also those subscribed for any sender.
        adopt: Called with a plugin's callbacks before they count as loaded;
            raises when they cannot be taken.
        on_load_error: ``"raise"``, or ``"warn"`` and go on without that plugin.
        on_error: What happens when one of their handlers fails, in place of
            what the handlers themselves say; ``None`` leaves it to them.

    Returns:
        The plugins that were loaded.

    Raises:
        PluginError: One could not be loaded; the bus is as if it had not been tried.
        ValueError: ``on_load_error`` or ``on_error`` is none of the above.
    """
    if on_load_error not in ("raise", "warn"):
        raise ValueError(f"plugins_on_error must be 'raise' or 'warn', got {on_load_error!r}")
    if on_error not in (None, "raise", "warn", "disable"):
        raise ValueError(f"plugin_errors must be raise, warn or disable, got {on_error!r}")
    wanted = requested_plugins(requested)
    # Looking through all installed packages takes time: not for a run without plugins.
    installed = installed_plugins() if wanted else []
    loaded = []
    for name, options in wanted.items():
        try:
            plugin = _find(name, installed)
            load_plugin(plugin, options, bus, sender, adopt, on_error)
            loaded.append(plugin)
        except PluginError as error:
            if on_load_error == "raise":
                raise
            warnings.warn(str(error), RuntimeWarning, stacklevel=3)  # the Runner's caller
    return loaded


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _options(name: str, options: object) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(
            f"the options of plugin {name!r} must be a mapping such as {{'every': 100}}, "
            f"got {options!r}"
        )
    return dict(options)


def _find(name: str, installed: Sequence[Plugin]) -> Plugin:
    found = [plugin for plugin in installed if plugin.name == name]
    if not found:
        names = [plugin.name for plugin in installed]
        known = ", ".join(map(repr, names)) if names else "none"
        raise PluginError(
            f"no installed package offers a plugin {name!r} (installed: {known})."
            f"{did_you_mean(name, names)}",
            plugin=name,
        )
    if len(found) > 1:
        raise found[0].error(several_offer(found))
    return found[0]


def several_offer(plugins: Sequence[Plugin]) -> str:
    """Say that plugins share a name, and what to do."""
    rivals = " and ".join(plugin.distribution for plugin in plugins)
    return f"{rivals} both offer that name; uninstall one of them"


def load_plugin(
    plugin: Plugin,
    options: dict[str, Any],
    bus: EventBus,
    sender: object,
    adopt: Callable[[Sequence[Callback]], None],
    on_error: OnError | None,
) -> None:
    """Load one plugin onto a bus, whole or not at all; see ``load_plugins``.

    Raises:
        PluginError: It could not be loaded; what went wrong is its ``__cause__``.
    """
    provider = Provider(plugin.label, plugin.entry.module, bus.home, sender, on_error)
    try:
        with bus.transaction():
            provider.run(lambda: _subscribe(plugin, options, bus, sender, adopt))
            bus.home.add(provider)
    except BaseException as error:
        if goes_through(error):
            raise
        # A module may call sys.exit when it is imported, or pytest.skip, or raise of its own.
        raise plugin.error(describe(error)) from error


def goes_through(error: BaseException) -> bool:
    """Whether what a plugin raised is no failure of its own: Ctrl-C, or the end of a run."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup((KeyboardInterrupt, Unwind)) is not None
    return isinstance(error, (KeyboardInterrupt, Unwind))


def _subscribe(
    plugin: Plugin,
    options: dict[str, Any],
    bus: EventBus,
    sender: object,
    adopt: Callable[[Sequence[Callback]], None],
) -> None:
    offered = plugin.resolve()
    is_register = takes_bus(offered)
    # A factory may well yield its callbacks.
    refusal = why_not_run(offered) if is_register or is_async(offered) else None
    if refusal is not None:
        raise TypeError(f"{name_of(offered)} {refusal}")
    if is_register:
        _check_options(offered, options, 1)
        kind = why_nothing_ran(offered(bus, **options))
        if kind is not None:
            raise TypeError(
                f"its {name_of(offered)}(bus) returned {kind}, which nobody runs: subscribe the "
                "handlers in the function itself, and return nothing"
            )
        return
    callbacks = _callbacks(offered, options)
    handlers = [handler for callback in callbacks for handler in callback.handlers(plugin.label)]
    bus.attach(handlers, sender=sender)
    adopt(callbacks)


def _check_version(offered: object) -> None:
    module = sys.modules.get(getattr(offered, "__module__", ""))
    declared = getattr(module, "eventtrain_plugin_api", API_VERSION)
    declared = getattr(offered, "eventtrain_plugin_api", declared)
    if declared != API_VERSION:
        raise RuntimeError(
            f"it is written for plugin API {declared!r}, and this eventtrain has {API_VERSION}; "
            "install versions of the two that fit"
        )


def takes_bus(offered: object) -> bool:
    """Whether it is a function that subscribes its handlers itself."""
    if not callable(offered) or isinstance(offered, type):
        return False
    try:
        parameters = list(inspect.signature(offered).parameters)
    except (TypeError, ValueError):  # a builtin that does not tell
        return False
    return parameters[:1] == ["bus"]


def _check_options(
    offered: Callable[..., object], options: Mapping[str, Any], skip: int = 0
) -> None:
    """Refuse options that ``offered`` does not take, and list those that it does."""
    unknown, takes = unknown_options(offered, options, skip)
    if unknown:
        raise TypeError(
            f"it has no option {unknown[0]!r} (there are: "
            f"{', '.join(map(repr, takes)) or 'none'}).{did_you_mean(unknown[0], takes)}"
        )


def unknown_options(
    offered: Callable[..., object], options: Iterable[str], skip: int = 0
) -> tuple[list[str], list[str]]:
    """Return which options ``offered`` does not take, and those that it does.

    Args:
        offered: What is to be called with the options.
        options: Their names.
        skip: How many of its parameters are no options.
    """
    try:
        parameters = list(inspect.signature(offered).parameters.values())[skip:]
    except (TypeError, ValueError):  # a builtin that does not tell
        return [], []
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return [], []
    takes = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [name for name in options if name not in takes], takes


def _callbacks(offered: Any, options: dict[str, Any]) -> list[Callback]:
    if not callable(offered):
        raise TypeError(
            f"it resolves to {offered!r}, which is neither a Callback class, nor a function "
            "register(bus), nor a factory of callbacks"
        )
    _check_options(offered, options)
    made = offered(**options)
    callbacks = [made] if isinstance(made, Callback) else listify(made)
    if not callbacks or not all(isinstance(callback, Callback) for callback in callbacks):
        raise TypeError(f"its factory returned {made!r}, where a Callback or several were expected")
    return callbacks
