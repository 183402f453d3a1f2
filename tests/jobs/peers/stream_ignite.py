"""The job of examples/jobs/stream.py with Ignite."""

import sys
from pathlib import Path

import torch
from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.handlers import Checkpoint, DiskSaver, global_step_from_engine
from ignite.metrics import Average, Loss
from texts import Stream, blocks
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader


def next_byte(pred, y):
    return cross_entropy(pred.mT, y)


def make(folder, steps=200, every=50, workers=0):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(256, 32), nn.Linear(32, 256))
    train = StatefulDataLoader(Stream(blocks(33, 400), seed=1), 8, num_workers=workers)
    valid = DataLoader([(piece[:-1], piece[1:]) for piece in blocks(33, 10)])
    opt = torch.optim.AdamW(net.parameters(), lr=1e-2)
    schedule = OneCycleLR(opt, 1e-2, total_steps=steps)
    train_loss = Average()

    def step(engine, batch):
        net.train()
        x, y = batch
        loss = next_byte(net(x), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
        schedule.step()
        train_loss.update(loss.item())
        return loss.item()

    trainer = Engine(step)
    evaluator = create_supervised_evaluator(net, {"loss": Loss(next_byte)})

    @trainer.on(Events.ITERATION_COMPLETED(every=every))
    def validate(engine):
        evaluator.run(valid)
        print(engine.state.iteration, train_loss.compute(), evaluator.state.metrics["loss"])
        train_loss.reset()

    state = {"trainer": trainer, "net": net, "opt": opt, "schedule": schedule, "stream": train}
    saver = DiskSaver(folder, require_empty=False)
    last = Checkpoint(state, saver, n_saved=2)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=10), last)
    best = Checkpoint(
        {"net": net},
        saver,
        "best",
        score_function=Checkpoint.get_default_score_fn("loss", -1.0),
        global_step_transform=global_step_from_engine(trainer, Events.ITERATION_COMPLETED),
    )
    evaluator.add_event_handler(Events.COMPLETED, best)
    saved = sorted(Path(folder).glob("checkpoint_*.pt"), key=lambda path: path.stat().st_mtime)
    if saved:
        Checkpoint.load_objects(state, torch.load(saved[-1]))
    return trainer, net, train


if __name__ == "__main__":
    trainer, net, train = make(sys.argv[1])
    trainer.run(train, max_epochs=1, epoch_length=200)
