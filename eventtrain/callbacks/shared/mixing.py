"""Mixing the rows of a batch with each other, and their losses in the same proportion."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...callback import Callback, handler
from ...priorities import AFTER_EVERYONE, BEFORE_EVERYONE, TRANSFORM

if TYPE_CHECKING:
    from ...runner import Runner


class BatchMixing(Callback, ABC):
    """Base of the callbacks that mix each training batch with a permutation of itself.

    The loss becomes ``lam * loss(pred, yb) + (1 - lam) * loss(pred, yb[permutation])``, whatever
    its reduction. ``run.yb`` stays as it is, and so does ``learn.loss_func`` but for the
    one line that computes the loss. Validation and prediction are left alone.

    One whole number a batch is drawn on the host, from ``generator``; all else of the batch
    follows from it: the share from a generator of Python's, the permutation from one on the
    batch's device. So nothing waits for the device, and the state of the one generator
    is all that a resumed run needs.

    On several processes each mixes the rows of its share among themselves, by draws of its own.

    Where a runner has several callbacks of this kind, one of them, chosen at random, mixes
    each batch: the targets of one could not follow the mixing of another.

    Args:
        alpha: Both parameters of the Beta distribution that shares are drawn from; positive.
        generator: A CPU generator; by default torch's own.

    Attributes:
        lam: The share that a row keeps of itself, of the last batch that was mixed.
        permutation: Which row each was mixed with, int64 [batch], on the batch's device.

    Raises:
        TypeError: ``generator`` is no torch generator. In training: inputs or targets
            are not one tensor each.
        ValueError: ``alpha`` is not positive and finite, or ``generator`` is not on the CPU. In
            training: there are not as many targets as inputs.

    Source: that one of several mixes a batch, chosen at random, is how timm combines them.
    """

    priority = TRANSFORM
    counts_within_batch = True

    def __init__(self, alpha: float, generator: torch.Generator | None = None) -> None:
        is_number = isinstance(alpha, Real) and not isinstance(alpha, bool)
        if not (is_number and 0 < alpha < math.inf):
            raise ValueError(f"alpha must be a positive number, got {alpha!r}")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(
                f"generator must be on the CPU, got one on {generator.device}: shares are "
                "drawn on the host, so that nothing waits for the device"
            )
        self.alpha = alpha
        self.generator = generator
        self.lam = 1.0
        self.permutation: Tensor | None = None
        self._is_mixing = False
        self._turn: tuple[int, BatchMixing] | None = None
        self._original: Callable[..., Any] | None = None
        self._mixed: Callable[..., Any] | None = None

    @abstractmethod
    def mix(self, xb: Tensor, permutation: Tensor, lam: float, rng: random.Random) -> Any:
        """Return the mixed inputs, as a new tensor, and the share that rows keep in fact."""

    def begin_fit(self, run: Runner) -> None:
        """Start over."""
        if run.loss_func is None:
            raise TypeError(
                f"{type(self).__name__} has the loss computed for two targets each, and the model "
                "computes its own loss (loss_func=None): give the Learner a loss_func(pred, yb)"
            )
        self._turn = None

    @handler(during="train")
    def begin_batch(self, run: Runner) -> None:
        """Mix the inputs, if it is this callback's turn."""
        self._is_mixing = self._whose_turn(run) is self
        if not self._is_mixing:
            return
        for part, name in ((run.xb, "inputs"), (run.yb, "targets")):
            if not isinstance(part, Tensor) or part.ndim == 0:
                raise TypeError(
                    f"{type(self).__name__} needs {name} that are one tensor with a row for each "
                    f"sample, got {type(part).__name__}"
                )
        if len(run.xb) != len(run.yb):
            raise ValueError(
                f"{type(self).__name__} mixes rows of inputs and targets alike, and there are "
                f"{len(run.xb)} of inputs and {len(run.yb)} of targets: the first dimension of "
                "both must be that of the samples"
            )
        # Generators that are in one state on all processes are to mix each share otherwise.
        seed = self._draw() + run.world.rank
        rng = random.Random(seed)
        device = run.xb.device
        generator = torch.Generator(device).manual_seed(seed)
        self.permutation = torch.randperm(len(run.xb), generator=generator, device=device)
        run.xb, self.lam = self.mix(
            run.xb, self.permutation, rng.betavariate(self.alpha, self.alpha), rng
        )

    # Everybody else is to see the learner's own loss function.
    @handler(priority=AFTER_EVERYONE, during="train")
    def after_pred(self, run: Runner) -> None:
        """Put the mixed loss in place."""
        if not self._is_mixing:
            return
        assert run.learn is not None and self.permutation is not None
        original, permutation, lam = run.learn.loss_func, self.permutation, self.lam
        assert original is not None

        def mixed_loss(pred: Any, yb: Tensor) -> Any:
            own, other = original(pred, yb), original(pred, yb[permutation])
            if not isinstance(own, Mapping):
                return lam * own + (1 - lam) * other
            return {name: lam * own[name] + (1 - lam) * other[name] for name in own}

        self._original, self._mixed = original, mixed_loss
        run.learn.loss_func = mixed_loss

    @handler(["after_loss", "after_batch"], priority=BEFORE_EVERYONE)
    def put_back(self, run: Runner) -> None:
        """Put the learner's loss function back."""
        if self._mixed is None:
            return
        assert run.learn is not None and self._original is not None
        if run.learn.loss_func is self._mixed:
            run.learn.loss_func = self._original
        self._original = self._mixed = None

    def _whose_turn(self, run: Runner) -> BatchMixing:
        """Return who mixes this batch; whoever asks first has it drawn."""
        mixers = [callback for callback in run.cbs if isinstance(callback, BatchMixing)]
        if len(mixers) == 1:
            return self
        mixers.sort(key=lambda callback: callback.name)  # whatever the order of construction
        first = mixers[0]
        if first._turn is None or first._turn[0] != run.n_iter:
            first._turn = run.n_iter, mixers[first._draw() % len(mixers)]
        return first._turn[1]

    def _draw(self) -> int:
        """Draw a whole number from the generator, without reading it from a tensor."""
        number = array("q", [0])
        torch.frombuffer(number, dtype=torch.int64).random_(generator=self.generator)
        return number[0]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator, if it is not torch's own."""
        return {} if self.generator is None else {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned.

        Raises:
            ValueError: It holds the state of a generator, and there is none, or the reverse.
        """
        if ("generator" in state) != (self.generator is not None):
            raise ValueError(
                f"{type(self).__name__} was saved with{'' if state else 'out'} a generator of its "
                f"own: make it with{'' if state else 'out'} one to resume"
            )
        if self.generator is not None:
            self.generator.set_state(state["generator"].cpu())
