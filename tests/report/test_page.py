"""The page as a real browser shows it: at every width, to everybody, and with what others wrote in it."""

import json
import os
import re
import shutil

import pytest
from PIL import Image, PngImagePlugin
from playwright.sync_api import expect

from tests.conftest import KIT, placed
from tests.support import run_records
from tests.support.report_states import STATES, full
from triplet import cli, files
from triplet.published import curves
from triplet.published.methods import load_methods

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCREENS = KIT / "artifacts" / "report"
"""Where the screenshots of these tests stay to be looked at; git ignores it."""
WIDTHS = (380, 768, 1280, 1920)
CUT = """() => {
  const parts = document.querySelectorAll('.scroll, td, th, dd, pre, li, summary, figcaption, .frame');
  return [...parts]
    .filter((e) => e.checkVisibility() && getComputedStyle(e).display !== 'inline')
    .filter((e) => e.scrollWidth > e.clientWidth + 1)
    .map((e) => `${e.tagName}.${e.className} ${e.scrollWidth} > ${e.clientWidth}: ${e.textContent.trim()}`);
}"""
SMALL = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = new Set();
  for (let node; (node = walker.nextNode());) {
    const e = node.parentElement, size = getComputedStyle(e).fontSize;
    if (node.textContent.trim() && e.checkVisibility() && parseFloat(size) < 12)
      found.add(`${e.tagName}.${e.className} ${size}: ${node.textContent.trim()}`);
  }
  return [...found];
}"""
PIXELS = """(svg) => [...svg.querySelectorAll('text')]
  .map((text) => [parseFloat(getComputedStyle(text).fontSize), text.getScreenCTM()])
  .map(([size, matrix]) => size * Math.hypot(matrix.a, matrix.b) + 0.01)"""
UNFOLD = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"
DRAW = "document.querySelectorAll('.plot').forEach((each) => { if (!each.childNodes.length) drawn(each); })"


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
def shown(request, tmp_path_factory):
    """(state, address) of a page in each state."""
    with placed(tmp_path_factory.mktemp(request.param)) as folder:
        STATES[request.param]()
        assert cli.main(["report"]) == 0
    return request.param, (folder / "reports" / "index.html").as_uri()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_or_small_at_any_width(shown, browser, scheme):
    """Screenshots of the page as it opens stay in artifacts/report; all of it unfolded is judged."""
    from axe_playwright_python.sync_playwright import Axe

    state, address = shown
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.evaluate(DRAW)
    SCREENS.mkdir(parents=True, exist_ok=True)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        path = SCREENS / f"{state}-{width}-{scheme}.jpg"
        page.screenshot(path=path, full_page=True, type="jpeg", quality=60)
        if width == 1280:
            assert page.locator("#next").bounding_box()["y"] < 850, "the first screen says what to run next"
    page.evaluate(UNFOLD)
    page.evaluate(DRAW)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT) == [], width
        if (width, scheme) in ((380, "dark"), (1280, "light")):
            assert Axe().run(page).response["violations"] == []
    assert page.evaluate(SMALL) == []
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


@pytest.mark.browser
def test_every_figure_is_there_with_and_without_scripts(shown, browser):
    """Plots are drawn on the screen; on paper and without scripts they are SVG whose text can be read."""
    state, address = shown
    figures = {"empty": 1, "demo": 5, "full": 9, "failed": 4}[state]
    page = browser.new_page()
    page.goto(address)
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
    page.close()
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
    page.close()
    context.close()
    page = browser.new_page(color_scheme="dark")
    page.goto(address)
    text = page.locator("figure svg text").first.evaluate("e => getComputedStyle(e).fill")
    assert text == page.locator("body").evaluate("e => getComputedStyle(e).color")
    page.close()


@pytest.mark.browser
def test_values_can_be_read_by_mouse_and_keyboard(shown, browser):
    state, address = shown
    page = browser.new_page()
    page.goto(address)
    page.locator("#plot-budget").scroll_into_view_if_needed()
    frame = page.locator("#plot-budget .frame")
    frame.focus()
    page.keyboard.press("ArrowRight")
    readout = page.locator("#plot-budget .readout")
    for _ in range(80):  # to the full schedule, where most is published
        page.keyboard.press("ArrowRight")
        if readout.inner_text().startswith("schedule 2x: "):
            break
    said = readout.inner_text()
    lines = [said]
    for _ in range(9):  # lines beyond the nearest five, by the keyboard as well
        page.keyboard.press("ArrowDown")
        if readout.inner_text() == lines[-1]:
            break
        lines.append(readout.inner_text())
    line = r"(?:: |, )((?:expected|published|ours)[^;]*?) (\d+(?:\.\d+)?)(?=[,;\n]|$)"
    values = dict(re.findall(line, "\n".join(lines)))
    band = curves.expected("triplet", "c4", curves.FULL).box
    assert float(values["expected of triplet"]) == pytest.approx(band.mid, abs=0.01)
    assert float(values["expected of triplet, low"]) == pytest.approx(band.low, abs=0.01)
    assert len([name for name in values if name.startswith("published: ")]) > 5
    if state == "full":
        ap = 40.9 - list(load_methods()).index("moco") / 10
        assert float(values["ours: moco"]) == pytest.approx(ap)
    page.keyboard.press("ArrowUp")
    assert readout.inner_text() == lines[-2]
    page.close()


@pytest.mark.browser
def test_a_runs_part_has_its_own_curves_and_pictures(shown, browser):
    state, address = shown
    page = browser.new_page()
    page.goto(address)
    for name in {"demo": ("demo/seed0/triplet", "demo/seed1/random"), "full": ("moco",)}.get(state, ()):
        part = page.locator("details.run", has=page.locator(f"summary b:text-is('{name}')"))
        part.evaluate("each => { each.open = true; }")
        part.locator(".own summary").click()
        pictures = 0 if "seed1" in name else 2
        expect(part.locator(".pictures img.found")).to_have_count(pictures)
        assert all(name in each.get_attribute("alt") for each in part.locator("img.found").all())
        for plot in ("pretrain", "finetune"):
            frame = part.locator(f"[data-plot={plot}] .frame").first
            frame.focus()
            page.keyboard.press("ArrowRight")
            page.keyboard.press("ArrowRight")
            said = part.locator(f"[data-plot={plot}] .readout").first.inner_text()
            assert re.fullmatch(rf"iteration \d+: {name} [\d.]+", said), said
        if pictures:
            part.locator("button", has=page.locator("img.found")).last.click()
            alt = part.locator("img.found").last.get_attribute("alt")
            expect(page.locator("dialog .said")).to_have_text(alt)
            page.keyboard.press("Escape")
    page.close()


EMPTY = """() => [...document.querySelectorAll('table.grid')]
  .filter((table) => table.checkVisibility())
  .flatMap((table) => [...table.tHead.rows[0].cells].slice(1).map((heading) => {
    const cells = [...table.tBodies[0].rows].map((row) => row.cells[heading.cellIndex].textContent.trim());
    return cells.every((text) => text === '–') && `${table.parentNode.ariaLabel}: ${heading.textContent}`;
  })).filter((each) => each)"""


@pytest.mark.browser
def test_the_figure_says_every_result(shown, browser):
    state, address = shown
    page = browser.new_page()
    page.goto(address)
    said = page.locator(".dots td.track svg[aria-label^='Triplet, box']").get_attribute("aria-label")
    for each in {
        "full": ["Triplet, 2x: ", "Triplet (short), 1/2x: 30.0", "Triplet (like-for-like), 2x: 41.2"],
        "failed": ["Triplet, 1/2x: 26.4"],
    }.get(state, []):
        assert f"; {each}" in said
    page.close()


@pytest.mark.browser
def test_what_is_empty_is_folded_away(shown, browser):
    """No visible column of the page as it opens is empty, but for the published AP in the paper's table."""
    state, address = shown
    page = browser.new_page()
    page.goto(address)
    assert [each for each in page.evaluate(EMPTY) if not each.startswith("COCO val2017")] == []
    assert page.locator("[data-grid=recipes]").is_visible() == (state in ("full", "failed"))
    if state != "empty":
        assert page.locator("#costs-each table").is_hidden()
    page.close()


