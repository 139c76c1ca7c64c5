"""Records to tables: the paper's, by recipe, the other targets, experiments, costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import run_records
from triplet import paths
from triplet.config import load
from triplet.published.curves import FULL, NOISE, Band
from triplet.published.methods import load_methods
from triplet.report import coco, compare, costs, plots, results, tables, targets
from triplet.report.stage import contents, experiments
from triplet.runs import Score, collect

METHODS = load_methods()


def lines(places, task="box"):
    found = coco.lines(collect(places / "checkpoints"), METHODS)
    return [line for line in found if line.task == task]


def of_method(found, method):
    return [line for line in found if line.method == method and "student" not in line.label]


def test_without_runs_every_method_says_what_makes_it(places):
    for task in ("box", "mask"):
        found = lines(places, task)
        assert [line.method for line in found] == [*METHODS, "triplet"]
        for line in found[:-1]:
            command = f"make pull convert finetune eval PULL=weights METHOD={line.method}"
            assert (line.command, line.ours, line.difference) == (command, (None, None, None), None)
            zoo = METHODS[line.method].zoo
            assert line.zoo[0] == (getattr(zoo, task) if zoo else None)


def test_what_is_missing_depends_on_what_is_there(places):
    run_records.pretrain("triplet")
    assert of_method(lines(places), "triplet")[0].command == "make convert finetune eval METHOD=triplet"


def test_the_mean_over_seeds_stands_beside_the_published_ap(places):
    run_records.run("moco-v2", 40.6, 35.0)
    run_records.run("seed1/moco-v2", 40.8, 35.2, seed=1)
    (line,) = of_method(lines(places), "moco-v2")
    assert line.ours[0].text() == "40.7 ± 0.1"
    assert line.difference == pytest.approx(40.7 - 41.0)  # README's 40.9 is of another file
    assert (line.verdict, line.seeds, line.cause) == ("within noise", 2, "")
    assert (line.recipe, line.schedule, line.epochs, line.gpus) == ("moco", "2x", 24.56, "CPU")
    assert line.zoo == (41.0, 60.6, 44.5)
    assert line.ours[1].mean == pytest.approx(60.7)
    assert line.ours[2] is None
    assert line.expected.holds(40.9)
    (mask,) = of_method(lines(places, "mask"), "moco-v2")
    assert mask.verdict == "below by more than noise"


def test_a_shorter_schedule_is_shown_with_the_ap_to_expect(places):
    run_records.run("triplet", 41.8, 36.0)
    run_records.run("short/triplet", 38.0, 33.0, SOLVER__MAX_ITER=45_000)
    full, half = of_method(lines(places), "triplet")
    assert (full.schedule, half.schedule, half.label) == ("2x", "1/2x", "Triplet (short)")
    assert half.verdict == "as expected of this length"
    assert half.expected.high < full.readme
    assert "schedule" in [c.name for c in coco.causes(collect(places / "checkpoints"), METHODS)[half.cause]]
    assert experiments(collect(places / "checkpoints")) == {}


def test_half_the_batch_counts_half(places):
    run_records.run(
        "triplet", 38.0, 33.0, SOLVER__IMS_PER_BATCH=8, SOLVER__BASE_LR=0.025, SOLVER__MAX_ITER=90_000
    )
    (line,) = of_method(lines(places), "triplet")
    assert (line.schedule, line.recipe) == ("1/2x", "authors")


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 100},
        {"engine": "voc"},
        {"MODEL__ROI_HEADS__NUM_CLASSES": 3},
        {"MODEL__META_ARCHITECTURE": "RetinaNet"},
    ],
)
def test_what_is_not_evaluated_as_the_table_is_stays_out_of_it(places, changes):
    run_records.run("triplet", 41.5, 35.1, **changes)
    assert of_method(lines(places), "triplet")[0].ours[0] is None


def test_the_students_method_has_its_explanation(places):
    student = [line for line in lines(places) if "student" in line.label]
    assert [line.ours[0].mean for line in student] == [25.1]
    causes = coco.causes([], METHODS)[student[0].cause]
    assert causes[0].name == "schedule"
    assert {cause.name for cause in causes} >= {"undecayed stop", "learning rate", "BN statistics"}


@given(st.lists(st.floats(30, 45), min_size=1, max_size=5), st.floats(30, 45))
def test_a_verdict_is_about_the_mean(values, readme):
    found = coco.verdict(Score(tuple(values)), readme, None, FULL)
    difference = Score(tuple(values)).mean - readme
    if abs(difference) <= NOISE:
        assert found == "within noise"
    elif len(values) == 1:
        assert found.startswith("above" if difference > 0 else "below")
    assert coco.verdict(Score((readme,)), 0.0, Band(readme, readme, readme), 90_000).startswith(
        "as expected"
    )


@pytest.mark.parametrize(
    ("iterations", "name"),
    [(180_000, "2x"), (90_000, "1x"), (22_500, "1/4x"), (270_000, "3x"), (600, "1/150x")],
)
def test_schedules_have_detectron2s_names(iterations, name):
    assert coco.schedule(iterations) == name
    assert coco.schedule(100_000) == "1.11x"
    assert coco.schedule(178_000) == "1.98x"
    assert coco.schedule(179_999) == "179999 iterations"


def test_the_two_recipes_side_by_side(places):
    run_records.run("triplet", 41.5, 36.0)
    run_records.run("like-for-like/triplet", 41.1, 35.8, reference=run_records.MOCO)
    pairs = {pair.label: pair for pair in coco.pairs(collect(places / "checkpoints"), METHODS)}
    ours, theirs, baseline = pairs["Triplet, ours"], pairs["Triplet, README"], pairs["MoCo, README"]
    assert (ours.authors.mean, ours.moco.mean) == (41.5, 41.1)
    assert ours.difference == pytest.approx(0.4)
    assert (theirs.authors.mean, theirs.moco, baseline.authors, baseline.moco.mean) == (
        41.7,
        None,
        None,
        40.9,
    )


def test_an_experiment_pairs_its_seeds(places):
    for seed, (random, triplet) in enumerate([(20.0, 25.0), (30.0, 33.0), (25.0, 31.0)]):
        run_records.run(f"demo/seed{seed}/random", random, 10.0, seed, images=60)
        run_records.run(f"demo/seed{seed}/triplet", triplet, 12.0, seed, images=60)
    (runs,) = experiments(collect(places / "checkpoints")).values()
    assert tables.gains(runs, "triplet").values == (5.0, 3.0, 6.0)
    grid = tables.of_experiment("demo", runs)
    random, triplet = grid.rows
    assert (random[0].text, triplet[0].text) == ("random", "triplet")
    assert triplet[-1].text.startswith("+4.7 ± 1.5")
    assert random[-1].text == tables.NONE


def test_the_other_targets(places):
    run_records.others("triplet")
    run_records.run("voc/triplet", 56.7, None, reference=run_records.VOC, images=4952, engine="voc")
    run_records.run(
        "voc/seed1/triplet", 56.9, None, seed=1, reference=run_records.VOC, images=4952, engine="voc"
    )
    runs = collect(places / "checkpoints")
    found = {table.name: table for table in targets.tables(runs, METHODS)}
    assert list(found) == list(targets.BENCHMARKS)

    def ours(name):
        return [line for line in found[name].lines if line.method == "triplet" and line.runs]

    published, fast = ours("linear")
    assert published.difference == ("readme", pytest.approx(-0.1))
    assert "not like for like" in fast.protocol
    assert ours("knn")[0].ours["k=20"].mean == 66.0
    assert ours("semi-1percent")[0].ours["top5"].mean == 92.1
    assert "drawn" in ours("semi-10percent")[0].protocol
    assert ours("svm")[0].ours["mAP"].mean == 85.0
    assert (ours("low-shot")[0].ours["96"].mean, ours("low-shot")[0].ours["4"]) == (64.0, None)
    (voc,) = ours("voc-detection")
    assert (voc.ours["AP"].mean, voc.runs) == (pytest.approx(56.8), ("voc/seed1/triplet", "voc/triplet"))
    linear = {line.method: line for line in found["linear"].lines}
    assert linear["moco-v2"].published == {("readme", "top1"): 67.0, ("zoo", "top1"): 67.69}
    assert linear["byol"].command.startswith(
        "make pull PULL=weights METHOD=byol && make linear METHOD=byol "
    )
    assert linear["triplet-200e"].published["readme", "top1"] == 73.8
    assert (
        "RUN=voc/byol"
        in next(line for line in found["voc-detection"].lines if line.method == "byol").command
    )


def test_a_number_of_another_file_is_named_and_not_compared_with(places):
    """README's BYOL was withdrawn, its MoCo v2 replaced; the kit's weights are those of the zoo."""
    linear = {"linear/x": {"best": {"top1": 67.5}}}
    for method, stages in (("byol", {}), ("moco-v2", linear)):
        run_records.run(f"voc/{method}", 50.0, None, reference=run_records.VOC, images=4952, engine="voc")
        for stage, found in stages.items():
            run_records.perform(f"voc/{method}", stage, results=found)
    found = {table.name: table for table in targets.tables(collect(places / "checkpoints"), METHODS)}
    voc, linear = (
        {line.method: line for line in found[name].lines if line.runs}
        for name in ("voc-detection", "linear")
    )
    ap50 = voc["byol"].ours["AP50"].mean
    assert voc["byol"].difference == ("zoo", pytest.approx(ap50 - 79.6))
    assert voc["moco-v2"].difference == ("zoo", pytest.approx(ap50 - 82.24))
    assert linear["moco-v2"].difference == ("zoo", pytest.approx(67.5 - 67.69))
    assert "README's BYOL is of byol_r50-e3b0c442.pth, not" in found["voc-detection"].note
    assert "README's MoCo v2 is of moco_r50_v2-58f10cfe.pth, not" in found["linear"].note
    assert "BYOL is of" not in found["linear"].note


def test_every_number_is_flat_with_its_record(places):
    run_records.run("seed2/triplet", 41.5, 36.0, seed=2)
    run_records.others("triplet")
    flat = results.flat(collect(places / "checkpoints"))
    assert all(paths.local(number["record"]).exists() for number in flat)
    box = next(n for n in flat if (n["table"], n["task"], n["metric"]) == ("coco", "box", "AP"))
    assert (box["run"], box["method"], box["seed"], box["value"]) == ("seed2/triplet", "triplet", 2, 41.5)
    linear = [n["value"] for n in flat if n["table"] == "linear"]
    assert linear == [75.8, 75.8]
    assert results.as_csv(flat).count("\n") == len(flat) + 1


@pytest.mark.parametrize(
    ("name", "watts"),
    [
        ("NVIDIA GeForce RTX 3080", 320),
        ("NVIDIA GeForce RTX 3080 Ti", 350),
        ("NVIDIA GeForce RTX 3090 Ti", 450),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", None),
        ("Tesla P100-SXM2-16GB", 300),
        ("Tesla P100-PCIE-16GB", 250),
        ("NVIDIA GeForce RTX 2080 Ti", 250),
    ],
)
def test_a_card_does_not_have_the_power_of_its_series(name, watts):
    power = load(costs.PATH, costs.Power)
    assert next((value for card, value in power.tdp.items() if costs.is_card(name, card)), None) == watts


def test_energy_is_gpu_hours_by_power(places):
    run_records.run("triplet", 41.5, 36.0, processes=8)
    run = collect(places / "checkpoints")[0]
    power = costs.Power(utilisation=0.5, pue=1.2, tdp={"A10": 1, "H10": 1, "H100 PCIe": 1, "H100": 700})
    slow = {"seconds": 7200.0, "hardware": {"gpus": ["NVIDIA H100 80GB HBM3"] * 8}}
    run.stages["finetune"] = run.stages["finetune"].model_copy(update=slow)
    by_stage = {cost.stage: cost for cost in costs.costs([run], power)}
    assert by_stage["finetune"].gpu_hours == 16
    assert by_stage["finetune"].energy == pytest.approx(16 * 0.7 * 0.5 * 1.2)
    assert (by_stage["eval"].gpu_hours, by_stage["eval"].energy) == (0, None)
    run.stages["finetune"].hardware["gpus"] = ["Something else"]
    assert {c.stage: c for c in costs.costs([run], power)}["finetune"].energy is None


def test_later_stages_of_another_model_are_left_out(places):
    run_records.run("triplet", 41.5, 35.1)
    run_records.finetune_again("triplet")
    (run,) = collect(places / "checkpoints")
    assert set(run.stages) == {"pretrain", "convert", "finetune"}
    assert "its eval was made from another finetune" in run.stale
    content = contents([run], METHODS, {})
    assert "FORCE=1" in tables.of_records(run, {}).note
    assert content["experiments"] == []


def test_foreign_records_do_not_disturb(places):
    run_records.run("triplet", 41.5, 35.1)
    run_records.perform("weights", "byol", texts={"x.pth": "pulled"})
    assert [run.name for run in collect(places / "checkpoints")] == ["triplet"]


def test_no_difference_is_less_than_nothing():
    assert [tables.number(value, "+.1f").text for value in (-0.04, 0.04, -0.06)] == ["+0.0", "+0.0", "-0.1"]
    assert tables.number(-0.04).text == "0.0"
    assert compare.Difference(-0.04, -1.0, -0.01).text() == "+0.0 (-1.0 to +0.0)"


def test_the_budgets_words_name_each_results_schedule(places):
    run_records.run("moco", 40.0, 35.0)
    run_records.run("short/moco", 38.4, 33.0, SOLVER__MAX_ITER=90_000)
    words = plots.budget(collect(places / "checkpoints")).words
    assert words.endswith("Ours: moco 38.4 at 1x; moco 40.0 at 2x.")
