"""Data sets to try things on: MNIST, and scikit-learn's digits, which need no download."""

from __future__ import annotations

import importlib
import os

import torch
from torch import Tensor

from ..errors import DataError, did_you_mean

# How many of the 60,000 images train; the last 10,000 validate.
_MNIST_TRAIN = 50_000
_DIGITS_TRAIN = 0.8


def get_data(
    name: str = "mnist", path: str | os.PathLike[str] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load a small data set of images of digits, split for training and validation.

    ``"mnist"`` is the training file of MNIST: the first 50,000 images train,
    the last 10,000 validate. It is downloaded once, see ``path``. ``"digits"``
    is the 8 x 8 digits that come with scikit-learn, 1,437 and 360 of them, in
    an order that is always the same and leaves torch's random state alone.

    Args:
        name: ``"mnist"`` (default) or ``"digits"``.
        path: For MNIST, the folder that holds ``train-images-idx3-ubyte.gz``
            and ``train-labels-idx1-ubyte.gz`` (or the same without ``.gz``);
            nothing is written there. ``None`` (default) takes the folder named
            by ``EVENTTRAIN_DATA``, or its subfolder ``mnist``; where that is
            not set, the cache folder ``~/.cache/eventtrain/mnist``
            (``$XDG_CACHE_HOME`` in place of ``~/.cache`` where it is set), into
            which missing and damaged files are downloaded.

    Returns:
        ``x_train, y_train, x_valid, y_valid``: inputs float32 ``[n, 784]``
        (MNIST) or ``[n, 64]`` (digits) in [0, 1], targets int64 ``[n]``. No
        two of them share memory.

    Raises:
        DataError: The name is unknown, a ``path`` was given for the digits, or
            files are missing, damaged or out of reach.
        ModuleNotFoundError: The digits were asked for without scikit-learn.
    """
    if name == "mnist":
        return _mnist(path)
    if name == "digits":
        if path is not None:
            raise DataError("the digits come with scikit-learn: leave out path")
        return _digits()
    raise DataError(
        f"there is no data set {name!r}, only 'mnist' and 'digits'."
        + did_you_mean(name, ("mnist", "digits"))
    )


def _mnist(path: str | os.PathLike[str] | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from .mnist import load_mnist  # here: it brings the parts of urllib along

    images, labels = load_mnist(path)
    # Cut before converting: a cut of the converted would keep all of it in memory.
    train, valid = (
        part.flatten(1).float().div_(255) for part in (images[:_MNIST_TRAIN], images[_MNIST_TRAIN:])
    )
    return train, labels[:_MNIST_TRAIN].long(), valid, labels[_MNIST_TRAIN:].long()


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    try:
        sklearn_datasets = importlib.import_module("sklearn.datasets")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'get_data("digits") needs scikit-learn: pip install "eventtrain[demo]"',
            name=error.name,
        ) from error
    pixels, targets = sklearn_datasets.load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).float().div_(16)
    y = torch.from_numpy(targets).long()
    # A generator of its own: a data set must not move the caller's random numbers.
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, valid = order.tensor_split([int(len(x) * _DIGITS_TRAIN)])
    return x[train], y[train], x[valid], y[valid]
