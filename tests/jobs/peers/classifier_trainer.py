"""The job of examples/jobs/classifier.py with the Trainer of transformers."""

import sys

import torch
from texts import padded, pages
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)


def collate(rows):
    texts, labels = zip(*rows, strict=True)
    return {**padded(texts), "labels": torch.tensor(labels)}


def accuracy(found):
    return {"accuracy": (found.predictions.argmax(1) == found.label_ids).mean()}


def make(folder, steps=40):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=256, num_hidden_layers=2, num_labels=4, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, **sizes,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    train, valid = pages(4)
    settings = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        max_steps=steps,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        max_grad_norm=1.0,
        optim="adamw_torch",
        learning_rate=3e-3,
        weight_decay=0.0,
        lr_scheduler_type="linear",
        warmup_steps=4,
        logging_steps=10,
        eval_strategy="steps",
        eval_steps=10,
        save_strategy="steps",
        save_steps=10,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_accuracy",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    return Trainer(
        model,
        settings,
        data_collator=collate,
        train_dataset=train,
        eval_dataset=valid,
        compute_metrics=accuracy,
    )


if __name__ == "__main__":
    trainer = make(sys.argv[1])
    trainer.train()
    for row in trainer.state.log_history:
        print(row)
    print(trainer.predict(trainer.eval_dataset).predictions.argmax(1))
