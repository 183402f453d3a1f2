"""Did a peer really train: its steps, its weights, its handlers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from .work import Work

RTOL, ATOL = 1e-5, 1e-6


class NotTrainedError(Exception):
    """A peer did something else than the loop written by hand."""


class Steps:
    """The number of steps that torch's optimizers have done."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *_: object) -> None:
        """Count one; the signature is that of a step hook."""
        self.count += 1

    def check(self, expected: int) -> None:
        """Raise ``NotTrainedError`` when there were more or fewer."""
        if self.count != expected:
            raise NotTrainedError(f"{self.count} optimizer steps in place of {expected}")


@contextmanager
def count_steps() -> Iterator[Steps]:
    """Count the steps of every optimizer in this process."""
    steps = Steps()
    handle = register_optimizer_step_post_hook(steps)
    try:
        yield steps
    finally:
        handle.remove()


def check_weights(model: nn.Module, expected: nn.Module) -> bool:
    """Return whether the weights are equal bit for bit.

    Raises:
        NotTrainedError: They are not even close.
    """
    own, wanted = (
        nn.utils.parameters_to_vector(each.parameters()).detach() for each in (model, expected)
    )
    if not torch.allclose(own, wanted, rtol=RTOL, atol=ATOL):
        off = (own - wanted).abs().max().item()
        raise NotTrainedError(f"the final weights are off by up to {off:.3g}")
    return torch.equal(own, wanted)


def check_handlers(work: Work, hooks: Iterable[str]) -> None:
    """Raise ``NotTrainedError`` unless every handler ran once a batch."""
    expected = work.handlers * len(work.batches)
    for hook in hooks:
        count = 0 if work.calls is None else work.calls[hook]
        if count != expected:
            raise NotTrainedError(f"{count} calls of handlers at {hook} in place of {expected}")
