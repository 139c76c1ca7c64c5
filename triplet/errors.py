"""The two ways in which a stage ends without its result."""


class KitError(Exception):
    """What was found, what was expected, what to run: shown as one line, exit code 2."""


class Interrupted(Exception):
    """The stage was asked to stop, saved what it had, and goes on when run again. Exit code 143."""
