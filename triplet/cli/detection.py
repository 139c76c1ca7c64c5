"""Object detection with the backbone: convert, finetune, plan, explain, eval, predict."""

import argparse
import itertools
from pathlib import Path

from triplet.cli.data import COCO, add_source, add_split, data_source
from triplet.cli.options import (
    Add,
    add_method,
    add_overrides,
    add_run,
    add_weights,
    count,
    numbers,
    positive,
    share,
    weights_path,
    whole,
)
from triplet.coco_engines import ENGINES, FASTEST
from triplet.commands import METHOD
from triplet.errors import KitError


def add_commands(add: Add) -> None:
    """Add the commands of this group."""
    convert = add("convert", _convert, "turn a checkpoint into Detectron2's weights, with proof")
    add_run(convert)
    _add_config(convert)
    add_weights(convert)
    _add_finetune(add)
    _add_plan(add)
    _add_explain(add)
    _add_eval(add)
    _add_predict(add)


def _add_finetune(add: Add) -> None:
    finetune = add("finetune", _finetune, "train Mask R-CNN from the converted weights")
    add_run(finetune)
    _add_config(finetune)
    add_source(finetune)
    add_split(finetune)
    finetune.add_argument("--seed", type=whole, default=0, help="(default: %(default)s)")
    _add_length(finetune)
    add_overrides(finetune, "SOLVER.MAX_ITER=90000")


def _add_plan(add: Add) -> None:
    plan = add("plan", _plan, "how long a finetuning takes on your GPUs, and what AP to expect")
    add_method(plan)
    _add_config(plan)
    plan.add_argument("--gpus", type=count, help="(default: the preset's, or 1)")
    plan.add_argument(
        "--gpu", metavar="CARD", help="such as T4 or 'RTX 3090': speed and memory as published"
    )
    plan.add_argument(
        "--preset", metavar="HOST", help="kaggle, kaggle-p100 or colab: their GPUs and sessions"
    )
    plan.add_argument(
        "--memory", type=positive, metavar="GB", help="of each GPU; by default this machine's is measured"
    )
    plan.add_argument("--seconds", type=positive, help="of an iteration of 16 images, where you know it")
    add_source(plan)
    add_split(plan)
    plan.add_argument("--json", action="store_true", help="print one JSON object for programs")
    _add_length(plan)


def _add_explain(add: Add) -> None:
    explain = add("explain", _explain, "what could have made a result fall short of the paper's")
    explain.add_argument(
        "--result",
        type=numbers,
        nargs="+",
        metavar="AP",
        help="box and mask AP in percent, or box AP alone (default: what the log or the run ends with)",
    )
    explain.add_argument(
        "--method", metavar="METHOD", help=f"of the table (default: {METHOD}, none with --target)"
    )
    explain.add_argument(
        "--target",
        type=numbers,
        nargs="+",
        metavar="AP",
        help="the published box and mask AP, where it is not the method's in the table",
    )
    explain.add_argument(
        "--config", type=Path, help="the run's config: Detectron2's YAML, mmdetection's .py"
    )
    explain.add_argument(
        "--log", type=Path, help="its log.txt or metrics.json, of Detectron2's or mmdetection's"
    )
    explain.add_argument("--weights", type=Path, metavar="FILE", help="the backbone that it began with")
    explain.add_argument("--gpus", type=count, help="on which it was trained, where no file says so")
    explain.add_argument(
        "--run", metavar="NAME", help="a finished run of the kit's, whose records tell all this"
    )
    explain.add_argument("--json", action="store_true", help="print one JSON object for programs")


def _add_eval(add: Add) -> None:
    evaluate = add("eval", _eval, "evaluate the finetuned model on val2017, or on VOC 2007's test set")
    add_run(evaluate)
    add_source(evaluate, only_val=True)
    evaluate.add_argument(
        "--model", type=Path, metavar="FILE", help="any model file of Detectron2's instead of the run's"
    )
    evaluate.add_argument("--config", type=Path, help="of that model")
    evaluate.add_argument(
        "--engine",
        choices=tuple(ENGINES),
        default=FASTEST,
        help="what computes COCO's numbers, which are the same (default: %(default)s)",
    )


