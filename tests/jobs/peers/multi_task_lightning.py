"""The job of examples/jobs/multi_task.py with Lightning."""

import lightning as L
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassF1Score
from two_tasks import two_tasks


class TwoHeads(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.body, self.kind, self.odd = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1)
        kind = MetricCollection(
            {"kind_acc": MulticlassAccuracy(3), "kind_f1": MulticlassF1Score(3)}
        )
        odd = MetricCollection({"odd_auc": BinaryAUROC()})
        self.train_kind, self.valid_kind = kind.clone("train_"), kind.clone("valid_")
        self.train_odd, self.valid_odd = odd.clone("train_"), odd.clone("valid_")

    def step(self, batch, phase, kind_metrics, odd_metrics):
        x, y = batch
        hidden = self.body(x).relu()
        kind, odd = self.kind(hidden), self.odd(hidden)[:, 0]
        kind_loss = cross_entropy(kind, y["kind"])
        odd_loss = binary_cross_entropy_with_logits(odd, y["odd"])
        loss = kind_loss + 0.5 * odd_loss
        numbers = {
            f"{phase}_loss": loss,
            f"{phase}_kind_loss": kind_loss,
            f"{phase}_odd_loss": odd_loss,
            f"{phase}_odd_rate": odd.sigmoid().mean(),
        }
        self.log_dict(numbers, on_step=False, on_epoch=True, batch_size=len(x))
        kind_metrics.update(kind, y["kind"])
        odd_metrics.update(odd, y["odd"].long())
        self.log_dict(kind_metrics, on_step=False, on_epoch=True)
        self.log_dict(odd_metrics, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train", self.train_kind, self.train_odd)

    def validation_step(self, batch, batch_idx):
        self.step(batch, "valid", self.valid_kind, self.valid_odd)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def make(epochs=3, **options):
    torch.manual_seed(0)
    loaders = (DataLoader(batches, batch_size=None) for batches in two_tasks())
    return L.Trainer(max_epochs=epochs, **options), TwoHeads(), *loaders


if __name__ == "__main__":
    trainer, model, train, valid = make()
    trainer.fit(model, train, valid)
    print(trainer.callback_metrics)
