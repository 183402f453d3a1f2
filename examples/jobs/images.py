"""Images of digits, from scikit-learn, and of squares: what the programs on images read.

Nothing is loaded.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import TensorDataset

from eventtrain import get_data


def digits(size: int = 32) -> tuple[TensorDataset, TensorDataset]:
    """Return images [n, 1, size, size] with their classes, to train on and to validate with."""
    x_train, y_train, x_valid, y_valid = get_data("digits")
    return _rows(x_train[:512], y_train[:512], size), _rows(x_valid[:128], y_valid[:128], size)


def noisy(rows: TensorDataset) -> TensorDataset:
    """Return the same images with noise, always the same, and their classes."""
    images, classes = rows.tensors
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images + 0.5 * noise, classes)


def _rows(x: Tensor, y: Tensor, size: int) -> TensorDataset:
    images = interpolate(x.reshape(-1, 1, 8, 8), size=(size, size), mode="bilinear")
    return TensorDataset(images.to(torch.get_default_dtype()), y)


def squares(count: int, seed: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return dark images with a bright square or two each, and where these are."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for index in range(count):
        image, boxes = torch.rand(3, 64, 64, generator=generator) * 0.2, []
        for _ in range(1 + index % 2):
            x, y = torch.randint(0, 40, (2,), generator=generator).tolist()
            image[:, y : y + 20, x : x + 20] = 0.9
            boxes.append([x, y, x + 20, y + 20])
        labels = torch.ones(len(boxes), dtype=torch.int64)
        rows.append((image, {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": labels}))
    return rows
