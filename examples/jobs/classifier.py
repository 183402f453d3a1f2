"""A classifier of transformers as it comes: which of several pages a text is from.

Run it as ``python classifier.py FOLDER``.
"""

import sys

import torch
from texts import padded, pages
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, accuracy
from eventtrain.callbacks import Checkpoint, GradientClip, LRScheduler


def collate(rows):
    texts, labels = zip(*rows, strict=True)
    return {**padded(texts), "labels": torch.tensor(labels)}


def make(folder, steps=40):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=256, num_hidden_layers=2, num_labels=4, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, **sizes,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    train, valid = pages(4)
    data = DataBunch(
        DataLoader(train, 16, collate_fn=collate), DataLoader(valid, 16, collate_fn=collate)
    )
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    of = {"pred": lambda run: run.pred.logits, "target": lambda run: run.batch["labels"]}
    run = Runner(
        [
            AvgStatsCallback(accuracy, report=None, **of),
            GradientClip(1.0),
            LRScheduler(lambda opt: get_linear_schedule_with_warmup(opt, 4, steps)),
            Checkpoint(folder, monitor="valid_accuracy", mode="max"),
        ]
    )
    return run, Learner(model, opt, None, data)


if __name__ == "__main__":
    run, learn = make(sys.argv[1])
    for row in run.fit(steps=40, learn=learn, validate_every=10).history:
        print(row)
    print(run.predict(learn, learn.data.valid_dl).logits.argmax(1))
