"""``triplet <stage> ...``: arguments in, one line out when something is wrong."""

import argparse
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from triplet import __version__, paths, records, toolchain
from triplet.errors import Interrupted, KitError, WorkerKilled
from triplet.progress import first_here

# Stages are imported where they run: `triplet doctor` must work where torch does not.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a KitError, 143 when stopped by a signal."""
    code = _run(argv)
    if code and "LOCAL_RANK" in os.environ:
        # One of several that have not left their group: gloo's threads abort an exit in good order when
        # another process is gone first, and the exit code would be theirs.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    toolchain.expandable_segments()
    arguments = _parse(argv)
    records.command.set(shlex.join(["triplet", *argv]))
    try:
        return arguments.act(arguments) or 0
    except KitError as error:
        if not first_here():  # mostly the first one says the same, and torchrun ends this one meanwhile
            time.sleep(5)
        print(f"triplet {arguments.stage}: {error}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as error:
        if first_here() or isinstance(error, WorkerKilled):
            print(f"triplet {arguments.stage}: {error or 'stopped'}", file=sys.stderr)
        return getattr(error, "code", 143)
    except RuntimeError as error:
        if "CUDA driver error" not in str(error):
            raise
        reason = " ".join(str(error).split())[:120]
        advice = "the driver may lack expandable segments: set PYTORCH_ALLOC_CONF=expandable_segments:False"
        print(f"triplet {arguments.stage}: {reason}; {advice}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"triplet {arguments.stage}: {error.strerror}{where}", file=sys.stderr)
        return 2


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Overrides may stand anywhere among the options, which argparse alone does not allow."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if any(word.startswith("-") for word in rest) or (rest and "overrides" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="triplet",
        description="From images to the COCO table of the Triplet paper, one stage at a time.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")

    def add(
        name: str, act: Callable[[argparse.Namespace], int | None], help: str
    ) -> argparse.ArgumentParser:
        stage = stages.add_parser(name, help=help, description=help, allow_abbrev=False)
        stage.set_defaults(act=act)
        return stage

    pull = add("pull", _pull, "fetch data sets and weights, draw or subset a data set")
    pull.add_argument(
        "what", nargs="+", metavar="WHAT",
        help="coco, voc, imagenet, weights or all (configs/sources.yaml); demo (drawn images); "
        "subset (part of a folder that you have)",
    )  # fmt: skip
    pull.add_argument(
        "--method", nargs="+", metavar="ROW", help="weights: of these rows of the table (default: all)"
    )
    pull.add_argument(
        "--from", dest="source", type=Path, metavar="PATH",
        help="a file or folder that you have: archives, weights or an unpacked data set, verified, then "
        "linked or copied; subset: of what",
    )  # fmt: skip
    how = pull.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="verify what is there, without the network")
    how.add_argument("--plan", action="store_true", help="say what would be fetched, how large, how long")
    pull.add_argument("--name", help="demo, subset: folder below datasets/ (default: the same word)")
    pull.add_argument(
        "--config", type=Path, default=Path("configs/demo.yaml"), help="demo, subset: their sizes"
    )
    _common(pull, run=False)

    pack = add("pack", _pack, "put the images of a folder or list into tar shards, for shared file systems")
    pack.add_argument("source", metavar="SOURCE", help="a path, or a name below datasets/")
    pack.add_argument("--name", required=True, help="folder below datasets/ that is made")
    pack.add_argument("--per-shard", type=int, default=10_000, metavar="N", help="images (default: 10000)")
    _common(pack, run=False)

    pretrain = add("pretrain", _pretrain, "pretrain a backbone by the run's method")
    _common(pretrain)
    pretrain.add_argument(
        "--engine", choices=("kit", "openselfsup"), default="kit",
        help="whose training loop: the kit's own, or OpenSelfSup's for comparison (default: kit)",
    )  # fmt: skip
    pretrain.add_argument(
        "--config", type=Path,
        help="one of configs/pretrain/, or of configs/openselfsup/ (default: the recipe of the run's row)",
    )  # fmt: skip
    pretrain.add_argument(
        "--data", default="imagenet/train", metavar="FOLDER",
        help="a folder of images, a list of them, or packed shards: a path, or a name below datasets/ "
        "(default: imagenet/train)",
    )  # fmt: skip
    pretrain.add_argument(
        "--weights", type=Path, metavar="FILE", help="start from these, not from the seed"
    )
    _overrides(pretrain, "schedule.epochs=200")

    convert = add("convert", _convert, "turn a checkpoint into Detectron2's weights, with proof")
    _common(convert)
    _detection(convert)
    convert.add_argument(
        "--weights", type=Path,
        help="a file (default: the run's pretraining, else the row's weights that were pulled)",
    )  # fmt: skip

    finetune = add("finetune", _finetune, "train Mask R-CNN from the converted weights")
    _common(finetune)
    _detection(finetune)
    _coco(finetune, "coco")
    finetune.add_argument("--seed", type=int, default=0)
    _length(finetune)
    _overrides(finetune, "SOLVER.MAX_ITER=90000")

    plan = add("plan", _plan, "how long a finetuning takes on your GPUs, and what AP to expect")
    plan.add_argument("--method", default="triplet", metavar="ROW", help="of the table (default: triplet)")
    _detection(plan)
    plan.add_argument("--gpus", type=_count, default=1)
    plan.add_argument(
        "--memory", type=_positive, metavar="GB", help="of each GPU; by default this machine's is measured"
    )
    plan.add_argument("--seconds", type=_positive, help="of an iteration of 16 images, where you know it")
    _length(plan)

    explain = add("explain", _explain, "what could have made a result fall short of the paper's")
    explain.add_argument("--result", type=float, nargs=2, required=True, metavar=("BOX", "MASK"))
    explain.add_argument(
        "--method", default="triplet", metavar="ROW", help="of the table (default: triplet)"
    )
    explain.add_argument("--config", type=Path, help="the run's Detectron2 config")
    explain.add_argument("--log", type=Path, help="its log.txt or metrics.json")

    evaluate = add("eval", _eval, "evaluate the finetuned model on val2017, or on VOC 2007's test set")
    _common(evaluate)
    _coco(evaluate, None)
    evaluate.add_argument(
        "--model", type=Path, metavar="FILE", help="any model file of Detectron2's instead of the run's"
    )
    evaluate.add_argument("--config", type=Path, help="of that model")
    evaluate.add_argument(
        "--engine", choices=("ultrafast", "pycocotools"), default="ultrafast",
        help="what computes COCO's numbers, which are the same (default: ultrafast)",
    )  # fmt: skip

    linear = add("linear", _linear, "linear classification of ImageNet on the frozen backbone")
    _images(linear)
    _config(linear)
    _overrides(linear, "training.epochs=90")

    knn = add("knn", _knn, "nearest neighbours among ImageNet's features")
    _images(knn)
    _config(knn)
    _overrides(knn, "neighbours=[20,200]")

    semi = add("semi", _semi, "finetuning on one or ten percent of ImageNet's labels")
    _images(semi)
    semi.add_argument("--percent", type=int, choices=(1, 10), default=1, help="which config (default: 1)")
    semi.add_argument("--config", type=Path, help="another one")
    semi.add_argument("--list", type=Path, metavar="FILE", help="the images to train on, one a line")
    semi.add_argument("--draw", action="store_true", help="a share of each class by the seed, not a list's")
    _overrides(semi, "training.head=10")

    svm = add("svm", _svm, "VOC07 by support vector machines, on all images and on a few")
    _common(svm)
    _config(svm)
    _weights(svm)
    svm.add_argument(
        "--data", default="voc/VOCdevkit/VOC2007", metavar="FOLDER",
        help="a VOC2007 folder: a path, or a name below datasets/ (default: voc/VOCdevkit/VOC2007)",
    )  # fmt: skip
    _overrides(svm, "layers=[4,5]")

    report = add("report", _report, "put every number beside the paper's, as a page and as tables")
    way = report.add_mutually_exclusive_group()
    way.add_argument(
        "--verify", nargs="?", const="", metavar="ZIP",
        help="instead, check all hashes and evaluate stored predictions again, here or of an archive",
    )  # fmt: skip
    way.add_argument("--export", type=Path, metavar="ZIP", help="write all of it as an RO-Crate, too")

    demo = add("demo", _demo, "the whole pipeline in small, on this machine")
    demo.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    demo.add_argument("--data", type=Path, metavar="PATH", help="a folder in COCO 2017's layout")
    demo.add_argument("--images", type=Path, metavar="PATH", help="a folder of images to pretrain on")
    demo.add_argument("--seeds", type=int, nargs="+", help="one run of every row for each")
    _common(demo, run=False)

    add("doctor", _doctor, "what this machine has, and what to run for what is missing")
    return parser


