"""A GAN: two optimizers by name, a scheduler each, in half precision."""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR

from eventtrain import DataBunch, Learner, Runner, TensorLoader
from eventtrain.callbacks import LRScheduler, MixedPrecision


def judged(model, rows, target):
    logits = model.judge(rows)
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


class Gan(Runner):
    def one_batch(self):
        model, precision = self.model, self.mixed_precision
        fake = self.pred = model.maker(torch.rand(len(self.xb), 4))
        self.emit.after_pred()
        self.loss = judged(model, self.xb, 1.0) + judged(model, fake.detach(), 0.0)
        self.emit.after_loss()
        if not self.in_train:
            return
        self.opt["d"].zero_grad()
        self.loss.backward()
        self.emit.after_backward()
        self.optimizer_step("d")
        with precision.autocast():
            fooled = judged(model, fake, 1.0)
        precision.scale(fooled).backward()
        self.optimizer_step("g")


def make(precision, real):
    torch.manual_seed(0)
    model = nn.ModuleDict({"maker": nn.Linear(4, 2), "judge": nn.Linear(2, 1)})
    g = torch.optim.Adam(model.maker.parameters(), lr=1e-2)
    d = torch.optim.SGD(model.judge.parameters(), lr=0.1)
    slow = LRScheduler(lambda opt: ExponentialLR(opt, 0.9), optimizer="g", step="epoch")
    fast = LRScheduler(lambda opt: CosineAnnealingLR(opt, 12), optimizer="d")
    data = DataBunch(TensorLoader(real, torch.zeros(len(real)), bs=16))
    return Gan([slow, fast, precision]), Learner(model, {"g": g, "d": d}, judged, data)


if __name__ == "__main__":
    run, learn = make(MixedPrecision("bf16"), torch.randn(64, 2) + 3)
    run.fit(3, learn)
