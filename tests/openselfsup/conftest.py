"""OpenSelfSup is on no package index: where it is not, the tests that need it are skipped, and pytest says
so."""

import pytest

from triplet.errors import KitError
from triplet.openselfsup.shims import locate


@pytest.fixture(scope="session")
def openselfsup():
    """The folder of its configs."""
    try:
        return locate()
    except KitError as error:
        pytest.skip(f"needs OpenSelfSup: {error}")


def pytest_terminal_summary(terminalreporter):
    skipped = [
        r for r in terminalreporter.stats.get("skipped", []) if "needs OpenSelfSup" in str(r.longrepr)
    ]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests of the other engine were skipped, for want of OpenSelfSup; "
            "with a checkout of it: make test SLOW=1 OPENSELFSUP=folder",
            yellow=True,
        )