def _common(stage: argparse.ArgumentParser, *, run: bool = True) -> None:
    if run:
        stage.add_argument(
            "--run", required=True, metavar="NAME",
            help="folder below checkpoints/ that this row's stages share, such as 'triplet'",
        )  # fmt: skip
    stage.add_argument("--force", action="store_true", help="start over, replacing what is there")


def _images(stage: argparse.ArgumentParser) -> None:
    """What the stages on ImageNet take."""
    _common(stage)
    _weights(stage)
    for name, default in (("data", "imagenet/train"), ("val", "imagenet/val")):
        stage.add_argument(
            f"--{name}", default=default, metavar="FOLDER",
            help="images in a folder for each class, a list of 'path class', or packed shards: a path, or "
            f"a name below datasets/ (default: {default})",
        )  # fmt: skip
    stage.add_argument("--classes", type=Path, metavar="FILE", help="only these, one name a line")


def _config(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("--config", type=Path, required=True, help="one of configs/linear/")


def _weights(stage: argparse.ArgumentParser) -> None:
    stage.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a file (default: the run's pretraining, else the row's weights that were pulled)",
    )


def _where(a: argparse.Namespace) -> dict[str, Any]:
    return {
        "train": _folder(a.data), "test": _folder(a.val), "weights": a.weights, "classes": a.classes,
        "force": a.force,
    }  # fmt: skip


