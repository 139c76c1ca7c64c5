"""Pretrainings that take seconds: their settings, what they log, and their loss written down again."""

import json

import torch
from torch.nn import functional as F

from triplet.config import parse
from triplet.pretrain.config import Loss, Optimizer, Pretrain, Schedule, Views
from triplet.training import checkpoint
from triplet.training.distributed import Processes

ALONE = Processes(0, 1, torch.device("cpu"))
SMALL = """
model: {depth: 18, width: 8, hidden: 16, outputs: 8}
views: {size: 32, online: {smallest: 32, largest: 48}, target: {smallest: 32, largest: 48}}
loss: {group: 12}
optimizer: {learning_rate: 0.3, groups: 1, accumulate: 2}
schedule: {epochs: 6, warmup_epochs: 1}
workers: 0
checkpoint_every: 3
"""


def settings(method, **more):
    """Two groups of 12 a step, 6 steps."""
    return parse(
        {
            "method": method,
            "model": {"depth": 18, "width": 8, "hidden": 16, "outputs": 8},
            "views": {"size": 32, "patches": {"resize": 120, "crop": 105, "jitter": 3}},
            "loss": {"group": 12},
            "contrastive": {"queue": 48, "negatives": 10, "momentum": 0.5},
            "batch_norm": "group" if method in ("moco", "relative-loc") else "shared",
            "optimizer": {
                "name": "lars" if method in ("byol", "simclr") else "sgd",
                "learning_rate": 0.05,
                "groups": 2,
                "accumulate": 1,
            },
            "schedule": {"epochs": 3, "warmup_epochs": 1},
            "workers": 0,
            **more,
        },
        Pretrain,
        "test",
    )


def laid_out(group=11, groups=1, accumulate=1, epochs=2, **others):
    """Settings that decide how a step is laid out, and views of 32 pixels."""
    return Pretrain(
        loss=Loss(group=group),
        optimizer=Optimizer(groups=groups, accumulate=accumulate),
        schedule=Schedule(epochs=epochs, warmup_epochs=0),
        views=Views(size=32),
        **others,
    )


def metrics(places, run):
    """The lines of a pretraining's metrics."""
    text = (places / "checkpoints" / run / "pretrain" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def newest_step(folder):
    """The step of the newest checkpoint of a stage, 0 without any."""
    return max((checkpoint.step_of(path) for path in folder.glob("step_*.pth")), default=0)


def row_by_row(prediction, target, gamma=2.0, margin=100.0, nearest=10, skip=1):
    """The formula of the recipe, a row at a time."""
    p, z = F.normalize(prediction, dim=1), F.normalize(target, dim=1)
    losses = []
    for i in range(len(p)):
        distances = -2 * z @ p[i]
        others = torch.cat([distances[:i], distances[i + 1 :]]).sort().values
        deputy = others[skip:nearest].mean()
        losses.append(F.relu(gamma * distances[i] - deputy + margin))
    return torch.stack(losses).mean()