@pytest.mark.browser
def test_any_two_methods_are_compared(shown, browser):
    state, address = shown
    page = browser.new_page()
    page.goto(address)
    assert page.locator(".compare").count() == {"empty": 0, "demo": 1, "full": 2, "failed": 0}[state]
    if state == "demo":
        part = page.locator(".compare")
        assert part.locator(".paired").inner_text().startswith("+4.2 (")
        assert "does not explain it" in part.locator(".paired").inner_text()
        first, second, task = part.locator("select").all()
        part.locator("table").nth(1).locator("th[scope=col] button").first.click()
        assert part.locator("table").nth(1).locator("[aria-sort]").count() == 1
        first.select_option("demo/random")
        second.select_option("demo/triplet")
        task.select_option("mask")
        assert part.locator(".paired").inner_text().startswith("-2.1 (")
        pair = part.locator("p", has=page.locator(".paired")).inner_text()
        assert pair.startswith("demo/random less demo/triplet: -2.1 (")
        assert part.locator("[aria-sort]").count() == 0
        second.select_option("demo/random")
        assert part.locator(".paired").inner_text() == "–"
        texts = part.locator("table").nth(1).locator("td").all_inner_texts()
        assert "-0.0" not in texts
        second.select_option("demo/triplet")
        pressed = part.locator(".legend button[aria-pressed=true]").all_inner_texts()
        assert [each.strip() for each in pressed] == ["demo/random", "demo/triplet"]
        headings = part.locator("table").nth(1).locator("th[scope=col]").all_inner_texts()
        assert headings[1:3] == ["demo/random", "demo/triplet"]
    page.close()


