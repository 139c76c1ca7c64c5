"""A browser, and a page of the report in each state."""

import os
import shutil

import pytest

from tests.conftest import placed
from tests.support.report_states import STATES
from triplet import cli, files

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


@pytest.fixture(scope="module", params=STATES)
def reported(request, tmp_path_factory):
    """(state, folder of the report) in each state. Workers of pytest-xdist share it; nobody changes it."""
    state, base = request.param, tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"page-{state}"
    with files.locked(folder.with_suffix(".lock")):
        if not (folder / "reports" / "index.html").exists():
            folder.mkdir(exist_ok=True)
            with placed(folder):
                STATES[state]()
                assert cli.main(["report"]) == 0
    return state, folder / "reports"


@pytest.fixture(scope="module")
def shown(reported):
    """(state, address of the page)."""
    state, folder = reported
    return state, (folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def opened(shown, browser):
    """(state, page as it opens), for tests that leave it so."""
    state, address = shown
    page = browser.new_page()
    page.goto(address)
    yield state, page
    page.close()


@pytest.fixture(scope="module")
def tab(browser):
    page = browser.new_page()
    yield page
    page.close()


@pytest.fixture
def page(tab, shown):
    """The page as it opens, for a test that may change it: in the tab of the test before, which is quicker
    than a new one."""
    tab.set_viewport_size({"width": 1280, "height": 720})
    tab.emulate_media(media="null", color_scheme="light")
    tab.goto(shown[1])
    return tab
