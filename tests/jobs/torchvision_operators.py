"""Has torchvision be imported where its wheel has no operators for the torch at hand.

That is so where torch is a build for the CPU and torchvision one for CUDA: it cannot be imported
then, and neither can what imports it (timm, transformers). With the operators declared, but for
which there is no code, all of it works that calls none.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

_held: list[torch.library.Library] = []


def import_torchvision() -> bool:
    """Import torchvision, and say whether its operators are there; ``False`` also without it."""
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _held.append(library)  # what it declares goes with it
        importlib.import_module("torchvision")
    return not _held
