"""The job of examples/jobs/packed.py with Lightning."""

import torch
from lightning.pytorch import LightningModule, Trainer
from texts import pages
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader


def collate(rows):
    texts, labels = zip(*rows, strict=True)
    return pack_sequence(texts, enforce_sorted=False), torch.tensor(labels)


class Reader(LightningModule):
    def __init__(self):
        super().__init__()
        self.bytes, self.cell, self.out = nn.Embedding(256, 16), nn.GRU(16, 32), nn.Linear(32, 4)

    def forward(self, packed):
        embedded = PackedSequence(self.bytes(packed.data), *packed[1:])
        return self.out(self.cell(embedded)[1][-1])

    def training_step(self, batch, batch_idx):
        packed, y = batch
        loss = cross_entropy(self(packed), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(y))
        return loss

    def validation_step(self, batch, batch_idx):
        packed, y = batch
        pred = self(packed)
        self.log("valid_loss", cross_entropy(pred, y), batch_size=len(y))
        self.log("valid_accuracy", (pred.argmax(1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def make():
    torch.manual_seed(0)
    train, valid = pages(4)
    trainer = Trainer(max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False)
    loaders = (DataLoader(rows, 16, collate_fn=collate) for rows in (train, valid))
    return trainer, Reader(), *loaders


if __name__ == "__main__":
    trainer, *parts = make()
    trainer.fit(*parts)
    print(trainer.callback_metrics)
