"""The job of examples/jobs/stream.py with Lightning."""

import sys

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from texts import Stream, blocks
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from torchmetrics import MeanMetric


class NextByte(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(256, 32), nn.Linear(32, 256))
        self.train_loss = MeanMetric()

    def loss(self, batch):
        x, y = batch
        return cross_entropy(self.net(x).mT, y)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.train_loss.update(loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("valid_loss", self.loss(batch), prog_bar=True)

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.log("train_loss", self.train_loss.compute(), prog_bar=True)
            self.train_loss.reset()

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = OneCycleLR(opt, 1e-2, total_steps=self.trainer.max_steps)
        return [opt], [{"scheduler": schedule, "interval": "step"}]


def make(folder, steps=200, every=50, workers=0, **options):
    torch.manual_seed(0)
    model = NextByte()
    train = StatefulDataLoader(Stream(blocks(33, 400), seed=1), 8, num_workers=workers)
    valid = DataLoader([(piece[:-1], piece[1:]) for piece in blocks(33, 10)])
    trainer = L.Trainer(
        max_steps=steps,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        callbacks=[
            ModelCheckpoint(folder, every_n_train_steps=10, save_last=True),
            ModelCheckpoint(folder, monitor="valid_loss"),
        ],
        **options,
    )
    return trainer, model, train, valid


if __name__ == "__main__":
    trainer, model, train, valid = make(sys.argv[1])
    trainer.fit(model, train, valid, ckpt_path="last")
