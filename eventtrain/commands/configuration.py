"""A run in a file: what ``eventtrain train run.toml`` reads, and writes beside the results.

The top of the file has the options of the command by their names. Tables have what the command line
does not: ``[arguments]`` for the factory, ``[callbacks.NAME]`` and ``[plugins.NAME]``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_file import replace_file
from ..errors import DataError, did_you_mean

if TYPE_CHECKING:
    import click

TABLES = ("arguments", "callbacks", "plugins")
_META = "eventtrain.configuration"
_KINDS = {"integer": "a whole number", "float": "a number", "boolean": "true or false"}
"""What the file must have, by the name of click's type; text for any other."""
_IS: dict[str, Callable[[object], bool]] = {
    "a whole number": lambda value: type(value) is int,
    "a number": lambda value: type(value) in (int, float),
    "true or false": lambda value: type(value) is bool,
    "text": lambda value: type(value) is str,
}
_NOT_IN_A_FILE = ("config", "settings", "help", "plugins", "plugin_settings")


def configurable(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument ``CONFIG`` and the option ``--set``.

    What they say are defaults of its options; ``tables_of`` returns what is no option.
    """
    import click

    def read(context: click.Context, option: click.Parameter, value: str | None) -> None:
        if value is not None:
            _take(context, _read(Path(value)), f"in {value}", is_file=True)

    def take(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> None:
        for text in value:
            _take(context, _parsed(text), f"in --set {text}", is_file=False)

    for option in (
        click.option(
            *("--set", "settings"),
            multiple=True,
            metavar="KEY=VALUE",
            is_eager=True,
            expose_value=False,
            callback=take,
            help="A line of CONFIG, and above it, as in callbacks.EMA.decay=0.99; may be repeated.",
        ),
        click.argument("config", required=False, is_eager=True, expose_value=False, callback=read),
    ):
        command = option(command)
    return command


def tables_of(context: click.Context) -> dict[str, dict[str, Any]]:
    """Return ``arguments``, ``callbacks`` and ``plugins``, each empty where nothing was said."""
    said = _merged(context)
    return {name: said.get(name, {}) for name in TABLES}


def resolved(options: Mapping[str, Any], tables: Mapping[str, Any]) -> str:
    """Return the text of a file that says what these options and tables say.

    Raises:
        DataError: A value is none that TOML has.
    """
    import tomli_w

    content = {**options, **{name: table for name, table in tables.items() if table}}
    try:
        return tomli_w.dumps({key: v for key, v in content.items() if v is not None})
    except TypeError as error:
        raise DataError(
            f"a file of the configuration cannot hold what an option is given: {error}. Numbers, "
            "text, true and false, lists and tables can be told to plugins and callbacks"
        ) from error


def save(out: Path, text: str) -> None:
    """Write ``config.toml``."""
    try:
        replace_file(out / "config.toml", lambda file: file.write(text.encode()))
    except OSError as error:
        raise DataError(f"cannot write {out / 'config.toml'}: {error.strerror or error}") from error


def made_callbacks(tables: Mapping[str, Any]) -> list[Any]:
    """Make the callbacks of ``[callbacks.NAME]``, in the order of the file.

    Raises:
        DataError: There is none of that name, or it does not take these options.
    """
    return [_made(name, options) for name, options in tables["callbacks"].items()]


def _made(name: str, options: Any) -> Any:
    from .. import callbacks
    from ..callback import Callback
    from ..plugins import unknown_options
    from .factory import find_in_file, split_target

    target = split_target(name)
    if target is not None:
        kind = find_in_file(*target)
    elif name in dir(callbacks):
        kind = getattr(callbacks, name)
    else:
        raise DataError(
            f"[callbacks.{name}]: eventtrain.callbacks has no {name}."
            f'{did_you_mean(name, dir(callbacks))} One of your own is [callbacks."PATH.py:NAME"]'
        )
    if not isinstance(options, dict):
        raise DataError(f"callbacks.{name} must be a table of options, got {options!r}")
    unknown, takes = unknown_options(kind, options)
    if unknown:
        raise DataError(
            f"[callbacks.{name}] takes no {unknown[0]}.{did_you_mean(unknown[0], takes)} It takes "
            f"{', '.join(takes) or 'nothing'}"
        )
    try:
        made = kind(**options)
    except (TypeError, ValueError) as error:
        raise DataError(f"[callbacks.{name}]: {error}") from error
    if not isinstance(made, Callback):
        raise DataError(f"[callbacks.{name}] makes {made!r}, which is no callback")
    return made


def _read(path: Path) -> dict[str, Any]:
    import click

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror or error}."
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason = f"{path} is no TOML: {error}."
    raise click.BadParameter(reason, param_hint="'CONFIG'")


def _parsed(text: str) -> dict[str, Any]:
    """Take one ``KEY=VALUE``; a value that is none in TOML is text as it stands."""
    import click

    key, equals, value = text.partition("=")
    for line in (f"{key} = {value}", f"{key} = {_quoted(value)}"):
        try:
            if equals and "\n" not in text:
                return tomllib.loads(line)
        except tomllib.TOMLDecodeError:
            continue
    raise click.BadParameter(
        f"{text!r} is not of the form KEY=VALUE, as in epochs=10 or callbacks.EMA.decay=0.99.",
        param_hint="'--set'",
    )


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _take(context: click.Context, said: dict[str, Any], where: str, *, is_file: bool) -> None:
    """Keep what was said, and make defaults of what is an option."""
    said = {key if key in TABLES else key.replace("-", "_"): v for key, v in said.items()}
    _check_names(context, said, where)
    _check_values(context, said, where)
    layers: dict[bool, dict[str, Any]] = context.meta.setdefault(_META, {})
    layers[is_file] = _over(layers.get(is_file, {}), said)
    options = {key: value for key, value in _merged(context).items() if key not in TABLES}
    context.default_map = options


def _merged(context: click.Context) -> dict[str, Any]:
    layers = context.meta.get(_META, {})
    return _over(layers.get(True, {}), layers.get(False, {}))


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return what both say; ``above`` where both say something of one key."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        is_both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _over(old, value) if is_both else value  # type: ignore[arg-type]
    return merged


def _check_values(context: click.Context, said: Mapping[str, Any], where: str) -> None:
    """Have each option look at its value here, where it can be said where that stands."""
    import click

    for option in context.command.params:
        key = option.name
        if key not in said or key in TABLES:
            continue
        kind, value = option.type, said[key]
        expected = _KINDS.get(kind.name.partition(" ")[0], "text")
        if not _IS[expected](value):  # what click would round, or make text of
            raise click.UsageError(f"{where}: {key} must be {expected}, got {value!r}.")
        try:
            option.type_cast_value(context, value)
        except click.BadParameter as error:
            error.param_hint = f"{key!r} {where}"
            raise


def _check_names(context: click.Context, said: Mapping[str, Any], where: str) -> None:
    import click

    names = [str(each.name) for each in context.command.params]
    known = [name for name in names if name not in _NOT_IN_A_FILE]
    for key, value in said.items():
        if key in TABLES and not isinstance(value, dict):
            raise click.UsageError(f"{where}: {key} is a table, got {value!r}.")
        if key not in TABLES and key not in known:
            listed = ", ".join(sorted([*known, *TABLES]))
            raise click.UsageError(
                f"{where}: nothing is called {key!r}.{did_you_mean(key, [*known, *TABLES])} "
                f"There are {listed}."
            )
