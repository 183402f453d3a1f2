"""The job of examples/jobs/gan.py with Lightning."""

import lightning as L
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR
from torch.utils.data import DataLoader


class Gan(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.maker, self.judge = nn.Linear(4, 2), nn.Linear(2, 1)

    def judged(self, rows, target):
        logits = self.judge(rows)
        return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    def training_step(self, real, batch_idx):
        g, d = self.optimizers()
        slow, fast = self.lr_schedulers()
        fake = self.maker(torch.rand(len(real), 4, device=self.device))
        loss = self.judged(real, 1.0) + self.judged(fake.detach(), 0.0)
        d.zero_grad()
        self.manual_backward(loss)
        d.step()
        fast.step()
        g.zero_grad()
        self.manual_backward(self.judged(fake, 1.0))
        g.step()
        if self.trainer.is_last_batch:
            slow.step()

    def configure_optimizers(self):
        g = torch.optim.Adam(self.maker.parameters(), lr=1e-2)
        d = torch.optim.SGD(self.judge.parameters(), lr=0.1)
        return [g, d], [ExponentialLR(g, 0.9), CosineAnnealingLR(d, 12)]


def make(precision, real, epochs=3, **options):
    torch.manual_seed(0)
    trainer = L.Trainer(max_epochs=epochs, precision=precision, **options)
    return trainer, Gan(), DataLoader(real, 16)


if __name__ == "__main__":
    trainer, model, data = make("bf16-mixed", torch.randn(64, 2) + 3)
    trainer.fit(model, data)
