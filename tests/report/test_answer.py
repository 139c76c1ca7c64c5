"""The first screen in words, the commands that it gives, and two methods compared image by image."""

import json

import numpy as np
import pytest

from tests.support import run_records
from tests.support.example_runs import made
from tests.support.report_states import stopped
from triplet import paths, records
from triplet.published.methods import load_methods
from triplet.report import answer, coco, compare, tables
from triplet.report.stage import contents, documents, groups
from triplet.runs import Unfinished, collect, unfinished

METHODS = load_methods()


def said(runs):
    return contents(runs, METHODS, {})["sentences"]


def test_a_run_has_one_sentence():
    runs = [
        made("triplet", 41.5, run_records.AUTHORS),
        made("seed1/triplet", 41.7, run_records.AUTHORS, seed=1),
    ]
    runs += [made("moco", 38.9), made("short/moco", 38.4, SOLVER__MAX_ITER=90_000)]
    full, moco, short = said(runs)
    assert full.who == "Triplet, 2x schedule, 2 seeds"
    assert full.text.startswith(
        "box AP 41.6 ± 0.1, README 41.7: within noise; mask AP 35.7 ± 0.1, README 36.2"
    )
    assert (moco.kind, moco.link) == ("short", "run-moco")
    assert moco.cause
    assert moco.cause_link == "why-run-moco-moco-2x"
    assert short.who == "MoCo (short), 1x schedule"
    assert "box AP 38.4, 38." in short.text
    assert "expected of this schedule: as expected of this length" in short.text


def test_an_experiments_methods_say_what_they_gain():
    runs = [
        made(f"demo/seed{s}/{method}", box + s, images=60, seed=s)
        for s in (0, 1)
        for method, box in (("random", 20), ("triplet", 25))
    ]
    random, triplet = said(runs)
    assert (random.who, triplet.who) == ("demo: random, 2 seeds", "demo: triplet, 2 seeds")
    assert triplet.text.endswith("+5.0 ± 0.0 box AP over random in the same seed.")
    assert triplet.link == "experiment-demo"


def test_the_figure_has_every_method_where_its_numbers_are():
    figure = answer.dots(coco.lines([made("triplet", 41.5, run_records.AUTHORS)], METHODS))
    assert [label for label, _ in figure.methods] == [method.label for method in METHODS.values()]
    box, mask = dict(figure.methods)["Triplet"]
    assert (box.text, mask.text) == ("41.5 / 41.7", "35.6 / 36.2")
    assert box.noise[0] < box.marks[0].at < box.published < box.noise[1]
    others = [track for _, tracks in figure.methods for track in tracks]
    assert all(0 <= at <= 100 for track in others for at in (track.published, *track.noise))
    assert sum(bool(track.marks) for track in others) == 2
    assert figure.shapes == {"circle"}


def test_the_figure_shows_the_ap_that_a_result_is_judged_by():
    runs = [made("byol", 40.2), made("short/byol", 33.0, SOLVER__MAX_ITER=45_000)]
    figure = answer.dots(coco.lines(runs, METHODS))
    assert figure.of_zoo == "MoCo v2 and BYOL"
    assert figure.shapes == {"circle", "diamond"}
    for label, tracks in figure.methods:
        for track in tracks:
            assert sum(track.noise) / 2 == pytest.approx(track.published, abs=0.01)
            assert (track.other is not None) == (label in ("MoCo v2", "BYOL"))
    box = dict(figure.methods)["BYOL"][0]
    assert [(mark.full, mark.at < box.noise[0]) for mark in box.marks] == [(True, False), (False, True)]
    assert box.marks[0].at == box.published < (box.other or 0)  # 40.2 is the zoo's, 40.3 README's


