"""A causal language model of transformers: by steps, weighted by tokens, the best weights kept.

Run it as ``python causal_lm.py FOLDER``; killed at any moment, the same line goes on.
"""

import math
import sys

import torch
from texts import blocks, padded, sentences
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, get_linear_schedule_with_warmup

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner
from eventtrain.callbacks import (
    Checkpoint,
    EarlyStopping,
    GradientAccumulation,
    GradientClip,
    LRScheduler,
    MixedPrecision,
)


def tokens(batch):
    return (batch["labels"][:, 1:] != -100).sum()


def make(folder, steps=60, bf16=True, every_seconds=600):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=2, **sizes))
    data = DataBunch(
        DataLoader(sentences(200), 8, collate_fn=padded),
        DataLoader(blocks(48, 16), 8, collate_fn=padded),
    )
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    opt = torch.optim.AdamW(groups, lr=3e-3)
    run = Runner(
        [
            AvgStatsCallback(report=None),
            *([MixedPrecision("bf16")] if bf16 else []),
            GradientAccumulation(4),
            GradientClip(1.0),
            LRScheduler(lambda opt: get_linear_schedule_with_warmup(opt, 10, steps)),
            EarlyStopping("valid_loss", patience=5),
            Checkpoint(folder, every_seconds=every_seconds, monitor="valid_loss"),
        ]
    )
    return run, Learner(model, opt, None, data, weight=tokens)


if __name__ == "__main__":
    run, learn = make(sys.argv[1])
    result = run.fit(steps=60, learn=learn, validate_every=20, resume="auto")
    for row in result.history:
        print(row["step"], row["train_loss"], "perplexity", math.exp(row["valid_loss"]))
