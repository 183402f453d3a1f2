"""CutMix: training on images with a box from another image."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from .shared.mixing import BatchMixing


class CutMix(BatchMixing):
    """Replaces a box in each training image by that of another, and mixes the losses by area.

    A share ``lam`` is drawn for each batch from ``Beta(alpha, alpha)``; the box has sides of
    ``sqrt(1 - lam)`` of the image's, its middle lies anywhere in the image, and what would stick
    out is cut off. The losses are mixed by the part of the image that stayed.
    All images of a batch have their box in the same place. ``run.yb`` stays as it is, so metrics
    compare with the targets of the rows' own share.

    Inputs are of shape [batch, ..., height, width] and any dtype. See ``BatchMixing`` for
    where random numbers come from.

    Args:
        alpha: Positive; 1, the default, makes all shares equally likely.
        generator: A CPU generator; by default torch's own.

    Raises:
        ValueError: In training: the inputs have fewer than three dimensions.

    Source: Yun et al. 2019, CutMix (arXiv:1905.04899).
    """

    def __init__(self, alpha: float = 1.0, generator: torch.Generator | None = None) -> None:
        super().__init__(alpha, generator)

    def mix(
        self, xb: Tensor, permutation: Tensor, lam: float, rng: random.Random
    ) -> tuple[Tensor, float]:
        """Return the images with their boxes, as a new tensor, and the share that stayed."""
        if xb.ndim < 3:
            raise ValueError(
                f"CutMix needs images of shape [batch, ..., height, width], got {list(xb.shape)}"
            )
        height, width = xb.shape[-2:]
        side = math.sqrt(1 - lam)
        top, bottom = _edges(height, side, rng)
        left, right = _edges(width, side, rng)
        mixed = xb.clone()
        mixed[..., top:bottom, left:right] = xb[..., top:bottom, left:right][permutation]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _edges(size: int, side: float, rng: random.Random) -> tuple[int, int]:
    """Place a stretch of ``side * size`` around any point of ``range(size)``, and cut it off."""
    length, middle = int(side * size), rng.randrange(size)
    start = middle - length // 2
    return max(start, 0), min(start + length, size)
