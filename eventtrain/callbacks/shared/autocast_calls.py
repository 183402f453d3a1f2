"""Autocast for every call of a model, whoever makes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class AutocastCalls:
    """Puts the calls of modules under ``torch.autocast`` while it is on.

    A call inside of some autocast is left alone, also where that is one with ``enabled=False``:
    whoever wrote it decides.

    Hooked are a module, its children, and all parts that have parts of their own. (A single
    layer deep inside is hardly called alone, and a hook on each would cost as much as small
    layers do.) Code compiled by ``torch.compile`` has the hooks as nothing, so a module that was
    compiled in place, by ``module.compile()``, is left alone.

    Args:
        dtype: ``torch.bfloat16`` or ``torch.float16``.

    Attributes:
        device_type: Of the device that the modules compute on.
        is_on: Whether calls are put under autocast.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.device_type = "cpu"
        self.is_on = False
        self._roots: tuple[Any, ...] = ()
        self._handles: list[Any] = []
        # Calls that are under way, innermost last; the autocast of those that began one.
        self._open: list[tuple[nn.Module, torch.autocast | None]] = []
        self._closed_by_hook: set[int] = set()

    # A copy of a hooked model is to have its calls under autocast too; one that was pickled
    # is to be left alone by whoever loads it.
    def __deepcopy__(self, memo: dict[int, Any]) -> AutocastCalls:
        return self if self._handles else type(self)(self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.dtype,)

    def context(self) -> torch.autocast:
        """Return autocast for a ``with`` statement."""
        return torch.autocast(self.device_type, self.dtype)

    def follow(self, *roots: Any) -> None:
        """Hook these in place of those before; what is no ``nn.Module`` is left alone."""
        if len(roots) == len(self._roots) and all(map(_is_same, roots, self._roots)):
            return
        self.let_go()
        self._roots = roots
        for module in dict.fromkeys(part for root in roots for part in _parts(root)):
            self._handles.append(module.register_forward_pre_hook(self._enter))

    def let_go(self) -> None:
        """Remove all hooks."""
        handles, self._handles, self._roots = self._handles, [], ()
        self._closed_by_hook.clear()
        for handle in handles:
            handle.remove()

    def close(self) -> None:
        """Leave what calls have left open that ended with no ``Exception``: Ctrl-C, a token."""
        while self._open:
            _, autocast = self._open.pop()
            if autocast is not None:
                autocast.__exit__(None, None, None)

    def _enter(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or not self.is_on:
            return
        nested = torch.autocast_increment_nesting() > 1
        torch.autocast_decrement_nesting()
        if nested:
            # A part that calls itself: the end of the inner call is not that of the outer one.
            if self._open and self._open[-1][0] is module:
                self._open.append((module, None))
            return
        if id(module) not in self._closed_by_hook:
            hook = module.register_forward_hook(self._leave, always_call=True)
            self._handles.append(hook)
            self._closed_by_hook.add(id(module))
        autocast = self.context()
        autocast.__enter__()  # type: ignore[no-untyped-call]
        self._open.append((module, autocast))

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        if self._open and self._open[-1][0] is module:
            _, autocast = self._open.pop()
            if autocast is not None:
                autocast.__exit__(None, None, None)


def _is_same(one: object, other: object) -> bool:
    return one is other


def _parts(root: Any) -> Iterator[nn.Module]:
    if not isinstance(root, nn.Module):
        return
    children = set(root.children())
    for module in root.modules():
        is_outer = module is root or module in children
        # torch.jit takes no hooks from Python.
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if is_outer or next(module.children(), None) is not None:
            yield module
