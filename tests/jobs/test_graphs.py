"""Batches that are no tensors: graphs of PyTorch Geometric, packed sequences, own objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, accuracy
from eventtrain.callbacks import GradientAccumulation


def averaged(model: Any, loss_of: Callable[[Any], Tensor], batches: Any, counts: Any) -> float:
    with torch.no_grad():
        model.eval()
        total = sum(float(loss_of(b)) * n for b, n in zip(batches, counts, strict=True))
    return float(total / sum(counts))


def trained_by_hand(model: Any, opt: Any, loss_of: Any, batches: Any, epochs: int) -> None:
    for _ in range(epochs):
        for batch in batches:
            loss_of(batch).backward()
            opt.step()
            opt.zero_grad()


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


# PyTorch Geometric


def graphs() -> list[Any]:
    from torch_geometric.data import Data

    generator, found = torch.Generator().manual_seed(0), []
    for size in (3, 5, 4, 6, 3, 7, 4, 5, 3, 6):
        x = torch.randn(size, 2, generator=generator)
        edges = torch.randint(0, size, (2, 3 * size), generator=generator)
        found.append(Data(x=x, edge_index=edges, y=(x.sum() > 0).long()[None]))
    return found


def graph_net() -> Any:
    from torch_geometric.nn import GCNConv, global_mean_pool

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = GCNConv(2, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, edges: Tensor, of: Tensor) -> Any:
            return self.out(global_mean_pool(self.conv(x, edges).relu(), of))

    torch.manual_seed(0)
    return Net()


def on_graphs(model: Any, opt: Any, loader: Any, epochs: int, *cbs: Any) -> Any:
    learn = Learner(
        model,
        opt,
        lambda pred, batch: cross_entropy(pred, batch.y),
        DataBunch(loader, loader),
        forward=lambda model, batch: model(batch.x, batch.edge_index, batch.batch),
        weight=lambda batch: batch.num_graphs,
    )
    metrics = AvgStatsCallback(accuracy, None, target=lambda run: run.batch.y)
    return Runner([metrics, *cbs]).fit(epochs, learn)


def test_graphs_are_trained_on_as_in_a_loop_by_hand() -> None:
    pytest.importorskip("torch_geometric", reason="needs torch_geometric (extra 'jobs')")
    from torch_geometric.loader import DataLoader

    loader = DataLoader(graphs(), batch_size=4)
    ours, theirs = graph_net(), graph_net()
    row = on_graphs(ours, torch.optim.SGD(ours.parameters(), lr=0.1), loader, 3).history[-1]

    def loss_of(batch: Any) -> Tensor:
        return cross_entropy(theirs(batch.x, batch.edge_index, batch.batch), batch.y)

    trained_by_hand(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1), loss_of, loader, 3)
    assert same(ours, theirs)
    expected = averaged(theirs, loss_of, loader, [4, 4, 2])
    assert row["valid_loss"] == pytest.approx(expected, abs=1e-6)


def test_a_group_of_graph_batches_is_weighted_by_graphs() -> None:
    pytest.importorskip("torch_geometric", reason="needs torch_geometric (extra 'jobs')")
    from torch_geometric.loader import DataLoader

    ours, theirs = graph_net(), graph_net()
    opts = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (ours, theirs)]
    on_graphs(ours, opts[0], DataLoader(graphs(), batch_size=4), 1, GradientAccumulation(3))
    on_graphs(theirs, opts[1], DataLoader(graphs(), batch_size=10), 1)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


# Packed sequences


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRU(2, 8), nn.Linear(8, 2)

    def forward(self, packed: PackedSequence) -> Any:
        return self.out(self.cell(packed)[1][0])


def sequences() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for lengths in ((3, 6, 2, 5), (4, 4, 7), (1, 2)):
        rows = [torch.randn(length, 2, generator=generator) for length in lengths]
        target = torch.tensor([int(row.sum() > 0) for row in rows])
        found.append((pack_sequence(rows, enforce_sorted=False), target))
    return found


def test_packed_sequences_are_trained_on_as_in_a_loop_by_hand() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Reader())
    ours, theirs = models
    opts = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    learn = Learner(ours, opts[0], cross_entropy, DataBunch(sequences(), sequences()))
    row = Runner(AvgStatsCallback(accuracy, None)).fit(3, learn).history[-1]

    def loss_of(batch: Any) -> Tensor:
        return cross_entropy(theirs(batch[0]), batch[1])

    trained_by_hand(theirs, opts[1], loss_of, sequences(), 3)
    assert same(ours, theirs)
    expected = averaged(theirs, loss_of, sequences(), [4, 3, 2])
    assert row["valid_loss"] == pytest.approx(expected, abs=1e-6)


# Objects of one's own


class Pairs:
    """Has a ``to`` and a length, and nothing else that is known."""

    def __init__(self, left: Tensor, right: Tensor, target: Tensor) -> None:
        self.left, self.right, self.target = left, right, target

    def to(self, device: Any, non_blocking: bool = False) -> Pairs:
        return Pairs(*(part.to(device) for part in (self.left, self.right, self.target)))

    def __len__(self) -> int:
        return len(self.target)


def pairs() -> list[Pairs]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in (5, 5, 3):
        left, right = (torch.randn(size, 3, generator=generator) for _ in range(2))
        found.append(Pairs(left, right, ((left - right).sum(1) > 0).long()))
    return found


def test_objects_with_to_and_a_length_are_trained_on_as_in_a_loop_by_hand() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(nn.Linear(6, 2))
    ours, theirs = models
    opts = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    learn = Learner(
        ours,
        opts[0],
        lambda pred, batch: cross_entropy(pred, batch.target),
        DataBunch(pairs(), pairs()),
        forward=lambda model, batch: model(torch.cat([batch.left, batch.right], 1)),
        weight=len,
    )
    row = Runner(AvgStatsCallback(report=None)).fit(3, learn).history[-1]

    def loss_of(batch: Any) -> Tensor:
        return cross_entropy(theirs(torch.cat([batch.left, batch.right], 1)), batch.target)

    trained_by_hand(theirs, opts[1], loss_of, pairs(), 3)
    assert same(ours, theirs)
    expected = averaged(theirs, loss_of, pairs(), [5, 5, 3])
    assert row["valid_loss"] == pytest.approx(expected, abs=1e-6)
