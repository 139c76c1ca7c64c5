"""The page as its reader uses it: values, runs, comparisons, pictures and tables by mouse and keyboard."""

import re

import pytest
from playwright.sync_api import expect

from tests.support.browser import DRAW, UNFOLD, WIDTHS
from triplet.published import curves
from triplet.published.methods import load_methods


@pytest.mark.browser
def test_values_can_be_read_by_mouse_and_keyboard(shown, page):
    state = shown[0]
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


@pytest.mark.browser
@pytest.mark.parametrize(
    ("reported", "names"),
    [("demo", ("demo/seed0/triplet", "demo/seed1/random")), ("full", ("moco",))],
    indirect=["reported"],
)
def test_a_runs_part_has_its_own_curves_and_pictures(page, names):
    for name in names:
        part = page.locator("details.run", has=page.locator(f"summary b:text-is('{name}')"))
        part.evaluate("each => { each.open = true; }")
        # Not by mouse: a plot that is drawn meanwhile moves what it points at.
        part.locator(".own summary").press("Enter")
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
            part.locator("button", has=page.locator("img.found")).last.press("Enter")
            alt = part.locator("img.found").last.get_attribute("alt")
            expect(page.locator("dialog .said")).to_have_text(alt)
            page.keyboard.press("Escape")


@pytest.mark.browser
def test_any_two_methods_are_compared(shown, page):
    state = shown[0]
    assert page.locator(".compare").count() == {"empty": 0, "demo": 1, "full": 2, "failed": 0}[state]
    if state == "demo":
        part = page.locator(".compare")
        assert part.locator(".paired").inner_text().startswith("+4.2 (")
        assert "does not explain it" in part.locator(".paired").inner_text()
        first, second, task = part.locator("select").all()
        part.locator("table").nth(1).locator("th[scope=col] button").first.press("Enter")
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


@pytest.mark.browser
@pytest.mark.parametrize("reported", ["full"], indirect=True)
def test_precision_over_recall_is_of_the_two_chosen_rows(page):
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
    part.locator(".legend button", has_text="simclr").press("Enter")
    assert part.locator(".legend button[aria-pressed=true]").count() == 3


@pytest.mark.browser
@pytest.mark.parametrize("reported", ["demo", "full"], indirect=True)
def test_a_picture_opens_large_beside_the_truth(page):
    page.locator(".pictures button", has=page.locator(".found")).first.press("Enter")
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


@pytest.mark.browser
def test_tables_sort_by_the_keyboard_and_columns_are_chosen(page):
    page.set_viewport_size({"width": 1280, "height": 900})
    page.evaluate(UNFOLD)
    page.evaluate(DRAW)  # before the mouse is used: a plot that is drawn meanwhile moves what it points at
    tables = page.locator("table.grid", has_text="ours − published")
    assert_sorts(max(tables.all()[:3], key=lambda each: each.locator("tbody tr").count()), page.keyboard)
    assert tables.first.locator("th", has_text="zoo AP75").is_hidden()
    page.locator(".columns label", has_text="zoo AP75").first.locator("input").check()
    assert tables.first.locator("th", has_text="zoo AP75").is_visible()
    for grid in page.locator(".scroll[data-grid]").all():
        headings = grid.locator("th[scope=col]").all()
        chooser = grid.locator("xpath=preceding-sibling::*[1][contains(@class, 'columns')]")
        assert chooser.count() == (len(headings) >= 6), grid.get_attribute("data-grid")
        if len(headings) >= 6:
            assert headings[1].is_visible()
            chooser.locator("input").first.uncheck()
            assert headings[1].is_hidden()
            assert grid.locator("tbody tr:first-child > :nth-child(2)").is_hidden()


def assert_sorts(table, keyboard):
    heading = table.locator("th[scope=col]", has_text="README AP").first

    def column():
        return [float(text) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]

    before = column()
    heading.locator("button").focus()
    keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(before) != before
    keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column() == sorted(before, reverse=True)
    zoo = table.locator("th[scope=col]", has_text="zoo AP").first
    for _ in range(2):  # what the zoo does not have stays last, up or down
        zoo.locator("button").click()
        last = table.locator("tbody tr").last.inner_text()
        assert "Triplet" in last or "Triplet" not in table.inner_text()
    assert heading.get_attribute("aria-sort") is None


@pytest.mark.browser
def test_a_number_leads_to_its_records_and_paper_shows_them(shown, page):
    if shown[0] != "empty":
        page.locator("td.ours a").locator("visible=true").first.press("Enter")
        name = page.evaluate("location.hash.slice(1)")
        assert page.locator(f"details#{name}").get_attribute("open") is not None
        assert page.locator(f"details#{name} .strip").is_visible()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("nav").is_hidden()
