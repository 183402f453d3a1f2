"""Several optimizers, and one with a closure, on ranks; see ``forked_ranks``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from forked_ranks import serve


def learner(**options: Any) -> Any:
    import torch
    from torch import nn

    from eventtrain import DataBunch, Learner, TensorLoader

    torch.manual_seed(0)
    x, y = torch.randn(48, 6), torch.randint(0, 4, (48,))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    opt: Any = {
        "body": ("0", lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)),
        "head": ("2", lambda params: torch.optim.Adam(params, lr=0.01)),
    }
    data = DataBunch(TensorLoader(x, y, bs=8), TensorLoader(x[:16], y[:16], bs=8))
    return Learner(model, options.get("opt", opt), nn.functional.cross_entropy, data)


def fit(folder: Path, strategy: Any, epochs: int) -> dict[str, Any]:
    """Train with an optimizer for each half, from the newest checkpoint on."""
    from torch.optim.lr_scheduler import ExponentialLR

    from eventtrain import Distributed, Runner
    from eventtrain.callbacks import Checkpoint, GradientClip, GradStats, LRScheduler

    class Both(Runner):
        def one_batch(self) -> None:
            self.pred = self.learn.call_model(self.xb)
            self.emit.after_pred()
            self.loss = self.learn.compute_loss(self.pred, self.yb)
            self.emit.after_loss()
            if not self.in_train:
                return
            self.loss.backward()
            self.emit.after_backward()
            self.optimizer_step("body")
            self.optimizer_step("head")

    learn = learner()
    schedule = LRScheduler(lambda opt: ExponentialLR(opt, 0.9), optimizer="body")
    callbacks = [Checkpoint(folder), GradientClip(0.5), GradStats(history=True), schedule]
    result = Both([Distributed(strategy), *callbacks]).fit(epochs, learn, resume="auto")
    tensors = learn.model.state_dict().values()
    whole = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in tensors]
    weights = [float(number) for t in whole for number in t.flatten().tolist()]
    row = {key: value for key, value in result.history[-1].items() if key.startswith("grad")}
    return {"weights": weights, "steps": result.steps, "row": row}


def go_on(strategy: str, folder: Path) -> list[dict[str, Any]]:
    """Train for an epoch, and from its checkpoint for another one."""
    return [fit(folder / "checkpoints", strategy, epochs) for epochs in (1, 2)]


def with_closure(folder: Path) -> str:
    """What is said of an optimizer that needs a closure."""
    import torch

    from eventtrain import Distributed, Runner

    learn = learner(opt=lambda params: torch.optim.LBFGS(params))
    try:
        Runner(Distributed("ddp")).fit(1, learn)
    except TypeError as error:
        return str(error)
    return "nothing"


def deeds() -> Mapping[str, Callable[[Path], object]]:
    return {
        "ddp": partial(go_on, "ddp"),
        "fsdp2": partial(go_on, "fsdp2"),
        "closure": with_closure,
    }


if __name__ == "__main__":
    serve(deeds)
