"""A GAN: two optimizers by name, a scheduler each, in half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR

from eventtrain import DataBunch, Learner, Runner, TensorLoader
from eventtrain.callbacks import LRScheduler, MixedPrecision

torch.manual_seed(1)
REAL = torch.randn(64, 2) + 3


def judged(model: Any, rows: Any, target: float) -> Any:
    logits = model.judge(rows)
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def made() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"maker": nn.Linear(4, 2), "judge": nn.Linear(2, 1)})
    g = torch.optim.Adam(model.maker.parameters(), lr=1e-2)
    return model, {"g": g, "d": torch.optim.SGD(model.judge.parameters(), lr=0.1)}


class Gan(Runner):
    def one_batch(self) -> None:
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


def program(model: Any, opts: Any, precision: Any) -> Any:
    schedules = [
        LRScheduler(lambda opt: ExponentialLR(opt, 0.9), optimizer="g", step="epoch"),
        LRScheduler(lambda opt: CosineAnnealingLR(opt, 12), optimizer="d"),
    ]
    data = DataBunch(TensorLoader(REAL, torch.zeros(64), bs=16))
    return Gan([*schedules, precision]).fit(3, Learner(model, opts, judged, data))


def by_hand(model: Any, opts: Any, dtype: torch.dtype, scaler: Any) -> None:
    slow, fast = ExponentialLR(opts["g"], 0.9), CosineAnnealingLR(opts["d"], 12)
    for _ in range(3):
        for x in REAL.split(16):
            with torch.autocast("cpu", dtype):
                fake = model.maker(torch.rand(16, 4))
                loss = judged(model, x, 1.0) + judged(model, fake.detach(), 0.0)
            opts["d"].zero_grad()
            scaler.scale(loss).backward()
            scaler.step(opts["d"])
            with torch.autocast("cpu", dtype):
                loss = judged(model, fake, 1.0)
            opts["g"].zero_grad()
            scaler.scale(loss).backward()
            scaler.step(opts["g"])
            scaler.update()
            fast.step()
        slow.step()


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_weights_and_rates_are_those_of_a_loop_by_hand(name: Any) -> None:
    (ours, opts), (theirs, others) = made(), made()
    scalers = [
        torch.amp.GradScaler("cpu", enabled=name == "fp16", init_scale=256.0) for _ in range(2)
    ]
    precision = MixedPrecision(name, *([scalers[0]] if name == "fp16" else []))
    torch.manual_seed(7)
    assert program(ours, opts, precision).steps == 24
    torch.manual_seed(7)
    dtype = torch.float16 if name == "fp16" else torch.bfloat16
    by_hand(theirs, others, dtype, scalers[1])
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)
    for each in ("g", "d"):
        assert opts[each].param_groups[0]["lr"] == others[each].param_groups[0]["lr"]
