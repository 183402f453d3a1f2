"""The job of examples/jobs/folds.py with Lightning."""

from statistics import mean, stdev

import torch
from images import digits
from lightning.pytorch import LightningModule, Trainer
from sklearn.model_selection import KFold
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return cross_entropy(self.model(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("valid_accuracy", (self.model(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def scores(folds, epochs):
    rows, found = digits(8)[0], []
    for others, fold in KFold(folds, shuffle=True, random_state=0).split(range(len(rows))):
        torch.manual_seed(0)
        loaders = DataLoader(Subset(rows, others), 64), DataLoader(Subset(rows, fold), 64)
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False
        )
        trainer.fit(Classifier(), *loaders)
        found.append(trainer.callback_metrics["valid_accuracy"].item())
    return found


if __name__ == "__main__":
    found = scores(4, epochs=5)
    print(mean(found), stdev(found))
