"""The command line: ``triplet <command> ...`` runs a command, and prints one line if something is wrong.

Each option and its default is declared in this package and nowhere else: one module for each group of
commands, and ``options`` for shared ones.
"""

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence

from triplet import __version__, records, toolchain
from triplet.cli import data, detection, linear, pretrain, pull, report, submit
from triplet.cli.options import Act, Parser
from triplet.commands import spoken
from triplet.errors import Interrupted, KitError, WorkerKilled, message_of
from triplet.progress import is_local_main
from triplet.signals import raising

# Commands import their modules only when they run: `triplet doctor` must work even if torch does not.
LONGEST = 2000
"""Most characters of a message, as names in files of others may have any length."""
GROUPS = (pull, data, pretrain, detection, linear, report, submit)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 2 for a KitError, 128 + n if signal n stopped it."""
    code = _run(sys.argv[1:] if argv is None else argv)
    if argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # else a traceback while the interpreter ends
    return code


def _run(argv: Sequence[str]) -> int:
    toolchain.expandable_segments()
    arguments = _parse(argv)
    records.command.set(shlex.join(["triplet", *argv]))
    try:
        with raising():
            return arguments.act(arguments) or 0
    except (Interrupted, KeyboardInterrupt) as error:
        if is_local_main() or isinstance(error, WorkerKilled):
            print(f"triplet {arguments.stage}: {error or 'stopped'}", file=sys.stderr)
        return _ended(getattr(error, "code", 130))
    except (KitError, RuntimeError, OSError) as error:
        if (reason := explain(error)) is None:
            raise
        # The main process usually prints the same, and torchrun ends this one meanwhile.
        if isinstance(error, KitError) and not is_local_main():
            time.sleep(5)
        print(f"triplet {arguments.stage}: {spoken(arguments.stage, reason)}", file=sys.stderr)
        return _ended(2)


def _ended(code: int) -> int:
    """Return the exit code of a command that failed; one of several processes ends here, at once.

    The processes are still in their group: if another one ended first, gloo's threads would abort a regular
    exit and change its code. And what the exception keeps must not be freed: DistributedDataParallel would
    wait for a thread of gloo's with Python's lock, for which that thread may wait.
    """
    if "LOCAL_RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def explain(error: Exception) -> str | None:
    """Explain an error in one line; None for an error that only its traceback explains."""
    if isinstance(error, KitError):
        return one_line(str(error))
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return None if error.errno is None else one_line(f"{error.strerror}{where}")
    if "CUDA driver error" not in str(error):
        return None
    reason = message_of(error, 120)
    advice = "the driver may lack expandable segments: set PYTORCH_ALLOC_CONF=expandable_segments:False"
    return f"{reason}; {advice}"


def one_line(text: str) -> str:
    """Return a message as one line of at most LONGEST characters, without terminal control characters."""
    line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in " ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; positional words may stand anywhere among the options.

    argparse alone treats such words as missing if an option precedes them, and returns them as unknown.
    """
    parser = make_parser()
    if odd := next((word for word in argv if word.startswith("--") and word.endswith("=--")), None):
        parser.error(f"{odd}: -- is not a value")  # argparse would take it for no value at all
    arguments, rest = parser.parse_known_args(argv)
    words = getattr(arguments, "words", "")
    if any(word.startswith("-") for word in rest) or (rest and not words):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        setattr(arguments, words, [*getattr(arguments, words), *rest])
    return arguments


def make_parser() -> Parser:
    """Build the parser of all commands, which stores the command's name in ``stage`` and its function in
    ``act``."""
    parser = Parser(
        prog="triplet",
        description="From images to the COCO table of the Triplet paper, one stage at a time.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(main=main)  # the demo runs the other commands with it
    parser.set_defaults(parse=_parse)  # submit checks the commands that it writes with it
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")

    def add(name: str, act: Act, text: str) -> argparse.ArgumentParser:
        command = stages.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(act=act)
        return command

    for group in GROUPS:
        group.add_commands(add)
    return parser
