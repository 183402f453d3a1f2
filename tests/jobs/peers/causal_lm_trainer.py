"""The job of examples/jobs/causal_lm.py with the Trainer of transformers."""

import math
import sys

import torch
from texts import blocks, padded, sentences
from transformers import (
    EarlyStoppingCallback,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint


def make(folder, steps=60, bf16=True):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=2, **sizes))
    settings = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        bf16=bf16,
        max_steps=steps,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        gradient_accumulation_steps=4,
        max_grad_norm=1.0,
        optim="adamw_torch",
        learning_rate=3e-3,
        weight_decay=0.1,
        lr_scheduler_type="linear",
        warmup_steps=10,
        logging_steps=20,
        eval_strategy="steps",
        eval_steps=20,
        save_strategy="steps",
        save_steps=20,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    return Trainer(
        model,
        settings,
        data_collator=padded,
        train_dataset=sentences(200),
        eval_dataset=blocks(48, 16),
        callbacks=[EarlyStoppingCallback(5)],
    )


if __name__ == "__main__":
    trainer = make(sys.argv[1])
    trainer.train(resume_from_checkpoint=get_last_checkpoint(sys.argv[1]))
    for row in trainer.state.log_history:
        if "loss" in row:
            print(row["step"], row["loss"])
        if "eval_loss" in row:
            print(row["step"], "perplexity", math.exp(row["eval_loss"]))
