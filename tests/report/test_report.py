"""The report stage's files, and the page as a real browser shows it."""

import csv
import io
import json
import re
import subprocess
import sys

import pytest

from tests.conftest import KIT
from tests.support import run_records
from tests.support.report_states import full
from triplet import cli
from triplet.published.methods import load_methods
from triplet.report import pictures, plots, stage
from triplet.report.page import LARGEST
from triplet.runs import collect


def test_without_any_record(places):
    assert cli.main(["report"]) == 0
    page = (places / "reports" / "index.html").read_text()
    assert "No stage has left a record yet" in page
    assert "41.7" in page
    assert "make pull convert finetune eval PULL=weights METHOD=triplet" in page


def test_every_format_has_the_numbers(places):
    run_records.run("triplet", 41.5, 35.1)
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


def test_a_single_run_has_cocos_analyses(places):
    run_records.run("triplet", 41.5, 36.0, analysed=True)
    assert cli.main(["report"]) == 0
    page = (places / "reports" / "index.html").read_text()
    assert 'data-grid="by-size-table"' in page
    assert 'data-grid="by-category-table"' in page
    assert 'id="plot-precision-table"' in page
    assert "| Objects | box AP | mask AP |" in (places / "reports" / "report.md").read_text()


def test_what_was_measured_is_never_said_to_be_nothing(places):
    run_records.pretrain("byol")
    assert cli.main(["report"]) == 0
    page = places / "reports" / "index.html"
    assert "No run has been evaluated yet" in page.read_text()
    run_records.others("byol")
    assert cli.main(["report"]) == 0
    assert "No run has been evaluated yet" not in page.read_text()


def test_seeds_of_the_table_are_an_experiment(places):
    for seed, box in enumerate((41.5, 41.9)):
        run_records.run(f"seed{seed}/triplet", box, 36.0, seed, analysed=True)
    assert cli.main(["report"]) == 0
    markdown = (places / "reports" / "report.md").read_text()
    assert "| triplet, 2x | 2 | 41.7 ± 0.3 |" in markdown
    assert "| seed0/triplet | box | -0.4 |" in markdown
    page = (places / "reports" / "index.html").read_text()
    assert '"labels": ["seed0/triplet", "seed1/triplet"]' in page
    assert 'href="#experiments"' in page


@pytest.mark.parametrize("reported", ["full"], indirect=True)
def test_the_markdown_is_whole_tables(reported):
    lines = (reported[1] / "report.md").read_text().splitlines()
    tables = [i for i, line in enumerate(lines) if line.startswith("|---")]
    assert len(tables) > 12
    for i in tables:
        columns = lines[i].count("|")
        assert lines[i - 1].count(" | ") == columns - 2
        assert lines[i + 1].startswith("| ")
        assert lines[i - 2] == ""


def test_no_name_is_html_in_the_markdown(places):
    """Outside of code, that is, which ends at the first backtick."""
    run_records.run("x<img src=x onerror=ran()>/triplet", 41.5, 35.1)
    run_records.run("y`<b>`/triplet", 41.5, 35.1)
    assert cli.main(["report"]) == 0
    text = re.sub(r"`[^`]*`", "", (places / "reports" / "report.md").read_text())
    assert "&lt;img src=x" in text
    assert "<" not in text


def test_pictures_are_of_each_run_as_long_as_they_are_few(places):
    for seed in range(pictures.EACH):
        run_records.run(f"demo/seed{seed}/triplet", 24.0 + seed, 12.0, seed, images=60, pictures=1)
    (first,) = pictures.pictures(collect(places / "checkpoints"))
    assert first.runs == tuple(f"demo/seed{seed}/triplet" for seed in range(pictures.EACH))
    assert first.found[1].label == "demo/seed1/triplet"
    run_records.run("demo/seed0/random", 20.0, 10.0, images=60, pictures=1)
    (first,) = pictures.pictures(collect(places / "checkpoints"))
    assert [(each.label, each.run) for each in first.found] == [
        ("demo/random", "demo/seed0/random"),
        ("demo/triplet", "demo/seed0/triplet"),
    ]


def leading_nowhere(page):
    return set(re.findall(r'<a [^>]*href="#([^"]*)"', page)) - set(re.findall(r' id="([^"]*)"', page))


def test_every_link_leads_somewhere(reported):
    assert leading_nowhere((reported[1] / "index.html").read_text()) == set()


def test_every_link_leads_somewhere_whatever_is_left_out(places, monkeypatch):
    full()
    known, runs = stage.crate.all_records(), collect(places / "checkpoints")
    compared = stage.compare.comparisons(stage.groups(runs))
    content = stage.contents(runs, load_methods(), known, compared)
    figures, sizes = stage.draw(runs, compared), []
    for largest in (LARGEST, 900_000, 300_000):
        monkeypatch.setattr("triplet.report.page.LARGEST", largest)
        text = stage.page(content, runs, figures, known, compared)
        assert leading_nowhere(text) == set(), largest
        sizes.append(len(text))
    assert sizes == sorted(set(sizes), reverse=True), "no more is left out than need be"


@pytest.mark.slow
def test_the_page_stays_small(places):
    """As many runs as nobody has, each with pictures: what does not fit is left out and said to be."""
    full()
    runs = collect(places / "checkpoints") * 12
    content = stage.contents(runs, load_methods(), {})
    page = stage.page(content, runs, stage.draw(runs), stage.crate.all_records())
    assert len(page.encode()) <= LARGEST
    assert "more runs are in" in page


def test_the_report_needs_no_detectron2(places):
    run_records.run("triplet", 30.0, 27.0, SOLVER__MAX_ITER=45_000)
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


def test_damaged_lines_of_metrics_stop_no_curve(places, capsys):
    run_records.pretrain("triplet")
    (log,) = (places / "checkpoints").rglob("metrics.jsonl")
    odd = [b"\xff\xfe", b"[3]", b'{"loss": 3}', b'{"iteration": "x", "loss": 3}', b'{"iteration": 1e999}']
    odd.append(b'{"iteration": 900, "loss": "much", "feature_std": 1' + b"0" * 400 + b"}")
    log.write_bytes(b"\n".join([*odd, log.read_bytes()]))
    (run,) = collect(places / "checkpoints")
    assert plots.curves([run], "pretrain", {"loss": "Loss", "feature_std": "Spread"}, "curves", "")
    assert "metrics.jsonl: 3 damaged lines are left out" in capsys.readouterr().out


def test_no_cell_of_the_csv_is_a_formula(places):
    run_records.run("=cmd|' /C calc'!A0/+x/triplet", 41.5, 35.1)
    assert cli.main(["report"]) == 0
    rows = list(csv.reader(io.StringIO((places / "reports" / "results.csv").read_text())))
    assert any(cell.startswith("'=cmd") for row in rows for cell in row)
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "@"))]
