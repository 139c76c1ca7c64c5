"""How a command ends that failed: alone as any program, as one of several processes at once."""

from pathlib import Path

import pytest

from tests.support.processes import launch

FAILING = (Path(__file__).with_name("failing.py"),)
"""The kit's command line with a command that fails, and says if what its exception keeps is freed."""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        ("interrupted", 143, "triplet keep: stopped by SIGTERM: saved; run the same command to go on\n"),
        ("refused", 2, "triplet keep: found nothing\n"),
        ("no file", 2, "triplet keep: No such file or directory (nowhere)\n"),
    ],
)
def test_one_of_several_ends_before_its_exception_is_freed(error, code, line):
    """Else DistributedDataParallel may wait for a thread of gloo's that waits for Python's lock, until
    torchrun kills the process."""
    ended = launch(1, "keep", error, program=FAILING)
    out, said = ended.communicate()
    assert (ended.returncode, said) == (code, line)
    assert out == "kept\n"
