"""The job of examples/jobs/classifier.py with Lightning."""

import sys

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from texts import padded, pages
from torch.utils.data import DataLoader
from torchmetrics.functional import accuracy
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup


def collate(rows):
    texts, labels = zip(*rows, strict=True)
    return {**padded(texts), "labels": torch.tensor(labels)}


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        config = BertConfig(
            vocab_size=256, num_hidden_layers=2, num_labels=4, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, **sizes,
        )  # fmt: skip
        self.model = BertForSequenceClassification(config)

    def step(self, batch, phase, **when):
        out, labels = self.model(**batch), batch["labels"]
        hits = accuracy(out.logits, labels, "multiclass", num_classes=4)
        numbers = {f"{phase}_loss": out.loss, f"{phase}_accuracy": hits}
        self.log_dict(numbers, prog_bar=True, batch_size=len(labels), **when)
        return out.loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train", on_epoch=True)

    def validation_step(self, batch, batch_idx):
        self.step(batch, "valid")

    def predict_step(self, batch, batch_idx):
        return self.model(**batch).logits.argmax(1)

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.0)
        schedule = get_linear_schedule_with_warmup(opt, 4, self.trainer.max_steps)
        return [opt], [{"scheduler": schedule, "interval": "step"}]


def make(folder, steps=40, every=10, **options):
    torch.manual_seed(0)
    model = Classifier()
    train, valid = (DataLoader(rows, 16, collate_fn=collate) for rows in pages(4))
    trainer = L.Trainer(
        max_steps=steps,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        callbacks=[ModelCheckpoint(folder, monitor="valid_accuracy", mode="max")],
        **options,
    )
    return trainer, model, train, valid


if __name__ == "__main__":
    trainer, model, train, valid = make(sys.argv[1])
    trainer.fit(model, train, valid)
    print(torch.cat(trainer.predict(model, valid, ckpt_path="best", weights_only=False)))
