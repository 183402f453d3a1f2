"""Mixup: training on weighted means of pairs of samples."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from .shared.mixing import BatchMixing


class Mixup(BatchMixing):
    """Trains on ``lam * xb + (1 - lam) * xb[permutation]``, and mixes the losses likewise.

    ``lam`` is drawn for each batch from ``Beta(alpha, alpha)``. ``run.yb`` stays as it
    is, so metrics compare with the targets of the rows' own share. Inputs of whole
    numbers become floats. See ``BatchMixing`` for where random numbers come from.

    Args:
        alpha: Positive; the smaller, the more often a row stays nearly as it is, or
            becomes nearly another. Default 0.4.
        generator: A CPU generator; by default torch's own.

    Source: Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization (arXiv:1710.09412).
    """

    def __init__(self, alpha: float = 0.4, generator: torch.Generator | None = None) -> None:
        super().__init__(alpha, generator)

    def mix(
        self, xb: Tensor, permutation: Tensor, lam: float, rng: random.Random
    ) -> tuple[Tensor, float]:
        """Return the weighted mean, as a new tensor, and ``lam``."""
        return lam * xb + (1 - lam) * xb[permutation], lam
