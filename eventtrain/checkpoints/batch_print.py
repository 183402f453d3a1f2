"""What a batch holds, in short: a batch that is loaded again is told from another one by it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_PLAIN = (int, float, bool, str, type(None))
_SAMPLES, _SAMPLED = 64, 8
"""How many numbers of a tensor are kept about, of a batch that nobody may ask for; of how many."""


def batch_print(batch: Any) -> list[dict[str, Any]]:
    """Describe a batch such that another one is told from it, as plain data.

    Returns:
        For each tensor its type, its shape, the CRC-32 sum of what it holds, whether that is
        several values, and how often it has been written to; for each number and text what it is.
    """
    return [_print_of(leaf) for leaf in _leaves(batch)]


class BatchSample:
    """Some numbers of a batch, from which a print of it can be made when the batch is gone.

    Nothing waits for the device: the numbers lie there, copied, until they are asked for.

    Args:
        batch: As a loader gave it, and as it has been written to since.
    """

    def __init__(self, batch: Any) -> None:
        self._leaves: list[tuple[Any, Tensor | None]] = []
        for leaf in _leaves(batch):
            if not isinstance(leaf, Tensor):
                self._leaves.append((_print_of(leaf), None))
            elif _is_read(leaf) and len(self._leaves) < _SAMPLED:
                self._leaves.append((_about(leaf) | _written(leaf), _sampled(leaf).clone()))
            else:
                self._leaves.append((_about(leaf) | {"sample": None}, None))

    def print(self) -> list[dict[str, Any]]:
        """Describe the batch as ``batch_print`` does, by the numbers that were kept."""
        return [
            dict(about) if found is None else {**about, **_content_of(found, "sample")}
            for about, found in self._leaves
        ]


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        for part in batch:
            yield from _leaves(part)
    elif isinstance(batch, (Tensor, *_PLAIN)):
        yield batch


def _print_of(leaf: Any) -> dict[str, Any]:
    if not isinstance(leaf, Tensor):
        return {"kind": type(leaf).__name__, "content": str(leaf), "varies": isinstance(leaf, str)}
    if not _is_read(leaf):
        return _about(leaf)
    sample = _content_of(_sampled(leaf), "sample")
    content = _content_of(leaf.detach().cpu().contiguous().flatten(), "content")
    return {**_about(leaf), **sample, **content, **_written(leaf)}


def _about(leaf: Tensor) -> dict[str, Any]:
    return {"kind": str(leaf.dtype), "shape": list(leaf.shape)}


def _written(leaf: Tensor) -> dict[str, Any]:
    return {"version": leaf._version, "device": leaf.device.type}


def _is_read(leaf: Tensor) -> bool:
    is_plain = leaf.layout is torch.strided and not leaf.is_nested
    return is_plain and not (leaf.is_inference() or leaf.is_quantized)


def _sampled(leaf: Tensor) -> Tensor:
    """Return some numbers from all over a tensor, in its order."""
    # Each dimension apart: to flatten one that is not contiguous (channels last) copies it all.
    of_each = round(_SAMPLES ** (1 / max(leaf.dim(), 1)))
    places = tuple(slice(None, None, max(size // of_each, 1)) for size in leaf.shape)
    return leaf.detach()[places].flatten()


def _content_of(numbers: Tensor, name: str) -> dict[str, Any]:
    flat = numbers.cpu().contiguous()
    content: Any = flat.view(torch.uint8).numpy()
    varies = flat.numel() > 0 and not bool((flat == flat[0]).all())
    return {name: zlib.crc32(content), "varies": varies}


def are_same(saved: Sequence[Mapping[str, Any]], loaded: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two batches that ``batch_print`` described may be the same.

    Args:
        saved: One with which a run has done what it does; handlers may have written to it.
        loaded: One as a loader gave it.
    """
    return len(saved) == len(loaded) and all(
        was.get("kind") == now["kind"]
        and was.get("shape") == now.get("shape")
        and (_has_been_written_to(was, now) or _hold_the_same(was, now))
        for was, now in zip(saved, loaded, strict=True)
    )


def _hold_the_same(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether all that is known of what was held is held now."""
    if "content" in was or "sample" not in was:
        return bool(was.get("content") == now.get("content"))
    return was["sample"] is None or bool(was["sample"] == now.get("sample"))


def _has_been_written_to(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    # A tensor that a worker made has been written to when it arrives, its copy on a GPU not.
    is_copy = was.get("device") != now.get("device")
    return bool(was.get("version", 0) > (0 if is_copy else now.get("version", 0)))


def are_of_same_rows(
    saved: Sequence[Mapping[str, Any]], loaded: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether parts of two batches, labels say, tell that they were made of the same rows."""
    pairs = list(zip(saved, loaded, strict=False))
    same = [
        _hold_the_same(was, now) and (was.get("content") or was.get("sample")) is not None
        for was, now in pairs
    ]
    if any(is_same and now.get("varies") for is_same, (_, now) in zip(same, pairs, strict=True)):
        return True
    # Noise is seldom added to whole numbers, but a mask of ones alone tells nothing of rows.
    whole = [is_same for is_same, (_, now) in zip(same, pairs, strict=True) if "int" in now["kind"]]
    return bool(whole) and all(whole)
