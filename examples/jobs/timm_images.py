"""A model of timm with its mixup and its schedule, averaged weights and channels last.

Run it as ``python timm_images.py test_resnet`` or ``python timm_images.py test_vit``.
"""

import sys

import timm
import torch
from images import digits
from timm.data import Mixup
from timm.scheduler import CosineLRScheduler
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, accuracy
from eventtrain.callbacks import EMA, BatchTransform, ChannelsLast, LRScheduler


def make(name, steps):
    torch.manual_seed(0)
    size = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, in_chans=1, num_classes=10, **size)
    train, valid = digits()
    data = DataBunch(DataLoader(train, 64, shuffle=True), DataLoader(valid, 64))
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    updates = {"warmup_t": 5, "warmup_lr_init": 1e-5, "t_in_epochs": False}
    mixup = Mixup(mixup_alpha=0.8, label_smoothing=0.1, num_classes=10)
    run = Runner(
        [
            AvgStatsCallback(accuracy, target=lambda run: run.batch[1]),
            BatchTransform(lambda x, y: mixup(x.clone(), y)),
            ChannelsLast(),
            LRScheduler(lambda opt: CosineLRScheduler(opt, steps, **updates)),
            EMA(0.9, buffers=True),
        ]
    )
    return run, Learner(model, opt, cross_entropy, data)


if __name__ == "__main__":
    run, learn = make(sys.argv[1], steps=32)
    run.fit(4, learn)
