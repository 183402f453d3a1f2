"""Saves memory by computing activations twice instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..callback import Callback
from ..priorities import TRANSFORM
from ..submodules import Choice, choose_submodules

if TYPE_CHECKING:
    from ..runner import Runner


class ActivationCheckpointing(Callback):
    """Wraps the forward pass of chosen modules in ``torch.utils.checkpoint`` during a fit.

    Inside of such a module nothing is kept for the backward pass, which runs
    the module once more instead: less memory for more time. Gradients are the
    same bit for bit. The second run gets the random numbers of the first, for
    dropout, and leaves buffers as they are, so that batch normalization counts
    each batch once. Without gradients (validation) nothing changes.

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
        return nullcontext(), _SparedBuffers(self._module)


class _SparedBuffers:
    """While it is entered, ``module`` works on copies of its buffers; it can be entered again.

    A backward pass over a graph that was retained recomputes once more.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._originals: list[tuple[nn.Module, str, torch.Tensor]] = []

    def __enter__(self) -> None:
        self._originals = [
            (owner, name, buffer)
            for owner in self._module.modules()
            for name, buffer in owner.named_buffers(recurse=False)
        ]
        for owner, name, buffer in self._originals:
            setattr(owner, name, buffer.clone())

    def __exit__(self, *error: object) -> None:
        for owner, name, buffer in self._originals:
            setattr(owner, name, buffer)
        self._originals.clear()
