"""The job of examples/jobs/timm_images.py with a loop like the one of timm's training script."""

import sys

import timm
import torch
from images import digits
from timm.data import Mixup
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, ModelEmaV3, accuracy
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader


def train_one_epoch(model, loader, opt, mixup, schedule, ema, updates):
    model.train()
    losses = AverageMeter()
    for x, y in loader:
        count = len(x)
        x, y = mixup(x.clone(), y)
        x = x.contiguous(memory_format=torch.channels_last)
        loss = cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
        updates += 1
        ema.update(model, step=updates)
        schedule.step_update(num_updates=updates)
        losses.update(loss.item(), count)
    return losses.avg, updates


@torch.no_grad()
def validate(model, loader):
    model.eval()
    losses, hits = AverageMeter(), AverageMeter()
    for x, y in loader:
        x = x.contiguous(memory_format=torch.channels_last)
        pred = model(x)
        losses.update(cross_entropy(pred, y).item(), len(x))
        hits.update(accuracy(pred, y)[0].item(), len(x))
    return losses.avg, hits.avg / 100


def train(name, epochs, steps):
    torch.manual_seed(0)
    size = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, in_chans=1, num_classes=10, **size)
    train_rows, valid_rows = digits()
    train_dl, valid_dl = DataLoader(train_rows, 64, shuffle=True), DataLoader(valid_rows, 64)
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = CosineLRScheduler(opt, steps, warmup_t=5, warmup_lr_init=1e-5, t_in_epochs=False)
    mixup = Mixup(mixup_alpha=0.8, label_smoothing=0.1, num_classes=10)
    model = model.to(memory_format=torch.channels_last)
    ema = ModelEmaV3(model, decay=0.9)
    rows, updates = [], 0
    for epoch in range(epochs):
        loss, updates = train_one_epoch(model, train_dl, opt, mixup, schedule, ema, updates)
        rows.append((epoch, loss, *validate(ema.module, valid_dl)))
        print(*rows[-1])
    return model, ema.module, rows


if __name__ == "__main__":
    train(sys.argv[1], epochs=4, steps=32)
