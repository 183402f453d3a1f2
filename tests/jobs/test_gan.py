"""A GAN beside a loop written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gan import judged, make
from tests_of_jobs import peer, quiet
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR

from eventtrain.callbacks import MixedPrecision

REAL = torch.randn(64, 2, generator=torch.Generator().manual_seed(1)) + 3


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
    scalers = [
        torch.amp.GradScaler("cpu", enabled=name == "fp16", init_scale=256.0) for _ in range(2)
    ]
    precision = MixedPrecision(name, *([scalers[0]] if name == "fp16" else []))
    (run, ours), (_, theirs) = (make(precision, REAL) for _ in range(2))
    torch.manual_seed(7)
    assert run.fit(3, ours).steps == 24
    torch.manual_seed(7)
    dtype = torch.float16 if name == "fp16" else torch.bfloat16
    by_hand(theirs.model, theirs.opt, dtype, scalers[1])
    for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(p, q)
    for each in ("g", "d"):
        assert ours.opt[each].param_groups[0]["lr"] == theirs.opt[each].param_groups[0]["lr"]


@pytest.fixture
def casts_anew() -> Iterator[None]:
    """Have autocast keep no weight that it has cast, as in Lightning: gradients add otherwise."""
    torch.set_autocast_cache_enabled(False)
    yield
    torch.set_autocast_cache_enabled(True)


@pytest.mark.filterwarnings("ignore")  # of the other framework
@pytest.mark.usefixtures("casts_anew")
def test_weights_and_rates_are_those_of_lightning(tmp_path: Path) -> None:
    run, learn = make(MixedPrecision("bf16"), REAL)
    torch.manual_seed(7)
    run.fit(3, learn)
    trainer, model, data = peer("gan_lightning", "lightning").make(
        "bf16-mixed", REAL, **quiet(tmp_path)
    )
    data.generator = torch.Generator()  # or it draws a seed for workers from what makes the noise
    torch.manual_seed(7)
    trainer.fit(model, data)
    for part, other in ((learn.model.maker, model.maker), (learn.model.judge, model.judge)):
        for p, q in zip(part.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q)
    for each, other in zip(("g", "d"), trainer.optimizers, strict=True):
        assert learn.opt[each].param_groups[0]["lr"] == other.param_groups[0]["lr"]


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_in_place_of_float16_lightning_takes_bfloat16_on_the_cpu(tmp_path: Path) -> None:
    trainer, _, _ = peer("gan_lightning", "lightning").make("16-mixed", REAL, **quiet(tmp_path))
    assert trainer.precision == "bf16-mixed"
