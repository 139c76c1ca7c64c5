"""A browser, and a page of the report in each state."""

import shutil

import pytest

from tests.conftest import placed
from tests.support.report_states import STATES
from triplet import cli

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here; install the package chromium to test the page in it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def addresses():
    """Addresses of the pages that have been made, by state."""
    return {}


@pytest.fixture(scope="module", params=STATES)
def shown(request, addresses, tmp_path_factory):
    """(state, address) of a page in each state."""
    if request.param not in addresses:
        with placed(tmp_path_factory.mktemp(request.param)) as folder:
            STATES[request.param]()
            assert cli.main(["report"]) == 0
        addresses[request.param] = (folder / "reports" / "index.html").as_uri()
    return request.param, addresses[request.param]
