"""The job of examples/jobs/graphs.py with Lightning."""

import torch
from lightning.pytorch import LightningModule, Trainer
from small_graphs import small_graphs
from torch import nn
from torch.nn.functional import cross_entropy
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_mean_pool


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.conv, self.out = GCNConv(2, 16), nn.Linear(16, 2)

    def forward(self, batch):
        hidden = self.conv(batch.x, batch.edge_index).relu()
        return self.out(global_mean_pool(hidden, batch.batch))

    def training_step(self, batch, batch_idx):
        loss = cross_entropy(self(batch), batch.y)
        count = batch.num_graphs
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=count)
        return loss

    def validation_step(self, batch, batch_idx):
        pred, count = self(batch), batch.num_graphs
        self.log("valid_loss", cross_entropy(pred, batch.y), batch_size=count)
        hits = (pred.argmax(1) == batch.y).float().mean()
        self.log("valid_accuracy", hits, batch_size=count)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def make():
    torch.manual_seed(0)
    train, valid = small_graphs()
    trainer = Trainer(max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False)
    return trainer, Net(), DataLoader(train, 8), DataLoader(valid, 8)


if __name__ == "__main__":
    trainer, *parts = make()
    trainer.fit(*parts)
    print(trainer.callback_metrics)
