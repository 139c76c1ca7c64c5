"""The page as a real browser shows it: at every width, to everybody, and with what others wrote in it."""

import itertools
import json
import os

import pytest
from PIL import Image, PngImagePlugin

from tests.conftest import KIT, placed
from tests.support import run_records
from tests.support.browser import CUT, DRAW, EMPTY, PIXELS, SMALL, THIN, UNFOLD, WIDTHS
from tests.support.report_states import full
from triplet import cli, files

SCREENS = KIT / "artifacts" / "report"
"""Where the screenshots of these tests stay to be looked at; git ignores it."""
SCHEMES = ("light", "dark")


def set_screen(page, width, scheme):
    """Wait until the page is drawn at this width and in these colours."""
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def assert_accessible(page, **options):
    """Assert that axe finds nothing by the rules in ``options``, on a light desktop and a dark phone."""
    from axe_playwright_python.sync_playwright import Axe

    for width, scheme in ((1280, "light"), (380, "dark")):
        set_screen(page, width, scheme)
        # What is right takes axe as long to list.
        found = Axe().run(page, options={"resultTypes": ["violations"], **options})
        assert found.response["violations"] == [], (width, scheme)


@pytest.mark.browser
def test_nothing_is_cut_or_small_at_any_width(shown, browser):
    """In light and in dark. Screenshots of the page as it opens stay in artifacts/report; all of it,
    unfolded, is judged."""
    state, address = shown
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.evaluate(DRAW)
    assert page.locator("#next").bounding_box()["y"] < 850, "the first screen says what to run next"
    SCREENS.mkdir(parents=True, exist_ok=True)
    for width, scheme in itertools.product(WIDTHS, SCHEMES):
        set_screen(page, width, scheme)
        page.screenshot(
            path=SCREENS / f"{state}-{width}-{scheme}.jpg", full_page=True, type="jpeg", quality=60
        )
    page.evaluate(UNFOLD)
    page.evaluate(DRAW)
    for width, scheme in itertools.product(WIDTHS, SCHEMES):
        set_screen(page, width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT) == [], (width, scheme)
    assert page.evaluate(SMALL) == []
    contrast = "color-contrast"  # takes axe nine tenths of its time, and is that of the colours alone
    assert_accessible(page, rules={contrast: {"enabled": False}})
    page.evaluate(THIN)
    assert_accessible(page, runOnly=[contrast])
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


@pytest.mark.browser
def test_every_figure_is_there_with_and_without_scripts(shown, page, browser):
    """Plots are drawn on the screen; on paper and without scripts they are SVG whose text can be read."""
    state, address = shown
    figures = {"empty": 1, "demo": 5, "full": 9, "failed": 4}[state]
    assert page.locator("figure .static > svg").count() == figures
    assert (
        page.locator(".pictures img.found").count()
        == {"empty": 0, "demo": 4, "full": 24, "failed": 0}[state]
    )
    assert page.locator("figure .static").first.is_hidden()
    page.evaluate(DRAW)
    assert page.locator(".frame canvas").count() == page.locator(".panel").count() > 0
    page.emulate_media(media="print")
    assert page.locator("figure .static").first.is_visible()
    context = browser.new_context(java_script_enabled=False, color_scheme="dark")
    page = context.new_page()
    page.goto(address)
    page.set_viewport_size({"width": 380, "height": 900})
    assert page.locator("[data-grid^=coco] th", has_text="zoo AP75").first.is_hidden()
    assert page.locator("[data-grid^=coco] td[data-label='zoo AP75']").first.is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    for svg in page.locator("figure .static > svg").all():
        assert svg.is_visible()
        assert min(svg.evaluate(PIXELS)) >= 12
        assert any(c.isdigit() for c in svg.get_attribute("aria-label")), "the words have the numbers"
    # Text of the plots takes the page's colour, so that it can be read on a dark page.
    text = page.locator("figure svg text").first.evaluate("e => getComputedStyle(e).fill")
    assert text == page.locator("body").evaluate("e => getComputedStyle(e).color")
    page.close()
    context.close()


@pytest.mark.browser
def test_the_figure_says_every_result(opened):
    state, page = opened
    said = page.locator(".dots td.track svg[aria-label^='Triplet, box']").get_attribute("aria-label")
    for each in {
        "full": ["Triplet, 2x: ", "Triplet (short), 1/2x: 30.0", "Triplet (like-for-like), 2x: 41.2"],
        "failed": ["Triplet, 1/2x: 26.4"],
    }.get(state, []):
        assert f"; {each}" in said


