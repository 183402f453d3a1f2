"""The job of examples/jobs/detector.py with Lightning."""

import lightning as L
import torch
from images import squares
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator


class Detector(L.LightningModule):
    def __init__(self):
        super().__init__()
        backbone = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(),
        )  # fmt: skip
        backbone.out_channels = 32
        anchors = AnchorGenerator(((24,),), ((1.0,),))
        self.model = FCOS(backbone, 2, min_size=64, max_size=64, anchor_generator=anchors)
        self.found = MeanAveragePrecision()

    def training_step(self, batch, batch_idx):
        losses = self.model(*batch)
        loss = sum(losses.values())
        numbers = {f"train_{name}": each for name, each in {"loss": loss, **losses}.items()}
        self.log_dict(numbers, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch, batch_idx):
        images, targets = batch
        self.found.update(self.model(images), targets)

    def on_validation_epoch_end(self):
        self.log("valid_map_50", self.found.compute()["map_50"], prog_bar=True)
        self.found.reset()

    def predict_step(self, batch, batch_idx):
        return self.model(batch[0])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def batches(images, seed):
    return DataLoader(
        squares(images, seed), 4, collate_fn=lambda rows: tuple(zip(*rows, strict=True))
    )


def make(epochs=10, images=32, **options):
    torch.manual_seed(0)
    trainer = L.Trainer(max_epochs=epochs, **options)
    return trainer, Detector(), batches(images, 0), batches(images, 1)


if __name__ == "__main__":
    trainer, model, train, valid = make()
    trainer.fit(model, train, valid)
    print(trainer.predict(model, valid)[0][0])
