"""The job of examples/jobs/sam.py with Ignite."""

import torch
from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.metrics import Accuracy, Average, Loss
from images import digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader


def make():
    torch.manual_seed(0)
    train, valid = digits(8)
    train_dl, valid_dl = DataLoader(train, 64), DataLoader(valid, 64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    opt = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)

    def step(engine, batch, rho=0.05):
        model.train()
        x, y = batch
        loss = cross_entropy(model(x), y)
        loss.backward()
        params = [p for p in model.parameters() if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        here = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p in params:
                p.add_(p.grad * (rho / (norm + 1e-12)))
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p, value in zip(params, here, strict=True):
                p.copy_(value)
        opt.step()
        opt.zero_grad()
        return loss.item()

    trainer = Engine(step)
    Average().attach(trainer, "loss")
    metrics = {"loss": Loss(cross_entropy), "accuracy": Accuracy()}
    evaluator = create_supervised_evaluator(model, metrics)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine):
        evaluator.run(valid_dl)
        print(engine.state.epoch, engine.state.metrics, evaluator.state.metrics)

    return trainer, evaluator, model, train_dl


if __name__ == "__main__":
    trainer, evaluator, model, train_dl = make()
    trainer.run(train_dl, max_epochs=4)
