"""``python -m tests.support.openselfsup_steps FOLDER``: ten steps of the Triplet plug-in in float64.

OpenSelfSup's loop takes them, in a process of its own, as the shims change torch. It leaves ``theirs.pth``
as OpenSelfSup writes it, with the losses and the images of each batch.
"""

import importlib
import logging
import sys
from pathlib import Path

import numpy as np
import torch

from scripts.golden_whole_model import initial, views
from triplet.defaults import recipe
from triplet.openselfsup import settings, shims
from triplet.openselfsup.train import group, quiet
from triplet.pretrain.views import normalize
from triplet.training.distributed import Processes

IMAGES, GROUP, ACCUMULATE, EPOCHS, WARMUP, SEED = 60, 12, 2, 4, 2, 3
HIDDEN, OUTPUTS, SIDES = 48, 24, {"online": (32, 36), "target": (33, 36)}
NECK = f"hid_channels={HIDDEN}", f"out_channels={OUTPUTS}"
SMALL = [
    "gpus=1",
    f"seed={SEED}",
    "use_fp16=false",
    "optimizer_config.use_fp16=false",
    f"total_epochs={EPOCHS}",
    f"optimizer_config.update_interval={ACCUMULATE}",
    f"lr_config.warmup_iters={WARMUP}",
    f"custom_hooks.0.update_interval={ACCUMULATE}",
    f"data.imgs_per_gpu={GROUP}",
    "data.workers_per_gpu=0",
    "model.backbone.depth=18",
    "model.neck.in_channels=512",
    f"model.head.predictor.in_channels={OUTPUTS}",
    *(f"model.{part}.{value}" for part in ("neck", "head.predictor") for value in NECK),
    *(f"model.{name}=[{low},{high},1]" for name, (low, high) in SIDES.items()),
]


def main(folder: Path) -> None:
    alone = Processes(0, 1, torch.device("cpu"))
    configs = shims.locate()
    with group(alone), quiet():
        shims.apply(alone.device)
        config = settings.resolve(recipe("triplet", "openselfsup"), configs, SMALL)
        from mmcv import ConfigDict
        from mmcv.runner import Hook
        from mmcv.utils import import_modules_from_strings

        import_modules_from_strings(**config.custom_imports)
        from openselfsup.apis import set_random_seed, train_model
        from openselfsup.models import build_model

        model = build_model(config.model).double()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(initial(name, tuple(parameter.shape))))
        found = {"indices": [], "loss": [], "learning_rate": []}

        class Recorder(Hook):
            def __init__(self, **_):
                pass

            def after_train_iter(self, runner):
                found["indices"].append(runner.data_batch["index"].tolist())
                found["loss"].append(runner.outputs["log_vars"]["loss"])
                found["learning_rate"].append(runner.current_lr()[0])

        config.custom_hooks = [ConfigDict(each) for each in (*config.custom_hooks, dict(type=Recorder))]
        config.update(work_dir=str(folder), checkpoint_config=None)
        config.log_config.hooks = []
        theirs = importlib.import_module("openselfsup.apis.train")
        theirs.print_log = lambda *_, **__: None
        theirs.get_root_logger = lambda *_: logging.getLogger("quiet")
        pairs = torch.from_numpy(np.stack([views(i) for i in range(IMAGES)]))
        images = normalize(pairs, torch.float64)
        set_random_seed(0)
        train_model(
            model, [[dict(img=images[i], index=i) for i in range(IMAGES)]], config, distributed=True
        )
    torch.save({"state_dict": model.state_dict(), **found}, folder / "theirs.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
