"""The job of examples/jobs/distillation.py with Lightning."""

import torch
from images import digits
from lightning.pytorch import LightningModule, Trainer
from teacher import teacher
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from torch.utils.data import DataLoader


def distilled(student, taught, y):
    soft = kl_div(log_softmax(student / 2, 1), softmax(taught / 2, 1), reduction="batchmean") * 4
    hard = cross_entropy(student, y)
    return {"loss": 0.7 * soft + 0.3 * hard, "soft": soft, "hard": hard}


class Distillation(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        self.teacher = teacher().eval().requires_grad_(False)

    def shared_step(self, batch, name):
        x, y = batch
        pred = self.model(x)
        losses = distilled(pred, self.teacher(x), y)
        losses["accuracy"] = (pred.argmax(1) == y).float().mean()
        found = {f"{name}_{key}": each for key, each in losses.items()}
        self.log_dict(found, on_step=False, on_epoch=True)
        return losses["loss"]

    def training_step(self, batch, batch_idx):
        return self.shared_step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.shared_step(batch, "valid")

    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=0.2)


def make():
    torch.manual_seed(0)
    train, valid = digits(8)
    trainer = Trainer(max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False)
    return trainer, Distillation(), DataLoader(train, 64), DataLoader(valid, 64)


if __name__ == "__main__":
    trainer, *parts = make()
    trainer.fit(*parts)
    print(trainer.callback_metrics)
