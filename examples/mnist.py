"""Train a small classifier on MNIST: three epochs, a line of metrics after each.

Run it with::

    python examples/mnist.py

Without ``--data`` the files are looked for in the folder that the environment
variable EVENTTRAIN_DATA names, and downloaded when that is not set.
"""

import argparse
from functools import partial

import torch
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
    get_model,
)


def main() -> None:
    """Train and print the averages over the validation set."""
    parser = argparse.ArgumentParser(description="Train a small classifier on MNIST.")
    parser.add_argument("--data", help="folder that holds the files of MNIST")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()

    torch.manual_seed(0)
    x_train, y_train, x_valid, y_valid = get_data("mnist", options.data)
    loaders = get_dls(Dataset(x_train, y_train), Dataset(x_valid, y_valid), bs=64)
    data = DataBunch(*loaders, c=10)
    learn = Learner(*get_model(data, lr=0.5, nh=50), functional.cross_entropy, data)

    run = Runner(cb_funcs=partial(AvgStatsCallback, accuracy))
    run.fit(options.epochs, learn)
    print("validation loss and accuracy:", run.avg_stats.valid_stats.avg_stats)


if __name__ == "__main__":
    main()
