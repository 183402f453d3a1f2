"""The job of examples/jobs/causal_lm.py with Lightning."""

import math
import sys

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from texts import blocks, padded, sentences
from torchdata.stateful_dataloader import StatefulDataLoader
from torchmetrics import MeanMetric
from transformers import LlamaConfig, LlamaForCausalLM, get_linear_schedule_with_warmup


def tokens(batch):
    return (batch["labels"][:, 1:] != -100).sum()


class CausalLM(L.LightningModule):
    def __init__(self):
        super().__init__()
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        self.model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=2, **sizes))
        self.train_loss, self.in_group = MeanMetric(), 0

    def training_step(self, batch, batch_idx):
        loss, count = self.model(**batch).loss, tokens(batch)
        self.train_loss.update(loss, count)
        self.in_group += count
        return loss * count

    def on_before_optimizer_step(self, optimizer):
        for param in self.parameters():
            param.grad *= self.trainer.accumulate_grad_batches / self.in_group
        self.in_group = 0

    def validation_step(self, batch, batch_idx):
        loss = self.model(**batch).loss
        self.log("valid_loss", loss, batch_size=int(tokens(batch)))

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.log("train_loss", self.train_loss.compute())
            self.train_loss.reset()

    def configure_optimizers(self):
        groups = [
            {"params": [p for p in self.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in self.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        opt = torch.optim.AdamW(groups, lr=3e-3)
        schedule = get_linear_schedule_with_warmup(opt, 10, self.trainer.max_steps)
        return [opt], [{"scheduler": schedule, "interval": "step"}]


def make(folder, steps=60, every=20, precision="bf16-mixed", **options):
    torch.manual_seed(0)
    model = CausalLM()
    train = StatefulDataLoader(sentences(200), 8, collate_fn=padded)
    valid = StatefulDataLoader(blocks(48, 16), 8, collate_fn=padded)
    trainer = L.Trainer(
        max_steps=steps,
        precision=precision,
        accumulate_grad_batches=4,
        gradient_clip_val=1.0,
        val_check_interval=every * 4,
        check_val_every_n_epoch=None,
        callbacks=[
            EarlyStopping("valid_loss", patience=5),
            ModelCheckpoint(folder, every_n_train_steps=every, save_last=True),
            ModelCheckpoint(folder, monitor="valid_loss"),
        ],
        **options,
    )
    return trainer, model, train, valid


if __name__ == "__main__":
    trainer, model, train, valid = make(sys.argv[1])
    trainer.fit(model, train, valid, ckpt_path="last")
    numbers = trainer.callback_metrics
    print(numbers["train_loss"], "perplexity", math.exp(numbers["valid_loss"]))
    model.load_state_dict(torch.load(trainer.checkpoint_callbacks[1].best_model_path)["state_dict"])
