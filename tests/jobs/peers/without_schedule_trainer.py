"""The job of examples/jobs/without_schedule.py with the Trainer of transformers."""

import sys

import torch
from images import digits
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x, labels):
        logits = self.model(x)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


def collate(rows):
    images, labels = zip(*rows, strict=True)
    return {"x": torch.stack(images), "labels": torch.stack(labels)}


def accuracy(found):
    return {"accuracy": (found.predictions.argmax(1) == found.label_ids).mean()}


def make(folder):
    torch.manual_seed(0)
    train, valid = digits(8)
    settings = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        max_steps=60,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        optim="schedule_free_adamw",
        learning_rate=0.02,
        lr_scheduler_type="constant",
        warmup_steps=5,
        max_grad_norm=0.0,
        logging_steps=10,
        eval_strategy="steps",
        eval_steps=10,
        save_strategy="steps",
        save_steps=10,
        save_total_limit=2,
        metric_for_best_model="eval_loss",
        report_to="none",
        remove_unused_columns=False,
    )
    return Trainer(
        Classifier(),
        settings,
        data_collator=collate,
        train_dataset=train,
        eval_dataset=valid,
        compute_metrics=accuracy,
    )


if __name__ == "__main__":
    trainer = make(sys.argv[1])
    trainer.train(resume_from_checkpoint=get_last_checkpoint(sys.argv[1]))
