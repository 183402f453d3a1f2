"""A detector of torchvision: lists of images and of targets, losses of its own, mAP.

Run it as ``python detector.py``.
"""

import torch
from images import squares
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner


def make(images=32):
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(),
    )  # fmt: skip
    backbone.out_channels = 32
    anchors = AnchorGenerator(((24,),), ((1.0,),))
    model = FCOS(backbone, 2, min_size=64, max_size=64, anchor_generator=anchors)

    def batches(seed):
        return DataLoader(
            squares(images, seed), 4, collate_fn=lambda rows: tuple(zip(*rows, strict=True))
        )

    data = DataBunch(batches(0), batches(1))
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3)
    run, found = Runner(AvgStatsCallback(report=None)), MeanAveragePrecision()
    run.on("after_loss", lambda run: found.update(run.pred, run.yb), during="validate")

    @run.on("after_validate")
    def note(run):
        run.history[-1]["valid_map_50"] = float(found.compute()["map_50"])
        found.reset()

    return run, Learner(model, opt, None, data, forward=lambda model, batch: model(*batch))


if __name__ == "__main__":
    run, learn = make()
    for row in run.fit(10, learn).history:
        print(row)
    print(run.predict(learn, learn.data.valid_dl)[0])
