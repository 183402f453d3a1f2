"""Small graphs of two classes: what the program on graphs reads."""

from __future__ import annotations

import torch
from torch_geometric.data import Data


def small_graphs() -> tuple[list[Data], list[Data]]:
    """Return graphs of 3 to 7 nodes with two features, to train on and to validate with."""
    generator, found = torch.Generator().manual_seed(0), []
    for index in range(60):
        size = 3 + index % 5
        x = torch.randn(size, 2, generator=generator)
        edges = torch.randint(0, size, (2, 3 * size), generator=generator)
        found.append(Data(x=x, edge_index=edges, y=(x.sum() > 0).long()[None]))
    return found[:42], found[42:]
