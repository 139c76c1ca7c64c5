"""The report from records, and as a real browser shows it."""

import csv
import io
import json
import shutil

import pytest

from triplet import cli, records
from triplet.methods import load_methods
from triplet.report.collect import collect
from triplet.report.stage import contents

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def run(name, box, mask, seed=0, iterations=180_000, images=5000, force=False):
    """Leave the records of a run with these results, each stage reading what the one before wrote."""

    def work(job):
        stage = job.folder.name
        if stage == "finetune":
            job.results["iterations"] = iterations
        if stage == "eval":
            job.results["images"] = images
            for task, ap in (("bbox", box), ("segm", mask)):
                job.results[task] = {"AP": ap, "AP50": ap + 20, "AP75": None}
        if stage == "pretrain":
            path = job.folder / "metrics.jsonl"
            lines = [
                {"iteration": i, "loss": 198 - i / 9, "positive_cosine": i / 9, "feature_std": 0.9}
                for i in range(9)
            ]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            job.outputs["metrics"] = path
        if stage in WROTE:
            path = job.folder / "output"
            path.write_text(f"{stage} {box} {iterations}")
            job.outputs[WROTE[stage]] = path

    inputs = {}
    for stage in ("pretrain", "convert", "finetune", "eval"):
        folder = records.stage_folder(name, stage)
        records.perform(stage, folder, config={}, inputs=inputs, work=work, seed=seed, force=force)
        inputs = {"model" if stage == "finetune" else "weights": folder / "output"}


WROTE = {"pretrain": "checkpoint", "convert": "weights", "finetune": "model"}


def paper_rows(page_rows):
    return {row["name"]: row for row in page_rows}


def test_without_any_record(places):
    assert cli.main(["report"]) == 0
    page = (places / "reports" / "index.html").read_text()
    assert "No stage has left a record yet" in page
    assert "41.7" in page
    assert "make convert METHOD=triplet" in page


def test_the_papers_table(places):
    run("triplet", 41.5, 35.1)
    run("seed1/triplet", 41.7, 35.3, seed=1)
    run("demo/seed0/triplet", 20.0, 10.0)
    rows = paper_rows(contents(collect(places / "checkpoints"), load_methods())["paper"])
    assert list(rows) == list(load_methods())
    box, mask = rows["triplet"]["cells"]
    assert str(box["ours"]) == "41.6 ± 0.1"
    assert box["difference"] == pytest.approx(-0.1)
    assert mask["difference"] == pytest.approx(-1.0)
    assert rows["byol"]["cells"][0] == {"readme": 40.3, "zoo": 40.2, "ours": None, "difference": None}
    assert cli.main(["report"]) == 0
    page = (places / "reports" / "index.html").read_text()
    assert "within noise" in page
    assert "beyond noise" in page


def test_an_experiment_pairs_its_seeds(places):
    for seed, (random, triplet) in enumerate([(20.0, 25.0), (30.0, 33.0), (25.0, 31.0)]):
        run(f"demo/seed{seed}/random", random, 10.0, seed)
        run(f"demo/seed{seed}/triplet", triplet, 12.0, seed)
    content = contents(collect(places / "checkpoints"), load_methods())
    (experiment,) = content["experiments"]
    random, triplet = experiment["rows"]
    assert (experiment["name"], random["row"], triplet["row"]) == ("demo", "random", "triplet")
    assert triplet["gain"].values == (5.0, 3.0, 6.0)
    assert random["gain"] is None
    assert triplet["scores"][("bbox", "AP75")] is None
    assert all(cell["ours"] is None for row in content["paper"] for cell in row["cells"])


@pytest.mark.parametrize("changes", [{"iterations": 600}, {"images": 100}])
def test_another_budget_does_not_enter_the_papers_table(places, changes):
    run("triplet", 41.5, 35.1, **changes)
    content = contents(collect(places / "checkpoints"), load_methods())
    assert all(cell["ours"] is None for row in content["paper"] for cell in row["cells"])
    assert [e["name"] for e in content["experiments"]] == ["another budget than the paper's"]


def test_an_evaluation_of_an_older_model_is_left_out(places):
    run("triplet", 41.5, 35.1)
    folder = records.stage_folder("triplet", "finetune")

    def work(job):
        (job.folder / "output").write_text("another model")
        job.outputs["model"] = job.folder / "output"

    inputs = {"weights": records.stage_folder("triplet", "convert") / "output"}
    records.perform("finetune", folder, config={}, inputs=inputs, work=work, force=True)
    (found,) = collect(places / "checkpoints")
    assert set(found.stages) == {"pretrain", "convert", "finetune"}
    assert "its eval was made from another finetune" in found.stale
    assert cli.main(["report"]) == 0
    assert "FORCE=1" in (places / "reports" / "index.html").read_text()


def test_foreign_records_do_not_disturb(places):
    (places / "checkpoints" / "elsewhere").mkdir(parents=True)
    (places / "checkpoints" / "elsewhere" / "record.json").write_text("not ours")
    assert cli.main(["report"]) == 0


def test_csv_and_json_agree(places):
    run("triplet", 41.5, 35.1, seed=7)
    assert cli.main(["report"]) == 0
    flat = json.loads((places / "reports" / "results.json").read_text())
    table = list(csv.DictReader(io.StringIO((places / "reports" / "results.csv").read_text())))
    assert [{k: str(v) for k, v in line.items()} for line in flat] == table
    assert {(r["task"], r["metric"]): r["value"] for r in flat} == {
        ("box", "AP"): 41.5, ("box", "AP50"): 61.5, ("mask", "AP"): 35.1, ("mask", "AP50"): 55.1,
    }  # fmt: skip
    assert flat[0]["seed"] == 7


def test_names_are_escaped(places):
    run("<script>alert(1)</script>", 1.0, 1.0)
    assert cli.main(["report"]) == 0
    assert "<script>" not in (places / "reports" / "index.html").read_text()


def test_other_files_in_the_reports_folder_stay(places):
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


@pytest.mark.browser
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1280])
def test_the_page_in_a_browser(places, browser, width, scheme, full):
    if full:
        for row in ("random", "triplet"):
            run(f"demo/seed0/{row}", 20.0, 10.0)
        run("triplet", 41.5, 35.1)
    assert cli.main(["report"]) == 0
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((places / "reports" / "index.html").as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("table").first.is_visible()
    if full:
        assert page.locator("figure svg").count() == 1
        # Text of the plots takes the page's colour, so that it can be read on a dark page.
        text = page.locator("figure svg text").first.evaluate("e => getComputedStyle(e).fill")
        assert text == page.locator("body").evaluate("e => getComputedStyle(e).color")
        page.locator("summary").first.click()
        assert page.locator("details table").first.is_visible()
    page.close()
