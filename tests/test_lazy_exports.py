"""Names that a package exports and imports when they are first asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import eventtrain
from eventtrain import callbacks
from eventtrain.lazy_exports import lazy_exports

ROOT = Path(__file__).parents[1]


def loaded_after(program: str) -> set[str]:
    """Modules that are loaded in a new interpreter after ``program``."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{program}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return set(done.stdout.split())


def test_importing_the_package_imports_neither_torch_nor_blinker() -> None:
    assert not {"torch", "blinker"} & loaded_after("import eventtrain")


def test_what_a_plugin_needs_does_not_import_torch() -> None:
    program = "from eventtrain import Callback, EventBus, EventLog, PluginError, handler"
    assert "torch" not in loaded_after(program)


@pytest.mark.parametrize("package", [eventtrain, callbacks])
def test_every_listed_name_is_there(package) -> None:
    assert [name for name in package.__all__ if getattr(package, name, None) is None] == []


def test_submodules_are_attributes_without_having_been_imported() -> None:
    loaded_after("import eventtrain; assert eventtrain.bus.EventBus is eventtrain.EventBus")


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="module 'eventtrain' has no attribute 'Runnner'"):
        _ = eventtrain.Runnner


def test_an_unknown_name_cannot_be_imported() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Runnner'"):
        from eventtrain import Runnner  # noqa: F401


def test_dir_lists_what_has_not_been_imported_yet() -> None:
    loaded_after("import eventtrain; assert 'Runner' in dir(eventtrain)")


def test_a_star_import_brings_all_names() -> None:
    namespace: dict[str, object] = {}
    exec("from eventtrain import *", namespace)
    assert set(eventtrain.__all__) <= set(namespace)


def test_a_name_is_looked_up_once() -> None:
    getattr_, _, _ = lazy_exports("eventtrain")
    vars(eventtrain).pop("EVENTS", None)
    assert getattr_("EVENTS") is vars(eventtrain)["EVENTS"]
