"""The parser, checked numbers, and options that several commands share."""

import argparse
import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from triplet import paths
from triplet.commands import METHOD, WrittenPercent, spoken, typed

Act = Callable[[argparse.Namespace], int | None]
"""A function that runs a command and returns its exit code, None for 0."""
Add = Callable[[str, Act, str], argparse.ArgumentParser]
"""A function that adds a command, given its name, the function that runs it, and one line of help."""

TRAIN, VAL = "imagenet/train", "imagenet/val"
"""Folders of ImageNet's images below datasets/."""
MOST = 10**9
"""Largest count, and largest number of hours, seconds or gigabytes, that an option accepts."""


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        command = "".join(self.prog.split()[1:])
        told = (
            f"{spoken(command, message)}; see {typed(command, '--help') if command else 'triplet --help'}"
        )
        self.exit(2, f"{self.prog}: {told}\n")


def positive(text: str) -> float:
    """Parse a number above 0 and at most MOST; argparse's error for anything else."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= MOST:
            return value
    raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0{_at_most(text)}")


def share(text: str) -> float:
    """Parse a number from 0 to 1; argparse's error for anything else."""
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"found {text}, expected a number from 0 to 1")


def count(text: str) -> int:
    """Parse a whole number from 1 to MOST; argparse's error for anything else."""
    with contextlib.suppress(ValueError):
        if 1 <= (value := int(text)) <= MOST:
            return value
    raise argparse.ArgumentTypeError(f"found {text}, expected a whole number from 1 on{_at_most(text)}")


def _at_most(text: str) -> str:
    """Say the bound if the number exceeds it."""
    with contextlib.suppress(ValueError):
        return f" and at most {MOST}" if float(text) > MOST else ""
    return ""


def numbers(text: str) -> list[float]:
    """Parse numbers as people write AP: ``25.1``, ``25.1%``, ``25.1/22.3``; argparse's error for others."""
    between = r"[/;,\s]+" if "." in text else r"[/;\s]+"  # 25,1 is not two numbers
    words = re.split(between, text.strip().rstrip(","))
    with contextlib.suppress(ValueError):
        return [WrittenPercent(word[:-1]) if word.endswith("%") else float(word) for word in words]
    raise argparse.ArgumentTypeError(f"found {text}, expected a number, such as 25.1")


def whole(text: str) -> int:
    """Parse a whole number; argparse's error for anything else."""
    with contextlib.suppress(ValueError):
        return int(text)
    raise argparse.ArgumentTypeError(f"found {text}, expected a whole number")


def data_path(name: str) -> Path:
    """Return the path that the user named: below datasets/ if that exists, else the name as a path."""
    known = paths.root("datasets") / name
    return known if known.exists() or not Path(name).exists() else Path(name)


def add_run(command: argparse.ArgumentParser) -> None:
    """Add --run and --force."""
    command.add_argument(
        "--run",
        default=METHOD,
        type=_run_name,
        metavar="NAME",
        help="folder below checkpoints/ that this method's stages share, its last part the method's name; "
        f"'seed0/' means seed0/{METHOD} (default: %(default)s)",
    )
    add_force(command)


def _run_name(text: str) -> str:
    return text + METHOD if text.endswith("/") else text


def add_force(command: argparse.ArgumentParser) -> None:
    """Add --force."""
    command.add_argument("--force", action="store_true", help="start over, replacing what is there")


def add_method(command: argparse.ArgumentParser) -> None:
    """Add --method, for commands that need no run."""
    command.add_argument(
        "--method", default=METHOD, metavar="METHOD", help="of the table (default: %(default)s)"
    )


def add_weights(command: argparse.ArgumentParser) -> None:
    """Add --weights, for the backbone to evaluate."""
    command.add_argument(
        "--weights",
        metavar="FILE",
        help="a file, or hf://owner/name/file@revision (default: the run's pretraining, else the method's "
        "weights that were pulled)",
    )


def weights_path(name: str | None) -> Path | None:
    """Return the file that the user named; a file of a model hub is fetched unless it is here.

    Raises:
        KitError: the file is unavailable.
    """
    if name is None or not name.startswith("hf://"):
        return Path(name) if name else None
    from triplet.pull.stage import pull_hub

    return pull_hub(name)


def add_overrides(command: argparse.ArgumentParser, example: str) -> None:
    """Add overrides of the config, which may stand anywhere among the options."""
    command.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help=f"overrides of the config: {example}"
    )
    command.set_defaults(words="overrides")
