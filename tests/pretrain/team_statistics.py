"""Two teams of one process: ``python team_statistics.py FOLDER IMAGES`` in two processes."""

import sys
from pathlib import Path

import torch
from torch import nn

from triplet.images import open_images
from triplet.pretrain.config import Loss, Optimizer, Pretrain, Schedule
from triplet.pretrain.trainer import average_statistics
from triplet.pretrain.unreadable import Unreadable
from triplet.training.distributed import join

folder = Path(sys.argv[1])
with join() as processes:
    norm = nn.BatchNorm1d(3)
    norm.running_mean.fill_(processes.rank)
    average_statistics(norm, processes)
    assert norm.running_mean.tolist() == [0.5] * 3
    assert norm.running_var.tolist() == [1.0] * 3

    config = Pretrain(
        loss=Loss(group=11),
        optimizer=Optimizer(groups=1, accumulate=2),
        schedule=Schedule(epochs=10),
        unreadable=0.05,
    )
    unreadable = Unreadable(folder, open_images(Path(sys.argv[2])), config, processes)
    for found in ({4}, {4, 7 + processes.rank}):  # both meet the same one, then each one of its own
        unreadable.add(found) if processes.mean(torch.tensor([float(unreadable.news(found))])) else None
