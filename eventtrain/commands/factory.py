"""Getting what the user made from a Python file: a ``Learner`` from a function, say."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import DataError, did_you_mean
from ..learner import Learner


def call_factory(
    path: Path,
    name: str,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    others: Mapping[str, Any],
) -> Learner:
    """Call the function ``name`` in the file ``path``.

    Args:
        path: A Python file.
        name: A function in it that returns a ``Learner``.
        given: What the user asked for; ``None`` for what was left out. It is
            passed on where the function has a parameter of that name.
        defaults: What a parameter gets that was left out and has no default.
        others: Arguments that only this function knows of.

    Raises:
        DataError: There is no such file or function, it takes no such arguments, or it returns
            something else.
    """
    where = f"{path}:{name}"
    function = find_in_file(path, name)
    if not callable(function):
        raise DataError(f"{where} is {_describe(function)}, and no function")
    learn = function(**_arguments(function, where, given, defaults, others))
    if not isinstance(learn, Learner):
        raise DataError(
            f"{where} returned {_describe(learn)}: it must return "
            "eventtrain.Learner(model, opt, loss_func, data)"
        )
    return learn


def split_target(target: str) -> tuple[Path, str] | None:
    """Take ``PATH.py:NAME`` apart; ``None`` where it is of another form."""
    path, colon, name = target.rpartition(":")
    return (Path(path), name) if colon and path.endswith(".py") and name else None


def find_in_file(path: Path, name: str) -> Any:
    """Import the file ``path`` and return what is called ``name`` there.

    Raises:
        DataError: There is no such file or name, or the file cannot be imported.
    """
    module = _load(path)
    try:
        return getattr(module, name)
    except AttributeError:
        known = [n for n, value in vars(module).items() if _is_own(value, module)]
        listed = f" Functions there: {', '.join(known)}." if known else ""
        raise DataError(
            f"{path} has nothing called {name!r}.{did_you_mean(name, known)}{listed}"
        ) from None


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise DataError(f"there is no file {path}: write PATH.py:NAME, with a file that is there")
    # A name of its own, or data.py and torch.py would hide modules of that name.
    name = f"_eventtrain_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As Python does for a script: what lies beside it can be imported.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DataError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _is_own(value: object, module: ModuleType) -> bool:
    return inspect.isfunction(value) and value.__module__ == module.__name__


def _arguments(
    function: Callable[..., object],
    where: str,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    others: Mapping[str, Any],
) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    by_name = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = {
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    known = {*defaults, *others}
    strange = sorted(n for n in required if n not in known or n not in by_name)
    if strange:
        raise DataError(
            f"{where} needs {', '.join(strange)}: give that by --set arguments.{strange[0]}=..., "
            f"in the table [arguments] of CONFIG, or as a default"
        )
    unknown = sorted(n for n in others if n not in by_name)
    if unknown and not takes_any:
        raise DataError(
            f"[arguments]: {where} takes no {unknown[0]}.{did_you_mean(unknown[0], by_name)} "
            f"It takes {', '.join(by_name) or 'nothing'}"
        )
    arguments = dict(others)
    given = {name: value for name, value in given.items() if name not in others}
    for name, value in given.items():
        if name in by_name or takes_any:
            if value is not None:
                arguments[name] = value
            elif name in required:
                arguments[name] = defaults[name]
        elif value is not None and name != "seed":  # torch is seeded in any case
            option = f"--{name.replace('_', '-')}"
            raise DataError(
                f"{where} takes no {name}: give it that parameter, or leave out {option}"
            )
    return arguments


def _describe(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"an object of type {type(value).__name__}"
