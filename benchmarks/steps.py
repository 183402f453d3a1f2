"""What the ``gpu`` suite trains: models from launch-bound to compute-bound, and ways to step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eventtrain import DataBunch, Learner, Runner

from .device_clock import Batches
from .loops import Way


@dataclass(frozen=True)
class Case:
    """A classifier, and the batches it is trained on.

    Attributes:
        name: Layers and batch size, for people.
        make: Makes the model.
        shape: Of a batch's input; the first dimension is the batch size.
        classes: How many the targets are drawn from.
        bound: What limits the step: ``"launch"``, ``"compute"``, or what lies ``"between"``.
        optimizer: Class of the optimizer.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    bound: str
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD


def perceptron(widths: tuple[int, ...], batch_size: int, bound: str) -> Case:
    """Return the case of linear layers in a row: ``widths`` from the inputs to the classes."""

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    name = f"{'-'.join(map(str, widths))}, batch size {batch_size}"
    return Case(name, make, (batch_size, widths[0]), widths[-1], bound)


class Transformer(nn.Sequential):
    """A transformer's encoder, whose outputs are averaged and classified.

    Args:
        layers: How many.
        width: Features of a position; four heads share them.
        classes: How many.
    """

    def __init__(self, layers: int, width: int, classes: int) -> None:
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        super().__init__(nn.TransformerEncoder(layer, layers), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [batch, classes] for ``x``, float [batch, positions, width]."""
        encoder, head = self
        return head(encoder(x).mean(dim=1))


def transformer(layers: int, width: int, positions: int, batch_size: int, bound: str) -> Case:
    """Return the case of a transformer that is trained by AdamW."""
    return Case(
        f"transformer of {layers} layers, width {width}, batch size {batch_size}",
        lambda: Transformer(layers, width, 10),
        (batch_size, positions, width),
        10,
        bound,
        torch.optim.AdamW,
    )


SMALL = (
    perceptron((10, 10), 4, "launch"),
    perceptron((784, 50, 10), 64, "launch"),
    transformer(2, 64, 16, 4, "launch"),
)
"""What a GPU has computed before the host has launched the next operation."""

CASES: dict[str, tuple[Case, ...]] = {
    "cuda": (
        *SMALL,
        perceptron((784, 1024, 1024, 10), 1024, "between"),
        perceptron((4096, 4096, 4096, 10), 4096, "compute"),
        perceptron((4096, 8192, 8192, 10), 8192, "compute"),
    ),
    "cpu": (
        *SMALL,
        perceptron((784, 256, 256, 10), 128, "between"),
        perceptron((784, 512, 512, 10), 512, "compute"),
    ),
    "meta": SMALL[1:],
}
"""By type of device; on ``meta`` nothing is computed, and so nothing can be compute-bound."""


def learner(case: Case, device: torch.device, seed: int, batches: int = 8) -> tuple[Learner, Any]:
    """Make a learner for a case, and a few batches that are on the device already.

    The learning rate is so small that the numbers, and with them the speed, stay
    as they are however long it is trained.
    """
    torch.manual_seed(seed)
    model = case.make().to(device)
    x = torch.randn(batches, *case.shape).to(device)
    y = torch.randint(case.classes, (batches, case.shape[0])).to(device)
    opt = case.optimizer(model.parameters(), lr=1e-9)
    return Learner(model, opt, F.cross_entropy, DataBunch(None)), list(zip(x, y, strict=True))


@dataclass
class CapturedStep:
    """A whole training step, recorded once and replayed for every batch.

    Attributes:
        x, y: Where a batch is copied to before the replay.
        pred, loss: Where the replay leaves them.
        replay: Does the step.
    """

    x: Tensor
    y: Tensor
    pred: Tensor
    loss: Tensor
    replay: Callable[[], object]

    @classmethod
    def on_cuda(cls, learn: Learner, batches: Batches) -> CapturedStep:
        """Capture forward, backward and optimizer step in one CUDA graph."""
        x, y = batches[0][0].clone(), batches[0][1].clone()

        def step() -> tuple[Tensor, Tensor]:
            learn.opt.zero_grad(set_to_none=True)
            pred = learn.model(x)
            loss = learn.loss_func(pred, y)
            loss.backward()
            learn.opt.step()
            return pred, loss

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is set up on first use must not be captured
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            pred, loss = step()
        # Their autograd graph would keep nodes alive that belong to the capturing stream.
        return cls(x, y, pred.detach(), loss.detach(), graph.replay)

    def written_loop(self) -> Way:
        """Return the loop around it as one writes it by hand."""

        def way(learn: Learner) -> None:
            x, y, replay = self.x, self.y, self.replay
            for xb, yb in learn.data.train_dl:
                x.copy_(xb)
                y.copy_(yb)
                replay()

        return way


class CapturedRunner(Runner):
    """A ``Runner`` that replays a captured step: all its events fire after the launch.

    Args:
        step: What to replay.
    """

    def __init__(self, step: CapturedStep) -> None:
        super().__init__()
        self.captured = step

    def one_batch(self) -> None:
        """Launch the step, then tell everyone."""
        emit, step = self.emit, self.captured
        step.x.copy_(self.xb)
        step.y.copy_(self.yb)
        step.replay()
        self.pred, self.loss = step.pred, step.loss
        emit.after_pred()
        emit.after_loss()
        emit.after_backward()
        with self.scope.step as scope:
            emit.begin_step()
            self.steps += 1
        if scope.outcome == "completed":
            emit.after_step()
