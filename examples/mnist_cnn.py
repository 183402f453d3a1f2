"""Train a small convolutional network on MNIST to over 99 %: one cycle, smoothed labels.

Run it with::

    python examples/mnist_cnn.py --out mnist-cnn

It first looks for a learning rate, then trains five epochs, and leaves three
pictures in the folder, ``lr_finder.png``, ``loss.png`` and ``schedules.png``, and
a checkpoint an epoch and every ten seconds. Started again with ``--resume`` after it was killed,
it goes on from the last checkpoint. Without ``--data``, MNIST is looked for
in the folder that EVENTTRAIN_DATA names, and downloaded when that is not set.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from eventtrain import (
    AvgStatsCallback,
    DataBunch,
    Dataset,
    Learner,
    Runner,
    accuracy,
    get_data,
    get_dls,
)
from eventtrain.callbacks import (
    BatchTransform,
    Checkpoint,
    LabelSmoothing,
    LRFinder,
    OneCycle,
    Progress,
    Recorder,
)


def make_model() -> nn.Module:
    """Three blocks of convolutions, 1 x 28 x 28 to 10 classes: 78,000 weights."""

    def block(channels_in: int, channels_out: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]

    layers = [*block(1, 16), nn.MaxPool2d(2), *block(16, 32), *block(32, 32), nn.MaxPool2d(2)]
    layers += [*block(32, 64), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)]
    return nn.Sequential(*layers)


def as_images() -> BatchTransform:
    """Turn rows of 784 numbers into images, in every phase."""
    return BatchTransform(x=lambda xb: xb.view(-1, 1, 28, 28), during=None)


def main() -> None:
    """Find a rate, train, and draw what happened."""
    parser = argparse.ArgumentParser(description="Train a convolutional network on MNIST.")
    parser.add_argument("--data", help="folder that holds the files of MNIST")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("mnist-cnn"), help="folder for results")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args()

    torch.manual_seed(0)
    x_train, y_train, x_valid, y_valid = get_data("mnist", options.data)
    loaders = get_dls(Dataset(x_train, y_train), Dataset(x_valid, y_valid), bs=128)
    model = make_model()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    learn = Learner(model, opt, functional.cross_entropy, DataBunch(*loaders, c=10))

    options.out.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        finder = LRFinder(min_lr=1e-5, max_lr=1.0, steps=100)
        Runner([finder, as_images()]).fit(1, learn)
        finder.save_plot(options.out / "lr_finder.png")
        print("learning rates to try:", finder.suggestion)

    progress, recorder = Progress(), Recorder()
    callbacks = [
        as_images(),
        AvgStatsCallback(accuracy, report=progress.write),
        OneCycle(max_lr=0.01),
        LabelSmoothing(0.1),
        Checkpoint(options.out / "checkpoints", every_seconds=10),
        recorder,
        progress,
    ]
    run = Runner(callbacks)
    result = run.fit(options.epochs, learn, resume="auto" if options.resume else None)
    recorder.save_plots(options.out)
    if result.epochs:
        print(f"validation accuracy: {result.history[-1]['valid_accuracy']:.4f}")


if __name__ == "__main__":
    main()
