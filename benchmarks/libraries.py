"""Other libraries that call the subscribers of an event, each as its manual shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import blinker

Functions = Sequence[Callable[[Any], None]]
Call = tuple[str, Any]
"""A statement that emits to the functions, and the object that it calls ``theirs``."""

BLINKER = "blinker.Signal.send"
PLUGGY = "pluggy hook"
PSYGNAL = "psygnal emit"
PSYGNAL_FAST = "psygnal emit_fast"


def calls(functions: Functions) -> tuple[dict[str, Call], list[str]]:
    """Subscribe the functions in every library that is installed.

    Returns:
        By name the calls that emit to them, and a sentence for each library that is missing.
    """
    found: dict[str, Call] = {}
    missing = []
    for make in (_blinker, _pluggy, _psygnal):
        try:
            found.update(make(functions))
        except ModuleNotFoundError as error:
            missing.append(
                f"left out: {error.name}, which is not installed: "
                'pip install "eventtrain[bench]" brings it'
            )
    return found, missing


def _blinker(functions: Functions) -> dict[str, Call]:
    signal = blinker.Signal()
    for function in functions:
        signal.connect(function)
    return {BLINKER: ("theirs.send(run)", signal)}


def _pluggy(functions: Functions) -> dict[str, Call]:
    import pluggy

    class Specification:
        @pluggy.HookspecMarker("benchmarks")
        def after_loss(self, run: Any) -> None:
            """Be an event with one argument."""

    manager = pluggy.PluginManager("benchmarks")
    manager.add_hookspecs(Specification)
    implementation = pluggy.HookimplMarker("benchmarks")
    for function in functions:
        manager.register(SimpleNamespace(after_loss=implementation(function)))
    return {PLUGGY: ("theirs.after_loss(run=run)", manager.hook)}


def _psygnal(functions: Functions) -> dict[str, Call]:
    import psygnal

    class Emitter:
        after_loss = psygnal.Signal(object)

    signal = Emitter().after_loss
    for function in functions:
        signal.connect(function)
    found = {PSYGNAL: ("theirs.emit(run)", signal)}
    if hasattr(signal, "emit_fast"):
        found[PSYGNAL_FAST] = ("theirs.emit_fast(run)", signal)
    return found
