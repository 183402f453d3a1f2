"""A training and a validation loader together, and making both from data sets."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset as TorchDataset, IterableDataset, TensorDataset

from ..arguments import whole_number
from .loaders import Dataset, TensorLoader


class DataBunch:
    """A training loader, a validation loader and the number of classes.

    Args:
        train_dl: Any iterable of batches.
        valid_dl: Any iterable of batches; ``None`` (default) means no validation. Or several by
            name, ``{"easy": a, "hard": b}``: each gets a ``validate`` phase of its own, in this
            order, and columns of its own, ``valid_easy_loss``.
        c: The number of classes, or of model outputs. Default ``None``.

    Raises:
        TypeError: In the place of a loader stands a class, a function, a pair of loaders, a
            tensor or array, or a data set, whose samples would be taken for batches.
        ValueError: ``valid_dl`` is a mapping without a loader.
    """

    def __init__(self, train_dl: Any, valid_dl: Any = None, c: int | None = None) -> None:
        check_loader(train_dl, "train_dl")
        check_valid_loaders(valid_dl)
        self.train_dl = train_dl
        self.valid_dl = valid_dl
        self.c = c

    @property
    def train_ds(self) -> Any:
        """``train_dl.dataset``; AttributeError where the loader has none."""
        return _dataset_of(self.train_dl, "train")

    @property
    def valid_ds(self) -> Any:
        """``valid_dl.dataset``, by name of several; ``None`` where there is no such loader."""
        if isinstance(self.valid_dl, Mapping):
            return {name: _dataset_of(dl, "valid") for name, dl in self.valid_dl.items()}
        return None if self.valid_dl is None else _dataset_of(self.valid_dl, "valid")


def valid_loaders_of(data: Any) -> dict[str | None, Any]:
    """Return the validation loaders by their names.

    Args:
        data: A ``DataBunch``.

    Returns:
        One alone has the name ``None``; empty where there is none.
    """
    loaders = data.valid_dl
    if isinstance(loaders, Mapping):
        return dict(loaders)
    return {} if loaders is None else {None: loaders}


def check_valid_loaders(dl: Any) -> None:
    """Refuse what is neither a validation loader nor several by name.

    Args:
        dl: As for ``DataBunch``.

    Raises:
        TypeError, ValueError: See ``DataBunch``.
    """
    if not isinstance(dl, Mapping):
        check_loader(dl, "valid_dl")
        return
    if not dl:
        raise ValueError("valid_dl is a mapping without a loader: None means no validation")
    for name, each in dl.items():
        if not isinstance(name, str) or not name:
            raise TypeError(
                f"valid_dl has loaders by name, and one of the names is {name!r}: write a text, "
                'DataBunch(train_dl, {"easy": a, "hard": b})'
            )
        if each is None:
            raise TypeError(f"valid_dl[{name!r}] is None: leave it out")
        check_loader(each, f"valid_dl[{name!r}]")


def check_loader(dl: Any, name: str) -> None:
    """Refuse what is no loader: what cannot be iterated over, and what does not yield batches.

    Args:
        dl: A loader, or ``None``, which is let through.
        name: What it is called, for messages.

    Raises:
        TypeError: It is none.
    """
    remedy = ""
    if isinstance(dl, type):
        remedy = f"which is a class: pass an instance, {dl.__name__}(...)"
    elif isinstance(dl, (tuple, list)) and any(
        isinstance(x, (DataLoader, TensorLoader)) for x in dl[:3]
    ):
        remedy = "which holds loaders: DataBunch(*loaders), as in DataBunch(*get_dls(...))"
    elif isinstance(dl, (TorchDataset, Dataset)) and not hasattr(type(dl), "__iter__"):
        remedy = (
            "a data set, whose samples are no batches: DataLoader(dataset, ...) or get_dls(...)"
        )
    elif isinstance(dl, Mapping):
        remedy = "whose keys are no batches: pass one loader"
    elif isinstance(dl, Tensor):
        remedy = "whose rows are no batches: TensorLoader(x, y)"
    elif hasattr(type(dl), "__array__"):
        remedy = "whose rows are no batches: TensorLoader(torch.as_tensor(x), torch.as_tensor(y))"
    elif isinstance(dl, (str, bytes)) or not (
        dl is None or hasattr(dl, "__iter__") or hasattr(dl, "__getitem__")
    ):
        remedy = "which is nothing to iterate over"
        remedy += ": call it, and pass what it returns" if callable(dl) else ""
    if remedy:
        raise TypeError(f"{name} must be an iterable of batches, got {type(dl).__name__}, {remedy}")


def get_dls(train_ds: Any, valid_ds: Any, bs: int = 64, **kwargs: Any) -> tuple[Any, Any]:
    """Make a shuffled training loader and a validation loader of twice the batch size.

    A ``Dataset`` of tensors or a ``TensorDataset`` of two (no subclass: it
    may transform its items) gets a ``TensorLoader``, as long as ``kwargs``
    holds nothing but ``generator`` and ``drop_last``. All else gets a
    ``torch.utils.data.DataLoader`` with ``kwargs`` passed on.

    Args:
        train_ds: The training data. An ``IterableDataset`` keeps its own order.
        valid_ds: The validation data; ``None`` gives no validation loader.
        bs: Rows per training batch, 64 by default; validation uses ``2 * bs``,
            as it needs no room for gradients.
        **kwargs: Options of ``DataLoader`` for both loaders, except
            ``generator`` and ``drop_last``, which go to the training loader only.

    Returns:
        ``(train_dl, valid_dl)``.

    Raises:
        TypeError: ``kwargs`` sets the order or batch size, which is done here.
        DataError: As for ``TensorLoader``, where one is made.
    """
    if "batch_size" in kwargs:
        raise TypeError(f"get_dls calls it bs: get_dls(train_ds, valid_ds, {kwargs['batch_size']})")
    tensors = [ds for ds in (train_ds, valid_ds) if isinstance(ds, Tensor)]
    if len({(ds.dtype, ds.shape[1:]) for ds in tensors}) > 1:
        raise TypeError(
            "get_dls takes data to train on and data to validate on, and these two tensors look "
            "like inputs and targets: get_dls(Dataset(x, y), Dataset(x_valid, y_valid))"
        )
    taken = {"shuffle", "sampler", "batch_sampler"} & kwargs.keys()
    if taken:
        raise TypeError(
            f"get_dls decides order and batch size; for {', '.join(sorted(taken))} "
            "make the loaders yourself and hand them to DataBunch"
        )
    own: dict[str, Any] = {
        key: kwargs.pop(key) for key in ("generator", "drop_last") if key in kwargs
    }
    bs = whole_number("the batch size", bs, 1)
    train_dl = _loader(train_ds, bs, True, own, kwargs)
    return train_dl, None if valid_ds is None else _loader(valid_ds, 2 * bs, False, {}, kwargs)


def _loader(ds: Any, bs: int, shuffle: bool, own: dict[str, Any], rest: dict[str, Any]) -> Any:
    if not rest:
        # No subclass: its __getitem__ may change the items.
        if type(ds) is TensorDataset and len(ds.tensors) == 2:
            ds = Dataset(*ds.tensors)
        if type(ds) is Dataset and all(isinstance(p, (Tensor, NoneType)) for p in (ds.x, ds.y)):
            return TensorLoader.of(ds, bs, shuffle, **own)
    shuffle = shuffle and not isinstance(ds, IterableDataset)
    return DataLoader(ds, batch_size=bs, shuffle=shuffle, **own, **rest)


def _dataset_of(dl: Any, which: str) -> Any:
    try:
        return dl.dataset
    except AttributeError:
        raise AttributeError(
            f"{which}_ds is {which}_dl.dataset, but the {which} loader "
            f"({type(dl).__name__}) has no attribute 'dataset'"
        ) from None
