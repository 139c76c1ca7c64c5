"""Short float64 trainings of baselines: ``python small_baselines.py FOLDER IMAGES METHOD ...``."""

import sys
from pathlib import Path

import torch

from tests.support.small_pretrain import settings
from triplet import records
from triplet.images import open_images
from triplet.pretrain.trainer import pretrain
from triplet.training.distributed import join

torch.set_default_dtype(torch.float64)
with join() as processes:
    for method in sys.argv[3:]:
        folder = Path(sys.argv[1]) / method
        folder.mkdir(parents=True, exist_ok=True)
        pretrain(
            settings(method, schedule={"epochs": 2, "warmup_epochs": 1}),
            open_images(Path(sys.argv[2])),
            records.Job(folder),
            processes,
        )