def test_a_run_of_any_name_has_its_sentence_line_and_dot():
    runs = [made("mine", 36.4), made("seed1/mine", 36.8, seed=1), made("x/triplet-200e", 40.0)]
    mine, other = said(runs)
    assert (mine.who, mine.link, mine.kind) == ("mine, 2x schedule, 2 seeds", "run-mine", "plain")
    assert mine.text.startswith("box AP 36.6 ± 0.3: nothing published to compare it with; mask AP 30.7")
    assert other.who == "triplet-200e (x), 2x schedule"
    lines = coco.lines(runs, METHODS)
    grid = tables.coco_table(lines)[0].part(missing=False)
    assert [[cell.text for cell in row[:6]] for row in grid.rows[-2:]] == [
        ["mine", "–", "–", "36.6 ± 0.3", "–", "nothing published to compare it with"],
        ["triplet-200e (x)", "–", "–", "40.0", "–", "nothing published to compare it with"],
    ]
    track = dict(answer.dots(lines).methods)["mine"][0]
    assert (track.published, track.other, track.text) == (None, None, "36.6 ± 0.3 / –")
    assert [mark.text for mark in track.marks] == ["mine, 2x: 36.6 ± 0.3"]
    assert coco.causes(runs, METHODS).keys() == {"the student's run"}


def test_every_measured_target_has_a_sentence_and_a_line(places):
    run_records.others("mine")
    run_records.run("voc/byol", 56.8, None, reference=run_records.VOC, images=4952, engine="voc")
    content = contents(collect(places / "checkpoints"), METHODS, {})
    text = {each.who: each.text for each in content["sentences"]}
    assert len(content["sentences"]) == 7
    assert text["mine, VOC07, linear SVMs"] == "mAP 85.0; protocol svm_voc07, feat5."
    voc = "BYOL, VOC07+12 detection, Faster R-CNN R50-C4, 24 000 iterations"
    assert text[voc].startswith("AP50 76.8, ")
    for grid in content["targets"][:-1]:
        assert "mine" in [row[0].text for row in grid.part(missing=False).rows]


def test_what_is_within_the_noise_of_its_seeds_has_no_cause():
    runs = [
        made("triplet", 41.3, run_records.AUTHORS),
        made("seed1/triplet", 42.1, run_records.AUTHORS, seed=1),
    ]
    (sentence,) = said(runs)
    assert sentence.text.endswith("mask AP 35.8 ± 0.6, README 36.2: within noise.")
    assert sentence.cause_link == ""
    assert set(coco.causes(runs, METHODS)) == {"the student's run"}


def test_one_command_makes_all_that_is_missing():
    alike = [(method, f"make finetune eval METHOD={method}") for method in ("a", "b")]
    assert answer.all_of([*alike, *alike, ("c", "make eval METHOD=c")]) == (
        "for method in a b; do make finetune eval METHOD=$method || break; done && make eval METHOD=c"
    )
    assert answer.all_of([]) == ""


def test_what_to_run_next(places):
    none = answer.steps([], coco.lines([], METHODS), [])
    assert [step.command for step in none][:2] == [
        "make demo",
        "make pull convert finetune eval PULL=weights METHOD=triplet",
    ]
    run_records.run("triplet", 41.5, 36.0)
    folder = paths.stage_folder("byol", "linear") / "config"
    folder.mkdir(parents=True)
    (folder / "started.json").write_text("{}")
    runs, begun = collect(places / "checkpoints"), unfinished(places / "checkpoints")
    assert begun == [Unfinished("byol", "linear", "make linear RUN=byol")]
    steps = answer.steps(runs, coco.lines(runs, METHODS), begun)
    assert [step.command for step in steps][:2] == ["make linear RUN=byol", "make seeds METHOD=triplet"]
    whole = [made(f"{seed}{name}", 40.0) for name in METHODS for seed in ("", "seed1/")]
    assert [step.command for step in answer.steps(whole, coco.lines(whole, METHODS), [])] == [
        "make report VERIFY=1"
    ]


def test_what_was_begun_goes_on_by_its_last_command(places, monkeypatch):
    """But it never starts over, as that session may have done."""
    run, data = "demo/seed1/triplet", "demo/unlabelled"
    words = f"pretrain --run {run} --config configs/a.yaml --data {data} seed=1"
    monkeypatch.delenv("MAKELEVEL", raising=False)
    for processes in (1, 8):
        records.command.set(f"triplet {words} --force")
        with pytest.raises(RuntimeError):
            run_records.perform(run, "pretrain", results=stopped(), world_size=processes)
        records.command.set("")
        (begun,) = unfinished(places / "checkpoints")
        assert (
            begun.command
            == {
                1: f"triplet {words}",
                8: f"make pretrain RUN={run} PRETRAIN=configs/a.yaml IMAGES={data} ARGS=seed=1 GPUS=8",
            }[processes]
        )


