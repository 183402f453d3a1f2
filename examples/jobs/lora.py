"""A language model of transformers with LoRA by peft: the adapters alone are trained and saved.

Run it as ``python lora.py FOLDER``; killed at any moment, the same line goes on.
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from texts import blocks, padded, sentences
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner
from eventtrain.callbacks import Checkpoint, GradientClip


def tokens(batch):
    return (batch["labels"][:, 1:] != -100).sum()


def make(folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=2, **sizes))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    data = DataBunch(
        DataLoader(sentences(80), 8, collate_fn=padded),
        DataLoader(blocks(48, 16), 8, collate_fn=padded),
    )
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    checkpoint = Checkpoint(folder, every_steps=5, trainable_only=True)
    run = Runner([AvgStatsCallback(report=None), GradientClip(1.0), checkpoint])
    return run, Learner(model, opt, None, data, weight=tokens)


if __name__ == "__main__":
    run, learn = make(sys.argv[1])
    for row in run.fit(3, learn, resume="auto").history:
        print(row)