def _add_predict(add: Add) -> None:
    predict = add("predict", _predict, "detect in your own images: pictures, and files for other tools")
    add_run(predict)
    predict.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files, folders, patterns such as 'photos/*.jpg', videos",
    )
    predict.add_argument(
        "--model", type=Path, metavar="FILE", help="any model file of Detectron2's instead of the run's"
    )
    predict.add_argument("--config", type=Path, help="of that model")
    predict.add_argument("--name", help="of the result's folder (default: that of the images)")
    predict.add_argument(
        "--score", type=share, default=0.5, help="least score of what is kept (default: %(default)s)"
    )
    predict.add_argument(
        "--show", default="", metavar="NAMES", help="classes, with commas between (default: all)"
    )
    predict.add_argument(
        "--most", type=count, metavar="N", help="objects an image, the surest (default: all)"
    )
    predict.add_argument(
        "--every", type=count, default=1, metavar="N", help="of a video's frames (default: %(default)s)"
    )


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", type=Path, help="one of configs/detection/ (default: that of the run's method)"
    )


def _add_length(command: argparse.ArgumentParser) -> None:
    """Add the options for the length and the settings of a training."""
    length = command.add_mutually_exclusive_group()
    length.add_argument(
        "--hours", type=positive, help="of training: compress the schedule so that it ends in this time"
    )
    length.add_argument(
        "--schedule",
        type=_schedule,
        help="compress it: 2x, 1x, 1/2x, 1/4x, 1/8x of Detectron2's, or 1/2 of its own",
    )
    command.add_argument(
        "--images-per-gpu", type=count, metavar="N", help="at once; by default the most that fit"
    )
    command.add_argument(
        "--precision",
        choices=("float32", "tf32", "bfloat16", "float16"),
        help="by default bfloat16 on GPUs that have it; float32 is that of all operations",
    )


def _schedule(text: str) -> str:
    """Return the text; argparse's error if it is not the length of a schedule."""
    from benchmarks.detection.budget import length

    try:
        length(text)
    except KitError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _convert(a: argparse.Namespace) -> None:
    from benchmarks.detection.convert import convert

    convert(a.run, a.config, weights_path(a.weights), force=a.force)


def _finetune(a: argparse.Namespace) -> None:
    from benchmarks.detection.finetune import finetune
    from benchmarks.detection.plan import FinetuneOptions

    options = FinetuneOptions(
        a.hours, a.schedule, a.images_per_gpu, a.precision, a.seed, a.overrides, a.force
    )
    source = data_source(a, COCO)
    assert source
    finetune(a.run, a.config, source, options)


def _plan(a: argparse.Namespace) -> None:
    from benchmarks.detection.plan import FinetuneOptions
    from benchmarks.detection.preview import Hardware, preview

    options = FinetuneOptions(a.hours, a.schedule, a.images_per_gpu, a.precision)
    hardware = Hardware(a.gpus, a.memory, a.seconds, a.gpu, a.preset)
    preview(a.method, a.config, options, hardware, data_source(a), as_json=a.json)


def _explain(a: argparse.Namespace) -> None:
    from benchmarks.detection.explain import ExplainOptions, explain

    result, target = (values and tuple(itertools.chain(*values)) for values in (a.result, a.target))
    explain(ExplainOptions(result, a.method, target, a.config, a.log, a.weights, a.gpus, a.run, a.json))


def _eval(a: argparse.Namespace) -> None:
    from benchmarks.detection.evaluate import evaluate

    evaluate(a.run, data_source(a), weights=a.model, config=a.config, engine=a.engine, force=a.force)


def _predict(a: argparse.Namespace) -> None:
    from benchmarks.detection.predict import PredictOptions, predict

    names = tuple(name.strip() for name in a.show.split(",") if name.strip())
    options = PredictOptions(a.score, names, a.most, a.every)
    predict(a.run, a.images, options, weights=a.model, config=a.config, name=a.name, force=a.force)
