"""What a user writes, for type checkers: each line that ends in "# error" is one, and no other."""

# pyright: standard

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from eventtrain import (
    AvgStats,
    AvgStatsCallback,
    Callback,
    DataBunch,
    Learner,
    Runner,
    TensorLoader,
    handler,
)
from eventtrain.callbacks import Checkpoint, EarlyStopping

x, y = torch.randn(32, 4), torch.randint(2, (32,))
data = DataBunch(TensorLoader(x, y, 8), TensorLoader(x, y, 8))
model = torch.nn.Linear(4, 2)
learn = Learner(model, torch.optim.SGD(model.parameters(), lr=0.1), cross_entropy, data)
run = Runner([AvgStatsCallback(), EarlyStopping("valid_loss"), Checkpoint("checkpoints")])


# Events


@run.on("after_loss", every=100, during="train")
def show(run: Runner) -> None:
    loss: float = run.loss.detach().item()
    print(run.epoch + 1, run.batch_index + 1, run.phase.upper(), loss)
    run.loss.detached()  # error


@run.on("after_bach")  # error
def misspelled(run: Runner) -> None: ...


@run.on(("after_loss", "after_step"))
def two(run: Runner) -> None: ...


@run.on(("after_loss", "after_sep"))  # error
def one_of_two(run: Runner) -> None: ...


run.on("after_epoch", lambda run: print(run.history[-1]), priority=-10, before="avg_stats")
run.on("after_epoch", lambda run: None, priorty=-10)  # error
run.on("after_epoch", lambda run: None, on_error="ignore")  # error
run.on("after_epoch", lambda run: None, ranks="one")  # error
run.on("after_epoch", lambda run: None, background=True, full="drop", queue=10)
run.on("after_epoch", lambda run: None, background=True, full="wiat")  # error
run.bus.on("after_fitt", lambda run: None)  # error


class Trace(Callback):
    @handler(during="train", priority=5)
    def after_loss(self) -> None: ...

    @handler("after_step", during="training")  # error
    def stepped(self) -> None: ...

    @handler("afterstep")  # error
    def other(self) -> None: ...


# Phases and scopes

run.on("after_batch", show, during="validate")
run.on("after_batch", show, during="valid")  # error
run.token.cancel("epoch", "plateau")
run.token.cancel("epochs", "plateau")  # error
run.token.cancel_after(60, "fit")
run.token.cancel_after(60, "fits")  # error


# Events and scopes of one's own

drawn = run.bus.declare("after_sample", "images have been drawn")
run.on(drawn, show)
run.on(run.bus.signal("after_sample"), show)
evolve = run.bus.declare_scope("evolve", inside="epoch", is_phase=True)
run.on(run.bus.signal("begin_evolve"), show)
run.on("after_loss", lambda run: None, during=evolve)
run.token.cancel(evolve, "enough")


# Callbacks and results

averages: AvgStats = run[AvgStatsCallback].train_stats
number: int = run[AvgStatsCallback].train_stats  # error
run[Checkpoint].folder.exists()
result = run.fit(2, learn)
outcome: str = result.outcome
first: float = result.history[0]["valid_loss"]
print(result.outcom)  # error
run.fit("two", learn)  # error