@pytest.mark.browser
def test_what_is_empty_is_folded_away(opened):
    """No visible column of the page as it opens is empty, but for the published AP in the paper's table."""
    state, page = opened
    assert [each for each in page.evaluate(EMPTY) if not each.startswith("COCO val2017")] == []
    assert page.locator("[data-grid=recipes]").is_visible() == (state in ("full", "failed"))
    if state != "empty":
        assert page.locator("#costs-each table").is_hidden()


@pytest.mark.browser
def test_the_picture_of_the_demo(tmp_path, browser):
    """README's: the first screen after the demo's three seeds, by the numbers in benchmarks/results."""
    numbers = json.loads((KIT / "benchmarks" / "results" / "demo.json").read_text())["results"]
    with placed(tmp_path):
        for name in dict.fromkeys(each["run"] for each in numbers):
            ap = {(n["task"], n["metric"]): n["value"] for n in numbers if n["run"] == name}
            seed = next(n["seed"] for n in numbers if n["run"] == name)
            run_records.run(name, ap["box", "AP"], ap["mask", "AP"], seed, images=200)
        assert cli.main(["report"]) == 0
        page = browser.new_page(viewport={"width": 1280, "height": 780}, color_scheme="light")
        page.goto((tmp_path / "reports" / "index.html").as_uri())
        sentences = page.locator(".sentences").inner_text()
        assert "demo: triplet, 3 seeds: box AP 27.7 ± 1.3" in sentences
        SCREENS.mkdir(parents=True, exist_ok=True)
        picture = SCREENS / "demo.png"
        page.screenshot(path=picture)
        said = page.locator(".answer").inner_text()
        page.close()
    kept = KIT / "benchmarks" / "results" / "demo.png"
    if os.environ.get("UPDATE"):
        text = PngImagePlugin.PngInfo()
        text.add_itxt("answer", said)
        with files.atomic(kept) as temporary:
            Image.open(picture).save(temporary, "PNG", pnginfo=text, optimize=True)
    assert Image.open(kept).text["answer"] == said, "README's picture is old: run this test with UPDATE=1"


HOSTILE = (
    """"><svg onload=ran=1><img src=x onerror=ran=1>'</script><script>ran=1</script>{{ 7*7 }}$\\frac{$"""
)


def spoil(value, key=""):
    """Hostile text behind every text of a record, but for what must hold for it to be read."""
    if isinstance(value, dict):
        return {k + HOSTILE * (key == "bbox"): spoil(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [spoil(each, key) for each in value]
    kept = key in ("path", "sha256", "stage", "started", "ended", "best_layer")
    return value + HOSTILE if isinstance(value, str) and not kept else value


@pytest.mark.browser
def test_nothing_that_a_record_holds_runs_in_the_page(places, browser):
    named = HOSTILE.replace("/", "")  # a folder's name holds all but that
    full()
    run_records.run(f"x{named}/triplet", 24.0, 21.0, images=60, pictures=2)
    run_records.others(f"y{named}")
    run_records.perform(
        "triplet",
        f"linear/{named}",
        results={"best": {"epoch": 1, "top1": 70.0, "top5": 90.0}},
        texts={"metrics": run_records.as_lines([{"iteration": 1, "loss": 2.0}])},
    )
    for path in (places / "checkpoints").rglob("record.json"):
        path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    for path in (places / "checkpoints").rglob("metrics.jsonl"):
        path.write_text(path.read_text() + json.dumps({HOSTILE: HOSTILE, "iteration": 999}) + "\n")
    assert cli.main(["report"]) == 0
    page = browser.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.goto((places / "reports" / "index.html").as_uri())
    assert page.evaluate("typeof ran") == "undefined"
    assert page.locator("[onload], [onerror]").count() == 0
    assert said == []
    assert "onerror=ran" in page.content(), "it is shown as text"
    page.close()


@pytest.mark.browser
def test_the_page_runs_no_script_but_its_own(opened):
    """Should an escape be forgotten: the page's policy stops what comes in."""
    _, page = opened
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=ran=1>')")
    page.evaluate("s = document.createElement('script'); s.text = 'ran=1'; document.body.append(s)")
    page.wait_for_timeout(200)
    assert page.evaluate("typeof ran") == "undefined"
    page.evaluate("document.body.lastChild.remove(); document.body.lastChild.remove()")
