"""The job of examples/jobs/found_rate.py with Lightning."""

import torch
from images import digits
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.lr = 1.0
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = cross_entropy(self.model(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        pred = self.model(x)
        self.log("valid_loss", cross_entropy(pred, y))
        self.log("valid_accuracy", (pred.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def make():
    torch.manual_seed(0)
    train, valid = digits(8)
    trainer = Trainer(max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False)
    return trainer, Classifier(), DataLoader(train, 64), DataLoader(valid, 64)


if __name__ == "__main__":
    trainer, model, *loaders = make()
    finder = Tuner(trainer).lr_find(model, *loaders, min_lr=1e-3, max_lr=100, num_training=60)
    model.lr = finder.suggestion()
    trainer.fit(model, *loaders)
    print(trainer.callback_metrics)
