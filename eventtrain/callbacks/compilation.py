"""Compiles the model for the fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..callback import Callback, handler
from ..priorities import AFTER_EVERYONE, BEFORE_EVERYONE

if TYPE_CHECKING:
    from ..runner import Runner


class Compile(Callback):
    """Compiles ``run.model`` in place with ``torch.compile`` while a fit lasts.

    The model stays the object it is, with the parameters and the ``state_dict``
    keys it has: it gets a compiled ``forward`` of its own in ``begin_fit``, after
    everyone else has prepared the model, and loses it first of all in ``after_fit``.
    A model that was compiled already is left alone.

    ``model.compile()`` is not used: it has no counterpart that undoes it, and it
    silently compiles nothing where the model is a class of torch's own with only
    such classes in it, an ``nn.Sequential`` of ``nn.Linear`` say. Hooks on the model
    itself run outside of the compiled code.

    What has been compiled stays in torch's cache, so a second fit finds it
    there; ``torch.compiler.reset()`` empties that.

    Args:
        **options: Those of ``torch.compile``: ``mode``, ``backend``, ``dynamic``,
            ``fullgraph``, ...

    Raises:
        TypeError: When a fit begins: the model is no ``nn.Module``.
    """

    held_in_run = ("_compiled",)

    def __init__(self, **options: Any) -> None:
        self.options = options
        self._compiled: nn.Module | None = None
        self._own_forward: Any = None

    @handler(priority=AFTER_EVERYONE)
    def begin_fit(self, run: Runner) -> None:
        """Compile the model; the work is done when it is called first."""
        model = run.model
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"Compile needs a model that is an nn.Module, got {type(model).__name__}; "
                "wrap a plain function in torch.compile yourself"
            )
        if _is_compiled(model):
            return
        self._own_forward = vars(model).get("forward")  # somebody's wrapper, as a rule none
        model.forward = torch.compile(model.forward, **self.options)
        self._compiled = model

    @handler(priority=BEFORE_EVERYONE)
    def after_fit(self, run: Runner) -> None:
        """Have the model run uncompiled again."""
        model, self._compiled = self._compiled, None
        if model is None:
            return
        if self._own_forward is None:
            del model.forward
        else:
            model.forward, self._own_forward = self._own_forward, None


def _is_compiled(model: nn.Module) -> bool:
    # By model.compile(), or by torch.compile(model).
    return getattr(model, "_compiled_call_impl", None) is not None or hasattr(model, "_orig_mod")
