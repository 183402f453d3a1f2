"""The job of examples/jobs/lora.py with the Trainer of transformers."""

import sys

import torch
from peft import LoraConfig, get_peft_model
from texts import blocks, padded, sentences
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


def make(folder, epochs=3):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=2, **sizes))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    settings = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        num_train_epochs=epochs,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        max_grad_norm=1.0,
        optim="adamw_torch",
        learning_rate=1e-2,
        weight_decay=0.01,
        lr_scheduler_type="constant",
        logging_strategy="epoch",
        eval_strategy="epoch",
        save_strategy="steps",
        save_steps=5,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    return Trainer(
        model,
        settings,
        data_collator=padded,
        train_dataset=sentences(80),
        eval_dataset=blocks(48, 16),
    )


if __name__ == "__main__":
    trainer = make(sys.argv[1])
    trainer.train(resume_from_checkpoint=get_last_checkpoint(sys.argv[1]))
    for row in trainer.state.log_history:
        print(row)
