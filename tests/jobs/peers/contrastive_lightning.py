"""The job of examples/jobs/contrastive.py with Lightning."""

import torch
from images import digits
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader


def contrast(one, other):
    logits = one @ other.T / 0.1
    which = torch.arange(len(one), device=one.device)
    return (cross_entropy(logits, which) + cross_entropy(logits.T, which)) / 2


class Contrastive(LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))

    def shared_step(self, batch, name):
        views = [self.encoder(batch + 0.1 * torch.randn_like(batch)) for _ in range(2)]
        loss = contrast(*(normalize(view, dim=1) for view in views))
        self.log(f"{name}_loss", loss, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch, batch_idx):
        return self.shared_step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.shared_step(batch, "valid")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def make():
    torch.manual_seed(0)
    train, valid = (rows.tensors[0] for rows in digits(8))
    trainer = Trainer(max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False)
    return trainer, Contrastive(), DataLoader(train, 64), DataLoader(valid, 64)


if __name__ == "__main__":
    trainer, *parts = make()
    trainer.fit(*parts)
    print(trainer.callback_metrics)
