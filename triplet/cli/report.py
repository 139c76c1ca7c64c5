"""Commands for results and the machine: report, demo, doctor."""

import argparse
from pathlib import Path

from triplet.cli.options import Add, add_force, whole
from triplet.paths import kit_config


def add_commands(add: Add) -> None:
    """Add the commands of this group."""
    _add_report(add)
    _add_demo(add)
    doctor = add("doctor", _doctor, "what this machine has, and what to run for what is missing")
    doctor.add_argument("--json", action="store_true", help="print one JSON object for programs")


def _add_report(add: Add) -> None:
    report = add("report", _report, "put every number beside the paper's, as a page and as tables")
    way = report.add_mutually_exclusive_group()
    way.add_argument(
        "--verify",
        nargs="?",
        const="",
        metavar="ZIP",
        help="instead, check all hashes and evaluate stored predictions again, here or of an archive",
    )
    way.add_argument("--export", type=Path, metavar="ZIP", help="write all of it as an RO-Crate, too")


def _add_demo(add: Add) -> None:
    demo = add("demo", _demo, "the whole pipeline in small, on this machine")
    demo.add_argument("--config", type=Path, default=kit_config("demo.yaml"), help="(default: %(default)s)")
    demo.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="a folder of annotated images in a layout that finetune takes",
    )
    demo.add_argument("--images", type=Path, metavar="PATH", help="a folder of images to pretrain on")
    demo.add_argument(
        "--seeds", type=whole, nargs="+", help="one run of every method for each (default: the config's)"
    )
    add_force(demo)


def _report(a: argparse.Namespace) -> int | None:
    from triplet.report.stage import check, report

    if a.verify is not None:
        return check(Path(a.verify) if a.verify else None)
    report(a.export)
    return None


def _demo(a: argparse.Namespace) -> int:
    from triplet.demo import demo

    return demo(a.config, a.main, data=a.data, images=a.images, seeds=a.seeds, force=a.force)


def _doctor(a: argparse.Namespace) -> int:
    from triplet.doctor import doctor

    return doctor(as_json=a.json)
