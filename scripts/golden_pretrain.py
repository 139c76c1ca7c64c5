"""Write the settings of the authors' pretraining configs, by the kit's names, for the report and its tests.

A clone of theirs, and the run (seconds), from the root of the kit:

    git clone https://github.com/wanggrun/triplet /tmp/authors
    git -C /tmp/authors checkout c1bbaa9
    .venv/bin/python scripts/golden_pretrain.py /tmp/authors

Their configs are Python: run it on this commit alone. What stands in their code and in no config (the
truncation, the resolutions, the margin) is not here: tests/pretrain/test_authors.py compares that.
"""

import argparse
import json
import runpy
from pathlib import Path
from typing import Any

KIT = Path(__file__).parents[1]
OUTPUT = KIT / "configs" / "released" / "pretrain.json"
GPUS = {"r50_bs4096_accumulate4_ep10_fp16_triplet_gpu3090_sysu30k": 4}
"""By config where it is not the 8 of the command in their README; the authors ran SYSU-30k on 4."""


def translate(theirs: dict[str, Any], gpus: int) -> dict[str, Any]:
    """The settings of triplet/pretrain/config.py that a config of theirs fixes, by dotted name."""
    model, lars, rates = theirs["model"], theirs["optimizer"], theirs["lr_config"]
    crop, _, jitter, grey, blur, solarise = theirs["train_pipeline1"][:6]
    second = theirs["train_pipeline2"]
    colours, radii = jitter["transforms"][0], blur["transforms"][0]
    precision = "float16" if theirs["use_fp16"] else "float32"
    return {
        "method": "triplet",
        "model.depth": model["backbone"]["depth"],
        "model.hidden": model["neck"]["hid_channels"],
        "model.outputs": model["neck"]["out_channels"],
        "views.size": crop["size"],
        "views.jitter": jitter["p"],
        **{f"views.{name}": colours[name] for name in ("brightness", "contrast", "saturation", "hue")},
        "views.grayscale": grey["p"],
        "views.blur": [blur["p"], second[4]["p"]],
        "views.blur_radius": [radii["sigma_min"], radii["sigma_max"]],
        "views.solarize": [solarise["p"], second[5]["p"]],
        "loss.group": theirs["data"]["imgs_per_gpu"],
        "optimizer.learning_rate": lars["lr"],
        "optimizer.momentum": lars["momentum"],
        "optimizer.weight_decay": lars["weight_decay"],
        "optimizer.groups": gpus,
        "optimizer.accumulate": theirs["update_interval"],
        "schedule.epochs": theirs["total_epochs"],
        "schedule.warmup_epochs": rates["warmup_iters"],
        "schedule.warmup_ratio": rates["warmup_ratio"],
        "schedule.ema_base": model["base_momentum"],
        "precision": precision,
    }


def main() -> None:
    """Translate all of theirs and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("authors", type=Path, help="checkout")
    folder = parser.parse_args().authors / "configs" / "selfsup" / "triplet"
    found = {
        path.stem: translate(runpy.run_path(str(path)), GPUS.get(path.stem, 8))
        for path in sorted(folder.glob("*.py"))
    }
    lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in found.items()]
    OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{OUTPUT}: {len(found)} configs")


if __name__ == "__main__":
    main()
