"""The kit's command line, killed or stopped at one of its changes to files.

``python killed_at.py NAME NUMBER SIGNAL ARGUMENTS``: from the first time on that a file whose name contains
NAME is opened for writing, or something gets such a name, each opening for writing, renaming and removal
counts; before the one of that NUMBER the process sends itself the SIGNAL.
"""

import os
import signal
import sys

from triplet import cli

REMOVALS = ("os.remove", "os.rmdir")
CHANGES = ("os.rename", "os.truncate", "os.link", *REMOVALS)


class Killer:
    def __init__(self, name: str, number: int, by: int = signal.SIGKILL) -> None:
        self.name, self.left, self.by, self.begun = name, number, by, False

    def __call__(self, event: str, arguments: tuple) -> None:
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if not writes and event not in CHANGES:
            return
        named = arguments[1 if event in ("os.rename", "os.link") else 0]
        self.begun = self.begun or (event not in REMOVALS and self.name in str(named))
        self.left -= self.begun
        if self.left == 0:
            os.kill(os.getpid(), self.by)


if __name__ == "__main__":
    sys.addaudithook(Killer(sys.argv[1], *map(int, sys.argv[2:4])))
    sys.exit(cli.main(sys.argv[4:]))
