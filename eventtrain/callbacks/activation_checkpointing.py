"""Saves memory by computing activations twice instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..callback import Callback
from ..priorities import TRANSFORM
from ..submodules import Choice, choose_submodules

if TYPE_CHECKING:
    from ..runner import Runner

Slot = tuple[nn.Module, str]
"""A module, and the name of a buffer of its own."""


class ActivationCheckpointing(Callback):
    """Wraps the forward pass of chosen modules in ``torch.utils.checkpoint`` during a fit.

    Inside of such a module nothing is kept for the backward pass, which runs
    the module once more instead: less memory for more time. Gradients are the
    same bit for bit. The second run gets the random numbers of the first, for
    dropout, and copies of the buffers as the first found them: batch normalization
    counts each batch once, spectral normalization gives the same weights again.
    Without gradients (validation) nothing changes.

    Args:
        modules: Modules of the model, their names as in ``named_modules()``, or
            ``rule(name, module)`` that is true for those meant. The blocks of a
            deep model are good choices; one inside of another makes it run thrice.

    Raises:
        TypeError, ValueError: When a fit begins: the model has no such part.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
    """

    priority = TRANSFORM

    def __init__(self, modules: Choice) -> None:
        self.modules = modules
        self._wrapped: list[tuple[nn.Module, Any]] = []

    def begin_fit(self, run: Runner) -> None:
        """Wrap the modules."""
        for module in choose_submodules(run.model, self.modules).values():
            own = module.__dict__.get("forward")  # somebody else's wrapper, as a rule none
            self._wrapped.append((module, own))
            module.forward = _Checkpointed(module, module.forward)

    def after_fit(self, run: Runner) -> None:
        """Unwrap them."""
        while self._wrapped:
            module, own = self._wrapped.pop()
            if own is None:
                del module.forward
            else:
                module.forward = own


class _Checkpointed:
    """A module's forward pass that keeps its inputs only."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._module = module
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        # Compiled code recomputes by itself, and cannot take these contexts in.
        options: dict[str, Any] = (
            {} if torch.compiler.is_compiling() else {"context_fn": self._contexts}
        )
        # With the same random numbers (preserve_rng_state), which is the default.
        return checkpoint(self._forward, *args, use_reentrant=False, **options, **kwargs)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        first = _FirstRun(self._module)
        return first, _Rerun(self._module, first)


def _buffers(module: nn.Module) -> Iterator[tuple[Slot, torch.Tensor | None]]:
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            yield (owner, name), buffer


class _FirstRun:
    """Keeps the buffers of ``module`` that are changed while it is entered, as they were before."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.changed: dict[Slot, torch.Tensor | None] = {}

    def __enter__(self) -> None:
        self._before = {
            slot: None if buffer is None else (buffer, buffer._version, buffer.clone())
            for slot, buffer in _buffers(self._module)
        }

    def __exit__(self, *error: object) -> None:
        for (owner, name), before in self._before.items():
            now = owner._buffers.get(name)
            if before is None:
                if now is not None:
                    self.changed[owner, name] = None
            elif now is not before[0] or now._version != before[1]:
                self.changed[owner, name] = before[2]
        del self._before  # the other copies are not needed


class _Rerun:
    """While it is entered, ``module`` works on copies of the buffers that its first run began with.

    It can be entered again: a backward pass over a graph that was retained recomputes once more.
    """

    def __init__(self, module: nn.Module, first: _FirstRun) -> None:
        self._module = module
        self._first = first
        self._originals: dict[Slot, torch.Tensor | None] = {}

    def __enter__(self) -> None:
        self._originals = dict(_buffers(self._module))
        for (owner, name), buffer in self._originals.items():
            began = self._first.changed.get((owner, name), buffer)
            owner._buffers[name] = None if began is None else began.clone()

    def __exit__(self, *error: object) -> None:
        for (owner, name), buffer in self._originals.items():
            owner._buffers[name] = buffer
        self._originals.clear()
