"""The options that say which plugins take part, shared by commands that make a run."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..runner import Runner


def plugin_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--plugin``, ``--plugin-option`` and ``--plugin-errors``."""
    import click

    for option in (
        click.option(
            "--plugin-errors",
            type=click.Choice(["raise", "warn", "disable"]),
            help="What to do when a plugin's handler fails; disable goes on without it.",
        ),
        click.option(
            "--plugin-option",
            "plugin_settings",
            multiple=True,
            metavar="NAME.KEY=VALUE",
            help="An option for a plugin, as in prometheus.every=10; may be repeated.",
        ),
        click.option(
            "--plugin",
            "plugins",
            multiple=True,
            metavar="NAME",
            help="Load this plugin, or all; may be repeated. `eventtrain plugins` lists them.",
        ),
    ):
        command = option(command)
    return command


def make_runner(
    callbacks: Sequence[Any],
    *,
    plugins: Sequence[str],
    plugin_settings: Sequence[str],
    plugin_errors: Any,
    **options: Any,
) -> Runner:
    """Make a runner with the plugins that the command line asks for.

    Raises:
        click.UsageError: A setting is malformed, or for a plugin that is not asked for.
        PluginError: A plugin could not be loaded.
    """
    from ..runner import Runner

    return Runner(
        callbacks,
        plugins=requested({}, plugins, plugin_settings),
        plugin_errors=plugin_errors,
        **options,
    )


def requested(
    tables: Mapping[str, Any],
    plugins: Sequence[str],
    plugin_settings: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Return the plugins to load, each with its options; those of the command line are above.

    Args:
        tables: Options by the name of the plugin, from a file.
        plugins: Names that the command line gives.
        plugin_settings: Options that it gives, ``NAME.KEY=VALUE``.

    Raises:
        click.UsageError: A setting is malformed, or for a plugin that is not asked for.
    """
    import click

    strange = [name for name, options in tables.items() if not isinstance(options, dict)]
    if strange:
        raise click.UsageError(f"plugins.{strange[0]} must be a table of options: it may be empty.")
    asked = {name: dict(options) for name, options in tables.items()}
    for name in plugins:
        asked.setdefault(name, {})
    for text in plugin_settings:
        target, equals, value = text.partition("=")
        name, dot, key = target.rpartition(".")
        if not (equals and dot and name and key.isidentifier()):
            raise click.BadParameter(
                f"{text!r} is not of the form NAME.KEY=VALUE, as in prometheus.every=10.",
                param_hint="'--plugin-option'",
            )
        if name not in asked:
            raise click.BadParameter(
                f"{text!r} is for a plugin that is not loaded: add --plugin {name}.",
                param_hint="'--plugin-option'",
            )
        asked[name][key] = _value(value)
    return asked


def _value(text: str) -> Any:
    """Return a Python literal, or the text as it is where it is none: a path, a word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
