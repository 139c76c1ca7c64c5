"""The whole pipeline in small: the commands of the real job, one after the other."""

import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from triplet import cli, coco, records
from triplet.config import Settings, load
from triplet.progress import say
from triplet.pull.drawn import Drawn
from triplet.pull.subset import Subset


class Demo(Settings):
    """configs/demo.yaml: what is drawn, and how the rows are trained."""

    data: Drawn
    subset: Subset
    """What is taken of real data."""
    pretrain: Path
    """Config of the pretraining."""
    detection: Path
    """Detectron2 config of the finetuning."""
    rows: dict[str, list[str]]
    """Row -> overrides of its pretraining."""
    seeds: Annotated[list[int], Field(min_length=1)]


def demo(
    config: Path,
    *,
    data: Path | None = None,
    images: Path | None = None,
    seeds: Sequence[int] | None = None,
    force: bool = False,
) -> int:
    """Run every stage for every row and seed, then the report.

    Args:
        config: configs/demo.yaml.
        data: a folder in COCO 2017's layout, of which a subset is used instead of drawn images.
        images: a folder of images to pretrain on; with ``data`` alone, the subset's train images.
        seeds: instead of the config's.
        force: run again what is done.

    Returns:
        The exit code of the first stage that failed, else 0.
    """
    if not torch.cuda.is_available():  # even where there is a GPU whose driver is too old
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    settings = load(config, Demo)
    began = time.monotonic()
    again = ["--force"] if force else []
    name = "demo" if data is None else f"demo-{data.resolve().name}"
    if data is None:
        pull = ["pull", "demo", "--config", str(config)]
        unlabelled = images or Path("demo/unlabelled")
    else:
        pull = ["pull", "subset", "--config", str(config), "--from", str(data), "--name", name]
        unlabelled = images or Path(f"{name}/train2017")
    if code := _call([*pull, *again]):
        return code
    classes = len(coco.read(records.root("datasets") / name, "train2017")["categories"])
    for seed in seeds or settings.seeds:
        for row, overrides in settings.rows.items():
            run = ["--run", f"{name}/seed{seed}/{row}"]
            detection = ["--config", str(settings.detection)]
            for command in (
                ["pretrain", *run, "--config", str(settings.pretrain), "--data", str(unlabelled),
                 f"seed={seed}", *overrides],
                ["convert", *run, *detection],
                ["finetune", *run, *detection, "--data", name, "--seed", str(seed),
                 f"MODEL.ROI_HEADS.NUM_CLASSES={classes}"],
                ["eval", *run],
            ):  # fmt: skip
                if code := _call([*command[:3], *again, *command[3:]]):
                    return code
    code = _call(["report"])
    say(f"demo: {time.monotonic() - began:.0f} s in all")
    return code


def _call(command: list[str]) -> int:
    say(f"\n$ triplet {shlex.join(command)}")
    return cli.main(command)
