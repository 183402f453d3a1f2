"""Loaders, batches and data sets."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .bunch import DataBunch as DataBunch, get_dls as get_dls
    from .datasets import get_data as get_data
    from .global_order import GlobalBatchSampler as GlobalBatchSampler
    from .loaders import Dataset as Dataset, TensorLoader as TensorLoader

# Type checkers would take any name for one that is there.
if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
