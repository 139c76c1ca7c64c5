"""Commands for data sets and weights: pull, pack."""

import argparse
from pathlib import Path

from triplet.cli.options import TRAIN, Add, add_force, count, data_path, whole
from triplet.errors import KitError
from triplet.paths import kit_config

WHAT = ("coco",)
"""Sources that are pulled by default."""
PACKED = "packed"
"""Default folder of shards below datasets/."""


def add_commands(add: Add) -> None:
    """Add the commands of this group."""
    _add_pull(add)
    _add_pack(add)


def _add_pull(add: Add) -> None:
    pull = add("pull", _pull, "fetch data sets and weights, draw or subset a data set")
    pull.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help="coco, voc, imagenet, weights or all (configs/sources.yaml); a model hub's "
        "hf://owner/name/file@revision; demo (drawn images); "
        f"subset (part of a folder that you have) (default: {' '.join(WHAT)})",
    )
    pull.set_defaults(words="what")
    pull.add_argument(
        "--method",
        nargs="+",
        metavar="METHOD",
        help="weights: of these methods of the table (default: all)",
    )
    pull.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="PATH",
        help="a file or folder that you have: archives, weights or an unpacked data set, verified, then "
        "linked or copied; subset: of what",
    )
    how = pull.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="verify what is there, without the network")
    how.add_argument("--plan", action="store_true", help="say what would be fetched, how large, how long")
    pull.add_argument(
        "--classes",
        type=count,
        metavar="N",
        help="subset: of the N most frequent classes alone (default: all)",
    )
    pull.add_argument("--name", help="demo, subset: folder below datasets/ (default: the same word)")
    pull.add_argument(
        "--config",
        type=Path,
        default=kit_config("demo.yaml"),
        help="demo, subset: their sizes (default: %(default)s)",
    )
    add_force(pull)


def _add_pack(add: Add) -> None:
    pack = add("pack", _pack, "put the images of a folder or list into tar shards, for shared file systems")
    pack.add_argument(
        "source",
        nargs="*",
        metavar="SOURCE",
        help=f"one path, or one name below datasets/ (default: {TRAIN})",
    )
    pack.set_defaults(words="source")
    pack.add_argument(
        "--name", default=PACKED, help="folder below datasets/ that is made (default: %(default)s)"
    )
    pack.add_argument(
        "--per-shard", type=whole, default=10_000, metavar="N", help="images (default: %(default)s)"
    )
    add_force(pack)


def _pull(a: argparse.Namespace) -> int | None:
    if a.source and (a.check or a.plan):
        raise KitError("--check and --plan look at what is there already: leave --from out")
    made = next((word for word in ("demo", "subset") if word in a.what), None)
    if any(word.startswith("hf://") for word in a.what):
        _pull_hub(a)
        return None
    if made is None:
        return _pull_sources(a)
    if len(a.what) > 1 or a.method or a.check or a.plan:
        raise KitError(f"{made} stands alone: no other source, --method, --check or --plan beside it")
    if made == "subset" and a.source is None:
        raise KitError("subset needs --from PATH, a folder of annotated images in a known layout")
    _make_data(made, a)
    return None


def _pull_hub(a: argparse.Namespace) -> None:
    """Fetch files of a model hub."""
    from triplet.paths import portable
    from triplet.progress import say
    from triplet.pull.stage import pull_hub

    beside = [word for word in a.what if not word.startswith("hf://")]
    if beside or a.method or a.source or a.check or a.plan:
        raise KitError("hf:// stands alone: no other source, --method, --from, --check or --plan beside it")
    for address in a.what:
        say(f"pull: {address} is {portable(pull_hub(address, force=a.force))}")


def _pull_sources(a: argparse.Namespace) -> int | None:
    """Fetch, check or plan the sources of configs/sources.yaml."""
    from triplet.pull import inspect, stage

    targets = stage.targets(a.what or WHAT, a.method)
    if a.check:
        return inspect.check(targets)
    if a.plan:
        inspect.plan(targets)
    else:
        stage.pull_sources(targets, a.source, force=a.force)
    return None


def _make_data(made: str, a: argparse.Namespace) -> None:
    """Draw the demo's images, or take a subset of the user's."""
    from triplet.config import load
    from triplet.demo import Demo
    from triplet.pull import stage

    sizes = load(a.config, Demo)
    if made == "demo":
        stage.pull_drawn(a.name or made, sizes.data, force=a.force)
    else:
        subset = sizes.subset.model_copy(update={"classes": a.classes})
        stage.pull_subset(a.name or made, a.source, subset, force=a.force)


def _pack(a: argparse.Namespace) -> None:
    from triplet.pull.pack import pack

    if len(a.source) > 1:
        raise KitError(f"found {len(a.source)} sources ({' '.join(a.source)}), expected one")
    pack(a.name, data_path(*(a.source or [TRAIN])), per_shard=a.per_shard, force=a.force)
