"""The kit's command line with a command "keep ERROR", which fails, and says if what it kept is freed."""

import argparse
import errno
import sys
from types import SimpleNamespace

from triplet import cli
from triplet.cli.options import Add
from triplet.errors import Interrupted, KitError

ERRORS = {
    "interrupted": Interrupted("stopped by SIGTERM: saved; run the same command to go on"),
    "refused": KitError("found nothing"),
    "no file": FileNotFoundError(errno.ENOENT, "No such file or directory", "nowhere"),
}


class Kept:
    """What a frame of a failed command may hold, as the trainer holds DistributedDataParallel."""

    def __del__(self) -> None:
        print("freed", flush=True)


def keep(arguments: argparse.Namespace) -> None:
    kept = Kept()
    print("kept" if kept else "", flush=True)
    raise ERRORS.pop(arguments.error)  # popped, so that nothing but the exception keeps the frame


def add_commands(add: Add) -> None:
    add("keep", keep, "Fail.").add_argument("error", choices=list(ERRORS))


cli.GROUPS = (SimpleNamespace(add_commands=add_commands),)
sys.exit(cli.main())