def _overrides(stage: argparse.ArgumentParser, example: str) -> None:
    stage.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help=f"overrides of the config: {example}"
    )


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0")


def _count(text: str) -> int:
    with contextlib.suppress(ValueError):
        if (value := int(text)) >= 1:
            return value
    raise argparse.ArgumentTypeError(f"found {text}, expected a whole number from 1 on")


def _length(stage: argparse.ArgumentParser) -> None:
    """How long to train, and how."""
    length = stage.add_mutually_exclusive_group()
    length.add_argument(
        "--hours", type=_positive, help="compress the schedule so that it ends in this time"
    )
    length.add_argument(
        "--schedule", help="compress it: 2x, 1x, 1/2x, 1/4x, 1/8x of Detectron2's, or 1/2 of its own"
    )
    stage.add_argument(
        "--images-per-gpu", type=_count, metavar="N", help="at once; by default the most that fit"
    )
    stage.add_argument(
        "--precision",
        choices=("float32", "tf32", "bfloat16", "float16"),
        help="by default bfloat16 on GPUs that have it; float32 is that of all operations",
    )


def _detection(stage: argparse.ArgumentParser) -> None:
    stage.add_argument(
        "--config", type=Path, help="one of configs/detection/ (default: that of the run's row)"
    )


def _coco(stage: argparse.ArgumentParser, default: str | None) -> None:
    stage.add_argument(
        "--data", default=default, metavar="FOLDER",
        help="COCO 2017's layout: a path, or a name below datasets/ "
        f"(default: {default or 'what it was finetuned on'})",
    )  # fmt: skip


def _folder(name: str) -> Path:
    """What the user named: below datasets/ where that exists, else a path as it stands."""
    known = paths.root("datasets") / name
    return known if known.exists() or not Path(name).exists() else Path(name)