@pytest.mark.browser
def test_precision_over_recall_is_of_the_two_chosen_rows(shown, browser):
    state, address = shown
    if state != "full":
        return
    page = browser.new_page()
    page.goto(address)
    part = page.locator("#compare-table")
    part.locator("select").first.select_option("moco")
    part.locator("select").nth(1).select_option("byol")
    page.evaluate(DRAW)
    for chosen in ({"moco", "byol"}, {"moco", "triplet"}):
        pressed = part.locator(".legend button[aria-pressed=true]").all_inner_texts()
        assert {each.strip() for each in pressed} == chosen
        part.locator(".frame").first.focus()
        page.keyboard.press("ArrowRight")
        said = part.locator(".readout").first.inner_text().partition(": ")[2]
        assert {each.rpartition(" ")[0] for each in said.split(", ")} == chosen
        part.locator("select").nth(1).select_option("triplet")
    part.locator(".legend button", has_text="simclr").click()
    assert part.locator(".legend button[aria-pressed=true]").count() == 3
    page.close()


@pytest.mark.browser
def test_a_picture_opens_large_beside_the_truth(shown, browser):
    state, address = shown
    if state not in ("demo", "full"):
        return
    page = browser.new_page()
    page.goto(address)
    page.locator(".pictures button", has=page.locator(".found")).first.press(
        "Enter"
    )  # plots above may move it
    dialog = page.locator("dialog")
    expect(dialog.locator(".large img")).to_have_count(2, timeout=30_000)
    for width in WIDTHS[:3]:
        page.set_viewport_size({"width": width, "height": 900})
        boxes = [each.bounding_box() for each in (dialog, *dialog.locator(".large img").all())]
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes), (width, boxes)
        small = page.locator(".pictures > figure img.found").first.bounding_box()["width"]
        assert all(box["width"] > 1.5 * small for box in boxes[1:]), (width, small, boxes)
    before = dialog.locator(".said").inner_text()
    page.keyboard.press("ArrowRight")
    expect(dialog.locator(".said")).not_to_have_text(before, timeout=30_000)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden(timeout=30_000)
    page.close()


@pytest.mark.browser
def test_columns_are_chosen(shown, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(shown[1])
    page.evaluate(UNFOLD)
    table = page.locator("table.grid", has_text="ours − published").first
    assert table.locator("th", has_text="zoo AP75").is_hidden()
    page.locator(".columns label", has_text="zoo AP75").first.locator("input").check()
    assert table.locator("th", has_text="zoo AP75").is_visible()
    for grid in page.locator(".scroll[data-grid]").all():
        headings = grid.locator("th[scope=col]").all()
        chooser = grid.locator("xpath=preceding-sibling::*[1][contains(@class, 'columns')]")
        assert chooser.count() == (len(headings) >= 6), grid.get_attribute("data-grid")
        if len(headings) >= 6:
            assert headings[1].is_visible()
            chooser.locator("input").first.uncheck()
            assert headings[1].is_hidden()
            assert grid.locator("tbody tr:first-child > :nth-child(2)").is_hidden()
    page.close()


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
        assert "demo: triplet, 3 seeds: box AP 31.7 ± 1.6" in sentences
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
def test_the_page_runs_no_script_but_its_own(shown, browser):
    """Should an escape be forgotten: the page's policy stops what comes in."""
    page = browser.new_page()
    page.goto(shown[1])
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=ran=1>')")
    page.evaluate("s = document.createElement('script'); s.text = 'ran=1'; document.body.append(s)")
    page.wait_for_timeout(200)
    assert page.evaluate("typeof ran") == "undefined"
    page.close()


@pytest.mark.browser
def test_tables_sort_by_the_keyboard(shown, browser):
    page = browser.new_page()
    page.goto(shown[1])
    page.evaluate(UNFOLD)
    table = page.locator("table.grid", has_text="ours − published")
    table = max(table.all()[:3], key=lambda each: each.locator("tbody tr").count())
    heading = table.locator("th[scope=col]", has_text="README AP").first

    def column():
        return [float(text) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]

    before = column()
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(before) != before
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column() == sorted(before, reverse=True)
    zoo = table.locator("th[scope=col]", has_text="zoo AP").first
    for _ in range(2):  # what the zoo does not have stays last, up or down
        zoo.locator("button").click()
        last = table.locator("tbody tr").last.inner_text()
        assert "Triplet" in last or "Triplet" not in table.inner_text()
    assert heading.get_attribute("aria-sort") is None
    page.close()


@pytest.mark.browser
def test_a_number_leads_to_its_records_and_paper_shows_them(shown, browser):
    state, address = shown
    page = browser.new_page()
    page.goto(address)
    if state != "empty":
        page.locator("td.ours a").locator("visible=true").first.click()
        name = page.evaluate("location.hash.slice(1)")
        assert page.locator(f"details#{name}").get_attribute("open") is not None
        assert page.locator(f"details#{name} .strip").is_visible()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("nav").is_hidden()
    page.close()
