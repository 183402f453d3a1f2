"""``eventtrain bench``: the benchmarks, whose own command line this is."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..launch import found_launch

if TYPE_CHECKING:
    import click

_PACKAGE = "eventtrain.benchmarks"


def make() -> click.Command:
    """Make the command."""
    import click

    # The options are those of ``python -m benchmarks`` and are defined there, help included.
    @click.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def bench(arguments: tuple[str, ...]) -> int:
        """Measure what dispatch costs, beside loops written by hand."""
        if found_launch() is not None:
            raise click.ClickException(
                "benchmarks measure one process: start them without torchrun or srun"
            )
        code: int = _command().main(arguments, program="eventtrain bench")
        return code

    return bench


def _command() -> ModuleType:
    """Import the command line of the benchmarks."""
    import click

    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "benchmarks" / "__init__.py"
    # In a checkout the folder beside the package counts, whatever is installed.
    if not (package / "benchmarks").exists() and (package.parent / "setup.cfg").exists():
        if not beside.exists():
            raise click.ClickException(f"there is no folder {beside.parent}")
        _load(beside)
    try:
        return importlib.import_module(f"{_PACKAGE}.command")
    except ModuleNotFoundError as error:
        if error.name != _PACKAGE:
            raise
        raise click.ClickException(
            "this installation lacks eventtrain.benchmarks: install eventtrain anew"
        ) from error


def _load(file: Path) -> None:
    """Import the package in ``file`` under the name that it has when it is installed."""
    if _PACKAGE in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        _PACKAGE, file, submodule_search_locations=[str(file.parent)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = module
    spec.loader.exec_module(module)