def _pull(a: argparse.Namespace) -> int | None:
    from triplet.config import load
    from triplet.demo import Demo
    from triplet.pull import inspect, stage

    own = next((word for word in ("demo", "subset") if word in a.what), None)
    if a.source and (a.check or a.plan):
        raise KitError("--check and --plan look at what is there already: leave --from out")
    if own is None:
        wanted = stage.targets(a.what, a.method)
        if a.check:
            return inspect.check(wanted)
        if a.plan:
            inspect.plan(wanted)
        else:
            stage.pull_sources(wanted, a.source, force=a.force)
        return None
    if len(a.what) > 1 or a.method or a.check or a.plan:
        raise KitError(f"{own} stands alone: no other source, --method, --check or --plan beside it")
    if own == "demo":
        stage.pull_drawn(a.name or own, load(a.config, Demo).data, force=a.force)
    elif a.source is None:
        raise KitError("subset needs --from PATH, a folder in COCO 2017's layout")
    else:
        stage.pull_subset(a.name or own, a.source, load(a.config, Demo).subset, force=a.force)
    return None


def _pack(a: argparse.Namespace) -> None:
    from triplet.pull.pack import pack

    pack(a.name, _folder(a.source), per_shard=a.per_shard, force=a.force)


def _pretrain(a: argparse.Namespace) -> None:
    from triplet.published.defaults import recipe

    if a.engine == "openselfsup":
        from triplet.openselfsup.train import pretrain
    else:
        from triplet.pretrain.stage import pretrain
    folder = "openselfsup" if a.engine == "openselfsup" else "pretrain"
    config = a.config or recipe(Path(a.run).name, folder)
    pretrain(a.run, config, _folder(a.data), a.overrides, weights=a.weights, force=a.force)


def _convert(a: argparse.Namespace) -> None:
    from benchmarks.detection.convert import convert

    convert(a.run, a.config, a.weights, force=a.force)


def _finetune(a: argparse.Namespace) -> None:
    from benchmarks.detection.finetune import finetune
    from benchmarks.detection.plan import FinetuneOptions

    options = FinetuneOptions(
        a.hours, a.schedule, a.images_per_gpu, a.precision, a.seed, a.overrides, a.force
    )
    finetune(a.run, a.config, _folder(a.data), options)


def _plan(a: argparse.Namespace) -> None:
    from benchmarks.detection.plan import FinetuneOptions
    from benchmarks.detection.resolve import preview

    options = FinetuneOptions(a.hours, a.schedule, a.images_per_gpu, a.precision)
    preview(a.method, a.config, options, gpus=a.gpus, memory=a.memory, seconds=a.seconds)


def _explain(a: argparse.Namespace) -> None:
    from benchmarks.detection.explain import explain

    explain(tuple(a.result), a.method, a.config, a.log)


def _eval(a: argparse.Namespace) -> None:
    from benchmarks.detection.evaluate import evaluate

    evaluate(
        a.run, a.data and _folder(a.data), weights=a.model, config=a.config, engine=a.engine, force=a.force
    )


def _linear(a: argparse.Namespace) -> None:
    from benchmarks.linear.linear import linear

    linear(a.run, a.config, a.overrides, **_where(a))


def _knn(a: argparse.Namespace) -> None:
    from benchmarks.linear.knn import knn

    knn(a.run, a.config, a.overrides, **_where(a))


def _semi(a: argparse.Namespace) -> None:
    from benchmarks.linear.semi import semi

    config = Path(f"configs/linear/semi_resnet50_4x64-steplr0.01-20e_imagenet-{a.percent}percent.yaml")
    semi(a.run, a.config or config, a.overrides, listed=a.list, draw=a.draw, **_where(a))


def _svm(a: argparse.Namespace) -> None:
    from benchmarks.linear.svm import svm

    svm(a.run, a.config, _folder(a.data), a.overrides, weights=a.weights, force=a.force)


def _report(a: argparse.Namespace) -> int | None:
    from triplet.report.stage import check, report

    if a.verify is not None:
        return check(Path(a.verify) if a.verify else None)
    report(a.export)
    return None


def _demo(a: argparse.Namespace) -> int:
    from triplet.demo import demo

    return demo(a.config, main, data=a.data, images=a.images, seeds=a.seeds, force=a.force)


def _doctor(a: argparse.Namespace) -> int:
    from triplet.doctor import doctor

    return doctor()


if __name__ == "__main__":
    sys.exit(main())
