"""Text that ships with Python, as bytes: what the programs on language read. Nothing is loaded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset

PADDING = 0  # no text has this byte


def blocks(length: int, count: int) -> list[Tensor]:
    """Return ``count`` pieces of ``length`` bytes."""
    text = "".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
    pieces = [text[at : at + length] for at in range(0, count * length, length)]
    return [torch.tensor(list(piece)) for piece in pieces]


def sentences(count: int, shortest: int = 8, longest: int = 48) -> list[Tensor]:
    """Return ``count`` pieces of text of many lengths, always the same."""
    rng = random.Random(0)
    return [each[: rng.randint(shortest, longest)] for each in blocks(longest, count)]


def padded(pieces: Sequence[Tensor]) -> dict[str, Tensor]:
    """Make a batch for a language model of pieces of several lengths."""
    tokens = pad_sequence(list(pieces), batch_first=True, padding_value=PADDING)
    mask = (tokens != PADDING).long()
    labels = tokens.masked_fill(mask == 0, -100)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def pieces(length: int) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Return six long texts piece by piece with what comes next in them, and two to validate.

    A batch has the next ``length`` bytes of each text, int64 [texts, length].
    """
    texts = torch.stack(blocks(10 * length + 1, 8))

    def batches(rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        x, y = rows[:, :-1].split(length, 1), rows[:, 1:].split(length, 1)
        return list(zip(x, y, strict=True))

    return batches(texts[:6]), batches(texts[6:])


def pages(classes: int) -> tuple[list[tuple[Tensor, int]], list[tuple[Tensor, int]]]:
    """Return pieces of the longest texts with their number, to train on and to validate with."""
    longest = sorted(topics.values(), key=len)[-classes:]
    rng, rows = random.Random(0), []
    for label, text in enumerate(longest):
        content = text.encode("ascii", "replace")
        for at in range(0, 60 * 40, 40):
            piece = content[at : at + rng.randint(20, 40)]
            rows.append((torch.tensor(list(piece)), label))
    rng.shuffle(rows)
    return rows[:200], rows[200:]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Pairs of a text and what comes next in it, in an order drawn anew, without an end."""

    def __init__(self, pieces: Sequence[Tensor], seed: int) -> None:
        self.pieces, self.generator = pieces, torch.Generator().manual_seed(seed)
        self.read = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            piece = self.pieces[int(torch.randint(len(self.pieces), (), generator=self.generator))]
            self.read += 1
            yield piece[:-1], piece[1:]

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "read": self.read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.read = state["read"]
