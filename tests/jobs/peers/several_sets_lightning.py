"""The job of examples/jobs/several_sets.py with Lightning."""

import json
import sys

import torch
from images import digits, noisy
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = cross_entropy(self.model(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        x, y = batch
        pred, name = self.model(x), ("clean", "noisy")[dataloader_idx]
        found = {
            f"valid_{name}_loss": cross_entropy(pred, y),
            f"valid_{name}_accuracy": (pred.argmax(1) == y).float().mean(),
        }
        self.log_dict(found, add_dataloader_idx=False)

    def configure_optimizers(self):
        opt = torch.optim.SGD(self.parameters(), lr=0.5)
        plateau = {
            "scheduler": ReduceLROnPlateau(opt, factor=0.3, patience=1),
            "monitor": "valid_noisy_loss",
            "interval": "step",
            "frequency": 4,
        }
        return {"optimizer": opt, "lr_scheduler": plateau}


class Rows(Callback):
    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, module):
        if trainer.sanity_checking:
            return
        row = {name: float(each) for name, each in trainer.callback_metrics.items()}
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": trainer.global_step, **row}) + "\n")


def make(folder, steps=200):
    torch.manual_seed(0)
    train, valid = digits(8)
    trainer = Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_steps=steps,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        logger=[CSVLogger(folder), TensorBoardLogger(folder)],
        callbacks=[
            EMAWeightAveraging(decay=0.9),
            EarlyStopping("valid_noisy_loss", patience=4),
            ModelCheckpoint(folder, monitor="valid_noisy_loss", save_top_k=3, save_last=True),
            Rows(f"{folder}/rows.jsonl"),
        ],
    )
    sets = [DataLoader(valid, 64), DataLoader(noisy(valid), 64)]
    return trainer, Classifier(), DataLoader(train, 64), sets


if __name__ == "__main__":
    trainer, *parts = make(sys.argv[1])
    trainer.fit(*parts, ckpt_path="last")
    print(trainer.checkpoint_callback.best_model_path)
