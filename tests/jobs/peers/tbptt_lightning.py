"""The job of examples/jobs/tbptt.py with Lightning."""

import sys

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from texts import pieces
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader


class Reader(LightningModule):
    span = 8

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.states = {}
        self.bytes, self.cell = nn.Embedding(256, 16), nn.GRU(16, 32, batch_first=True)
        self.out = nn.Linear(32, 256)

    def forward(self, x, state):
        hidden, state = self.cell(self.bytes(x), state)
        return self.out(hidden).mT, state

    def spans(self, batch, name):
        x, y = batch
        for each, target in zip(x.split(self.span, 1), y.split(self.span, 1), strict=True):
            pred, state = self(each, self.states.get(name))
            self.states[name] = state.detach()
            loss = cross_entropy(pred, target)
            self.log(f"{name}_loss", loss, on_step=False, on_epoch=True)
            yield loss

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        for loss in self.spans(batch, "train"):
            opt.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(opt, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            opt.step()

    def validation_step(self, batch, batch_idx):
        for _ in self.spans(batch, "valid"):
            pass

    def on_train_epoch_start(self):
        self.states.pop("train", None)

    def on_validation_epoch_start(self):
        self.states.pop("valid", None)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["states"] = dict(self.states)

    def on_load_checkpoint(self, checkpoint):
        self.states = dict(checkpoint["states"])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def make(folder):
    torch.manual_seed(0)
    checkpoint = ModelCheckpoint(folder, save_last=True)
    trainer = Trainer(max_epochs=5, accelerator="cpu", logger=False, callbacks=checkpoint)
    return trainer, Reader(), *(DataLoader(each, batch_size=None) for each in pieces(length=32))


if __name__ == "__main__":
    trainer, *parts = make(sys.argv[1])
    trainer.fit(*parts, ckpt_path="last")
    print(trainer.callback_metrics)
