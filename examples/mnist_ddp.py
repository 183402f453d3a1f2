"""Train a convolutional network on MNIST with several processes: DDP, by the same script as alone.

Run it with::

    torchrun --nproc-per-node 2 examples/mnist_ddp.py

or alone, with ``python examples/mnist_ddp.py``. With ``--checkpoints FOLDER``, and torchrun's
``--max-restarts 3``, it goes on by itself when a process is lost. MNIST is read from ``--data`` or
from the folder that EVENTTRAIN_DATA names; where neither is given, it takes the small digits of
scikit-learn. A batch has 128 images, however many processes share it.
"""

import argparse
import os
from math import isqrt

import torch
from torch import distributed, nn
from torch.nn.functional import cross_entropy

from eventtrain import (
    AvgStatsCallback,
    DataBunch,
    Distributed,
    Learner,
    Runner,
    TensorLoader,
    accuracy,
    get_data,
)
from eventtrain.callbacks import BatchTransform, Checkpoint, OneCycle, Seed


def make_model() -> nn.Module:
    """Return a network from images [n, 1, side, side] to 10 classes; any side above 7."""

    def block(channels_in: int, channels_out: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        return [conv, nn.GroupNorm(4, channels_out), nn.ReLU(), nn.MaxPool2d(2)]

    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, 10)]
    return nn.Sequential(*block(1, 16), *block(16, 32), *head)


def main() -> None:
    """Train; every process runs this."""
    parser = argparse.ArgumentParser(description="Train on MNIST with one process or several.")
    parser.add_argument("--data", help="folder that holds the files of MNIST")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--checkpoints", help="folder to save to, and to go on from")
    options = parser.parse_args()

    name = "mnist" if options.data or os.environ.get("EVENTTRAIN_DATA") else "digits"
    x_train, y_train, x_valid, y_valid = get_data(name, options.data)
    side = isqrt(x_train.shape[1])
    # bs is the batch over all processes: each gets its share, from one order.
    data = DataBunch(
        TensorLoader(x_train, y_train, bs=128, shuffle=True, seed=0),
        TensorLoader(x_valid, y_valid, bs=512),
    )
    torch.manual_seed(0)
    model = make_model()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    learn = Learner(model, opt, cross_entropy, data)

    save = [Checkpoint(options.checkpoints, every_seconds=60)] if options.checkpoints else []
    run = Runner(
        [
            Seed(0),  # a stream for each process: dropout differs between them
            Distributed("ddp"),
            BatchTransform(x=lambda xb: xb.view(-1, 1, side, side), during=None),
            AvgStatsCallback(accuracy),
            OneCycle(max_lr=0.01),
            *save,
        ]
    )
    result = run.fit(options.epochs, learn, resume="auto" if save else None)
    if run.is_zero and result.epochs:
        found = result.history[-1]["valid_accuracy"]
        print(f"{len(x_train)} images, {run.world_size} processes, accuracy {found:.4f}")
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