def test_what_is_stale_is_made_again_by_its_own_command(places, monkeypatch):
    monkeypatch.setenv("MAKELEVEL", "1")
    run_records.run("moco", 40.0, 35.0)
    run_records.finetune_again("moco")
    assert [each.mend for each in collect(places / "checkpoints")] == ["make eval RUN=moco FORCE=1"]
    path = paths.stage_folder("moco", "eval") / "record.json"
    text = path.read_text()
    for command, mend in (
        ("triplet eval --run moco --force x.y=2", "make eval METHOD=moco ARGS=x.y=2 FORCE=1"),
        ("triplet eval 'without an end", "make eval RUN=moco FORCE=1"),
    ):
        path.write_text(json.dumps(json.loads(text) | {"command": command}))
        assert [each.mend for each in collect(places / "checkpoints")] == [mend]


@pytest.fixture
def compared(places):
    for seed, (random, triplet) in enumerate([(20.0, 25.0), (21.0, 24.4)]):
        for method, box in (("random", random), ("triplet", triplet)):
            run_records.run(f"demo/seed{seed}/{method}", box, box / 2, seed, images=60, analysed=True)
    return compare.comparisons(groups(collect(places / "checkpoints")))


def test_methods_are_compared_on_the_same_draws(compared):
    (only,) = compared
    assert (only.first, only.base, only.tasks) == ("demo/triplet", "demo/random", ["bbox", "segm"])
    ours, theirs = only.methods["demo/triplet"]["bbox"], only.methods["demo/random"]["bbox"]
    found = compare.difference(ours, theirs)
    assert found.value == pytest.approx(4.2, abs=0.01)
    drawn = np.mean([each.resampled for each in ours], 0) - np.mean([each.resampled for each in theirs], 0)
    assert np.mean(drawn < found.low) == pytest.approx(0.025, abs=0.002)
    assert np.mean(drawn > found.high) == pytest.approx(0.025, abs=0.002)
    assert found.meaning == compare.HIGHER
    assert compare.difference(theirs, ours).meaning == compare.LOWER
    assert compare.difference(ours, ours).meaning == compare.OPEN
    grid = compare.of_pairs(only)
    assert [[cell.text for cell in row[:3]] for row in grid.rows] == [
        ["demo/triplet", "box", "+4.2"],
        ["demo/triplet", "mask", "+2.1"],
    ]
    sizes = compare.of_sizes(only, "bbox")
    assert [row[0].text for row in sizes.rows] == ["all", "small", "medium", "large"]
    categories = compare.of_categories(only, "bbox")
    apart = [row[3].value for row in categories.rows]
    assert sorted(apart) == apart
    assert np.mean(apart) == pytest.approx(4.2, abs=0.01)


def test_what_was_evaluated_on_other_images_is_not_compared(places, capsys):
    run_records.run("demo/random", 20.0, 10.0, images=60, analysed=True)
    run_records.run("demo/triplet", 25.0, 12.0, images=61, analysed=True)
    run_records.run("demo/byol", 25.0, 12.0, images=60, analysed=True)
    (paths.stage_folder("demo/byol", "eval") / "analysis.json").write_text('{"bbox": 3}')
    (only,) = compare.comparisons(groups(collect(places / "checkpoints")))
    assert list(only.methods) == ["demo/random"]
    assert "is damaged and left out" in capsys.readouterr().out


def test_the_markdown_has_the_answer_and_the_comparison(compared, places):
    texts, _ = documents(collect(places / "checkpoints"), {}, drawn=False)
    markdown = texts["markdown"][1]
    assert "- demo: triplet, 2 seeds: box AP 24.7 ± 0.4" in markdown
    assert "| demo/triplet | box | +4.2 |" in markdown
