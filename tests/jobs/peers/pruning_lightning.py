"""The job of examples/jobs/pruning.py with Lightning."""

import optuna
import torch
from images import digits
from lightning.pytorch import LightningModule, Trainer
from optuna_integration import PyTorchLightningPruningCallback
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader


class Classifier(LightningModule):
    def __init__(self, width, lr):
        super().__init__()
        self.lr = lr
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        return cross_entropy(self.model(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("valid_accuracy", (self.model(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def objective(trial):
    torch.manual_seed(0)
    width = trial.suggest_int("width", 4, 64)
    train, valid = digits(8)
    model = Classifier(width, trial.suggest_float("lr", 1e-3, 3.0, log=True))
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        callbacks=PyTorchLightningPruningCallback(trial, monitor="valid_accuracy"),
    )
    trainer.fit(model, DataLoader(train, 64), DataLoader(valid, 64))
    return trainer.callback_metrics["valid_accuracy"].item()


def search(trials):
    sampler, pruner = optuna.samplers.TPESampler(seed=0), optuna.pruners.MedianPruner(2)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    study.optimize(objective, trials)
    return study


if __name__ == "__main__":
    print(search(20).best_trial)
