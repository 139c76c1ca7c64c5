import pytest

from tests.pull.serving import serving
from triplet.pull import download


@pytest.fixture
def server(monkeypatch):
    """A server, and a client that has no patience to lose."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setattr(download, "STALL", 1)
    with serving() as running:
        yield running
