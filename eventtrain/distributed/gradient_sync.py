"""Whether the backward pass of a batch shares the gradients with the other processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, distributed as dist, nn

from .groups import require_all_ranks


class NoSync:
    """Where there is nobody to share gradients with.

    Attributes:
        is_on: Whether the last batch shared its gradients, as far as ``set`` was called.
    """

    is_on = True

    def set(self, is_on: bool) -> None:
        """Have the next forward and backward passes share their gradients, or keep them."""

    def keeps_apart(self) -> bool:
        """Whether gradients that are not shared are kept elsewhere than in the parameters."""
        return False

    def share(self, parameters: Iterable[Tensor]) -> None:
        """Share gradients that were kept, outside of a backward pass; collective."""


NO_SYNC = NoSync()
"""That of a process that is alone."""


class GradientSync(NoSync):
    """That of a ``DistributedDataParallel`` or ``fully_shard`` module, also inside of another.

    Args:
        model: What is called for the forward pass.
        group: The process group; ``None`` (default) is torch's default one.
    """

    def __init__(self, model: Any, group: Any = None) -> None:
        modules: list[Any] = list(model.modules()) if isinstance(model, nn.Module) else [model]
        self._group = group
        self._replicated = [m for m in modules if hasattr(m, "require_backward_grad_sync")]
        self._sharded = [m for m in modules if hasattr(m, "set_requires_gradient_sync")]

    def set(self, is_on: bool) -> None:
        """See ``NoSync.set``; as ``DistributedDataParallel.no_sync``, across batches."""
        self.is_on = is_on
        for module in self._replicated:
            module.require_backward_grad_sync = is_on
        for module in self._sharded:
            module.set_requires_gradient_sync(is_on)

    def keeps_apart(self) -> bool:
        """See ``NoSync.keeps_apart``: so does ``fully_shard``, as they are whole."""
        return bool(self._sharded)

    def share(self, parameters: Iterable[Tensor]) -> None:
        """See ``NoSync.share``.

        Raises:
            RuntimeError: The model is sharded, and torch shares only in a backward pass.
        """
        if self._sharded:
            raise RuntimeError(
                "the last group of batches has ended before the batch in which its gradients were "
                "to be shared, and fully_shard shares gradients in a backward pass only: leave no "
                "batch of the end of an epoch out, or use GradientAccumulation(1)"
            )
        if not self._replicated:
            return
        require_all_ranks("a sharing of gradients")
        size = dist.get_world_size(self._group)
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad, group=self._group)
                parameter.grad.div_(size)
