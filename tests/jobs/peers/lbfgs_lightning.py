"""The job of examples/jobs/lbfgs.py with Lightning."""

import torch
from images import digits
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader


class Regression(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

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
        return torch.optim.LBFGS(self.parameters(), max_iter=8, line_search_fn="strong_wolfe")


def make():
    torch.manual_seed(0)
    train, valid = digits(8)
    trainer = Trainer(max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False)
    loaders = DataLoader(train, len(train)), DataLoader(valid, len(valid))
    return trainer, Regression(), *loaders


if __name__ == "__main__":
    trainer, *parts = make()
    trainer.fit(*parts)
    print(trainer.callback_metrics)
