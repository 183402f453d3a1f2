"""The job of examples/jobs/timm_images.py with Lightning."""

import sys

import lightning as L
import timm
import torch
from images import digits
from lightning.pytorch.callbacks import EMAWeightAveraging
from timm.data import Mixup
from timm.scheduler import CosineLRScheduler
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchmetrics.functional import accuracy


class Images(L.LightningModule):
    def __init__(self, name, steps):
        super().__init__()
        size = {"img_size": 32} if "vit" in name else {}
        model = timm.create_model(name, in_chans=1, num_classes=10, **size)
        self.model = model.to(memory_format=torch.channels_last)
        self.mixup = Mixup(mixup_alpha=0.8, label_smoothing=0.1, num_classes=10)
        self.steps = steps

    def step(self, x, y, labels, phase):
        pred = self.model(x.contiguous(memory_format=torch.channels_last))
        loss = cross_entropy(pred, y)
        hits = accuracy(pred, labels, "multiclass", num_classes=10)
        numbers = {f"{phase}_loss": loss, f"{phase}_accuracy": hits}
        self.log_dict(numbers, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.step(*self.mixup(x.clone(), y), y, "train")

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.step(x, y, y, "valid")

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)
        schedule = CosineLRScheduler(
            opt, self.steps, warmup_t=5, warmup_lr_init=1e-5, t_in_epochs=False
        )
        return [opt], [{"scheduler": schedule, "interval": "step"}]

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step_update(self.global_step)


def make(name, epochs, steps, **options):
    torch.manual_seed(0)
    model = Images(name, steps)
    train, valid = digits()
    loaders = DataLoader(train, 64, shuffle=True), DataLoader(valid, 64)
    trainer = L.Trainer(max_epochs=epochs, callbacks=[EMAWeightAveraging(decay=0.9)], **options)
    return trainer, model, *loaders


if __name__ == "__main__":
    trainer, model, train, valid = make(sys.argv[1], epochs=4, steps=32)
    trainer.fit(model, train, valid)
