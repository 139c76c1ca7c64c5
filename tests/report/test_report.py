"""The report stage's files, and the page as a real browser shows it."""

import csv
import io
import json
import shutil
import subprocess
import sys

import pytest

from tests.conftest import KIT
from tests.report import making
from triplet import cli
from triplet.published.rows import load_methods
from triplet.report import plots, stage
from triplet.runs import collect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def demo():
    """What `make demo` leaves."""
    for row, box in (("random", 20.0), ("triplet", 25.0)):
        making.run(f"demo/seed0/{row}", box, box / 2, images=60, pictures=2)


def full():
    """Every kind of table filled, several seeds and recipes."""
    demo()
    for number, (row, method) in enumerate(load_methods().items()):
        making.run(row, method.readme.box - number / 10, method.readme.mask, pictures=2)
    making.run("seed1/triplet", 41.6, 36.1, seed=1)
    making.run("short/triplet", 30.0, 27.0, SOLVER__MAX_ITER=45_000, precision="bfloat16")
    making.run("like-for-like/triplet", 41.2, 35.9, reference=making.MOCO)
    making.run("voc/triplet", 56.8, None, reference=making.VOC, images=4952, engine="voc")
    making.others("triplet")


STATES = {"empty": lambda: None, "demo": demo, "full": full}


def test_without_any_record(places):
    assert cli.main(["report"]) == 0
    page = (places / "reports" / "index.html").read_text()
    assert "No stage has left a record yet" in page
    assert "41.7" in page
    assert "make pull convert finetune eval PULL=weights METHOD=triplet" in page


def test_every_format_has_the_numbers(places):
    making.run("triplet", 41.5, 35.1)
    assert cli.main(["report"]) == 0
    reports = places / "reports"
    assert "| Triplet | 41.7 | – | 41.5 | -0.2 | within noise |" in (reports / "report.md").read_text()
    rows = list(csv.DictReader(io.StringIO((reports / "results.csv").read_text())))
    numbers = json.loads((reports / "results.json").read_text())
    for line in (rows, numbers):
        box = next(n for n in line if (n["task"], n["metric"]) == ("box", "AP"))
        assert float(box["value"]) == 41.5
    assert ">41.5</a>" in (reports / "index.html").read_text()
    for name in ("budget", "pretrain", "finetune"):
        assert (reports / "plots" / f"{name}.svg").read_text().startswith("<svg")
        assert (reports / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_markdown_is_whole_tables(places):
    full()
    assert cli.main(["report"]) == 0
    lines = (places / "reports" / "report.md").read_text().splitlines()
    tables = [i for i, line in enumerate(lines) if line.startswith("|---")]
    assert len(tables) > 12
    for i in tables:
        columns = lines[i].count("|")
        assert lines[i - 1].count(" | ") == columns - 2
        assert lines[i + 1].startswith("| ")
        assert lines[i - 2] == ""


@pytest.mark.slow
def test_the_page_stays_small(places):
    """As many runs as nobody has, each with pictures: what does not fit is left out and said to be."""
    full()
    runs = collect(places / "checkpoints") * 12
    content = stage.contents(runs, load_methods(), {})
    page = stage.page(content, runs, stage.draw(runs), stage.crate.all_records())
    assert len(page.encode()) <= stage.LARGEST
    assert "more runs are in" in page


def test_the_report_needs_no_detectron2(places):
    making.run("triplet", 30.0, 27.0, SOLVER__MAX_ITER=45_000)
    code = (
        "import sys; from tests.support.missing import refuse; refuse('detectron2', 'torch');"
        "from triplet import cli; sys.exit(cli.main(['report']) or cli.main(['report', '--verify']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=KIT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_can_be_made_again_and_leaves_what_it_does_not_know(places):
    (places / "reports").mkdir()
    (places / "reports" / "mine.txt").write_text("mine")
    for _ in range(2):
        assert cli.main(["report"]) == 0
    assert (places / "reports" / "mine.txt").read_text() == "mine"


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
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(KIT)
        for name in ("datasets", "checkpoints", "reports"):
            patch.setenv(f"TRIPLET_{name.upper()}", str(folder / name))
        STATES[request.param]()
        assert cli.main(["report"]) == 0
    return request.param, (folder / "reports" / "index.html").as_uri()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(380, "dark"), (1280, "light")])
def test_the_page_in_a_browser(shown, browser, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    state, address = shown
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert Axe().run(page).response["violations"] == []
    assert page.locator("figure svg").count() == {"empty": 1, "demo": 4, "full": 7}[state]
    # Text of the plots takes the page's colour, so that it can be read on a dark page.
    text = page.locator("figure svg text").first.evaluate("e => getComputedStyle(e).fill")
    assert text == page.locator("body").evaluate("e => getComputedStyle(e).color")
    assert page.locator(".pictures img").count() == {"empty": 0, "demo": 4, "full": 24}[state]
    page.close()


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
    making.run(f"x{named}/triplet", 24.0, 21.0, images=60, pictures=2)
    making.others(f"y{named}")
    making.perform(
        "triplet",
        f"linear/{named}",
        results={"best": {"epoch": 1, "top1": 70.0, "top5": 90.0}},
        texts={"metrics": making.as_lines([{"iteration": 1, "loss": 2.0}])},
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


def test_damaged_lines_of_metrics_stop_no_curve(places, capsys):
    making.pretrain("triplet")
    (log,) = (places / "checkpoints").rglob("metrics.jsonl")
    odd = [b"\xff\xfe", b"[3]", b'{"loss": 3}', b'{"iteration": "x", "loss": 3}', b'{"iteration": 1e999}']
    odd.append(b'{"iteration": 900, "loss": "much", "feature_std": 1' + b"0" * 400 + b"}")
    log.write_bytes(b"\n".join([*odd, log.read_bytes()]))
    (run,) = collect(places / "checkpoints")
    assert plots.curves([run], "pretrain", {"loss": "Loss", "feature_std": "Spread"}, "curves", "")
    assert "metrics.jsonl: 3 damaged lines are left out" in capsys.readouterr().out


def test_no_cell_of_the_csv_is_a_formula(places):
    making.run("=cmd|' /C calc'!A0/+x/triplet", 41.5, 35.1)
    assert cli.main(["report"]) == 0
    rows = list(csv.reader(io.StringIO((places / "reports" / "results.csv").read_text())))
    assert any(cell.startswith("'=cmd") for row in rows for cell in row)
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "@"))]


@pytest.mark.browser
def test_tables_sort_by_the_keyboard(shown, browser):
    page = browser.new_page()
    page.goto(shown[1])
    table = page.locator("#coco-box ~ div table").first
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
        assert "Triplet" in table.locator("tbody tr").last.inner_text()
    assert heading.get_attribute("aria-sort") is None
    page.close()


@pytest.mark.browser
def test_a_number_leads_to_its_records_and_paper_shows_them(shown, browser):
    state, address = shown
    page = browser.new_page()
    page.goto(address)
    if state != "empty":
        page.locator("td.ours a").first.click()
        name = page.evaluate("location.hash.slice(1)")
        assert page.locator(f"details#{name}").get_attribute("open") is not None
        assert page.locator(f"details#{name} table").is_visible()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("nav").is_hidden()
    page.close()
