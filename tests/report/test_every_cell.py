"""Every cell of the tables of AP and accuracy, of runs of which no two numbers are equal."""

import math
from statistics import mean, stdev

import pytest
import yaml

from tests.support import run_records
from tests.support.example_runs import GPU, made, record, texts
from triplet.paths import CONFIGS
from triplet.published import curves
from triplet.published.methods import load_methods
from triplet.report import coco, results, stage, tables, targets
from triplet.runs import Run, Score, facts_of_run, groups, recipe

METHODS = load_methods()
ROWS = yaml.safe_load((CONFIGS / "methods.yaml").read_text())


@pytest.mark.parametrize("task", ["box", "mask"])
def test_cocos_table_has_each_number_in_its_own_column(task):
    runs = [made("byol", 40.05), made("seed1/byol", 39.43, seed=1), made("seed2/byol", 40.61, seed=2)]
    grid = tables.coco_table(coco.lines(runs, METHODS))[("box", "mask").index(task)]
    assert (grid.name, grid.title) == (f"coco-{task}", f"COCO val2017, Mask R-CNN R50-C4: {task} AP")
    assert [row[0].text for row in grid.rows[:-1]] == [each["label"] for each in ROWS.values()]
    byol, published = texts(grid, list(ROWS).index("byol")), ROWS["byol"]
    shift = {"box": (0, 20.1, 3.2), "mask": (-5.9, 16.4, 1.7)}[task]
    ours = [[value + each for value in (40.05, 39.43, 40.61)] for each in shift]
    shown = [f"{mean(values):.1f} ± {stdev(values):.1f}" for values in ours]
    band = getattr(curves.expected("byol", "c4", curves.FULL), task)
    assert byol == {
        "Method": "BYOL",
        "README AP": f"{published['readme'][task]:.1f}",
        "zoo AP": f"{published['zoo'][task]:.1f}",
        "ours AP": shown[0],
        "ours − published": f"{mean(ours[0]) - published['zoo'][task]:+.1f}",
        "verdict, or what makes it": {"box": "within noise", "mask": "below by more than noise"}[task],
        "expected AP": f"{band.low:.1f} to {band.high:.1f}",
        "recipe": "moco",
        "schedule": "2x",
        "epochs": "20.0",
        "seeds": "3",
        "GPUs": f"8 x {GPU}",
        "ours AP50": shown[1],
        "zoo AP50": f"{published['zoo'][f'{task}50']:.1f}",
        "ours AP75": shown[2],
        "zoo AP75": f"{published['zoo'][f'{task}75']:.1f}",
    }
    values = [cell.value for cell in grid.rows[list(ROWS).index("byol")]]
    assert values[1:5] == pytest.approx(
        [
            published["readme"][task],
            published["zoo"][task],
            mean(ours[0]),
            mean(ours[0]) - published["zoo"][task],  # README's BYOL is another file
        ]
    )
    assert (values[12], values[14]) == pytest.approx((mean(ours[1]), mean(ours[2])))
    assert values[6] == band.mid
    links = [cell.link for cell in grid.rows[list(ROWS).index("byol")]]
    why = {"box": "", "mask": "why-run-byol-moco-2x"}[task]
    assert links == ["", "", "", "run-byol", "", why, *[""] * 10]
    for number, (name, row) in enumerate(ROWS.items()):
        if name != "byol":
            cells, zoo = texts(grid, number), row.get("zoo")
            assert cells["README AP"] == f"{row['readme'][task]:.1f}"
            for column, key in (("zoo AP", task), ("zoo AP50", f"{task}50"), ("zoo AP75", f"{task}75")):
                assert cells[column] == (f"{zoo[key]:.1f}" if zoo else tables.NONE)
            assert {cells[column] for column in ("ours AP", "ours AP50", "ours AP75", "seeds")} == {
                tables.NONE
            }
            assert cells["verdict, or what makes it"].startswith("make pull convert finetune eval")


def test_another_number_of_gpus_or_precision_is_its_own_line():
    one, other = made("moco", 40.0), made("moco", 41.0)
    other.stages["finetune"].config["precision"] = "bfloat16"
    short, named = made("moco", 30.0, SOLVER__MAX_ITER=90_000), made("mine/moco", 39.0)
    lines = [line for line in coco.lines([one, other, short, named], METHODS) if line.method == "moco"]
    boxes = [(line.ours[0].mean, line.schedule, line.label) for line in lines if line.task == "box"]
    assert boxes == [
        (39.0, "2x", "MoCo (mine)"),
        (40.0, "2x", "MoCo"),
        (41.0, "2x", "MoCo"),
        (30.0, "1x", "MoCo"),
    ]
    assert len(list(groups([one, other, short, named]))) == 4
    own = made("moco", 40.0, SOLVER__BASE_LR=0.05)
    assert [len(group) for group in groups([one, own, made("seed1/moco", 40.2, seed=1)])] == [2, 1]
    half = made("moco", 38.0, SOLVER__IMS_PER_BATCH=8, SOLVER__BASE_LR=0.01, SOLVER__MAX_ITER=360_000)
    assert (half.iterations, recipe(half)) == (180_000, "moco")
    assert [len(group) for group in groups([one, half])] == [2]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((40.3,), "within noise"),
        ((40.31,), "above by more than noise"),
        ((39.7,), "within noise"),
        ((39.69,), "below by more than noise"),
        # Deviation 0.4; the error of a mean of four is 0.2: 0.3606 with the noise of one run.
        ((39.95, 40.75, 40.35, 40.35 - 0.4 * 1.0), None),
    ],
)
def test_a_verdict_allows_for_noise_and_the_error_of_a_mean(values, verdict):
    score = Score(values)
    if verdict is None:
        for distance, expected in ((0.95, "within noise"), (1.05, "above by more than noise")):
            bound = math.hypot(0.3, stdev(values) / 2)
            assert coco.verdict(score, mean(values) - distance * bound, None, curves.FULL) == expected
        assert math.hypot(0.3, stdev(values)) > 1.05 * math.hypot(0.3, stdev(values) / 2)
    else:
        assert coco.verdict(score, 40.0, None, curves.FULL) == verdict


def test_a_shorter_schedules_verdict_is_of_its_band():
    band = curves.Band(30.0, 32.0, 33.0)
    for value, expected in (
        (30.0, "as expected of this length"),
        (33.0, "as expected of this length"),
        (29.9, "below what is expected"),
        (33.1, "above what is expected"),
    ):
        assert coco.verdict(Score((value,)), value, band, 90_000) == expected
    assert coco.verdict(Score((30.0,)), 30.0, None, 90_000) == ""


def test_missing_stages_are_named_in_their_order():
    run = made("byol", 40.0)
    for there, expected in (
        ((), "make pull convert finetune eval PULL=weights METHOD=byol"),
        (("pretrain",), "make convert finetune eval METHOD=byol"),
        (("convert",), "make finetune eval METHOD=byol"),
        (("convert", "finetune"), "make eval METHOD=byol"),
        (("convert", "finetune", "eval"), "make eval METHOD=byol FORCE=1"),
    ):
        stages = {name: record(name) for name in there}
        assert (
            coco.missing("byol", [Run("byol", stages), Run("x/byol", run.stages)], METHODS["byol"])
            == expected
        )


def test_recipes_stand_side_by_side_at_each_length():
    runs = [
        made("byol", 40.2),
        made("seed1/byol", 40.9),
        made("own/byol", 41.7, run_records.AUTHORS),
        made("byol", 36.3, SOLVER__MAX_ITER=90_000),
        made("byol", 22.0, SOLVER__BASE_LR=0.1),
    ]
    results_, settings = tables.of_recipes(coco.pairs(runs, METHODS))
    at = next(i for i, row in enumerate(results_.rows) if row[0].text == "BYOL, README")
    rows = [list(texts(results_, at + i).values()) for i in range(3)]
    assert rows == [
        ["BYOL, README", "2x", tables.NONE, "40.3", tables.NONE],
        ["BYOL, ours", "2x", "41.7", "40.5 ± 0.5", "+1.2"],
        ["BYOL, ours", "1x", tables.NONE, "36.3", tables.NONE],
    ]
    triplet = next(i for i, row in enumerate(results_.rows) if row[0].text == "Triplet, README")
    assert list(texts(results_, triplet).values())[1:4] == ["2x", "41.7", tables.NONE]
    cells = {row[0].text: (row[1].text, row[2].text) for row in settings.rows}
    assert cells["SOLVER.WARMUP_ITERS"] == ("10000", "1000")
    assert [recipe(run) for run in runs] == ["moco", "moco", "authors", "moco", "own"]


def test_an_experiments_cells_fit_method_task_and_metric():
    runs = [
        made("demo/seed0/random", 20.3, images=60),
        made("demo/seed0/triplet", 25.1, images=60),
        made("demo/seed1/random", 22.9, images=60, seed=1),
        made("demo/seed1/triplet", 23.2, images=60, seed=1),
        made("demo/seed2/triplet", 29.6, images=60, seed=2),
        made("demo/seed1/byol", 21.8, images=60, seed=1),
    ]
    ((name, alike),) = stage.experiments(runs).items()
    grid = tables.of_experiment(name, alike)
    assert (grid.name, grid.title) == ("experiment-demo", "Experiment demo")
    apart = [(0, "box AP"), (20.1, "box AP50"), (3.2, "box AP75"), (-5.9, "mask AP"), (16.4, "mask AP50")]
    assert [row[0].text for row in grid.rows] == ["random", "byol", "triplet"]
    assert texts(grid, 1)["box AP over random"] == "-1.1"
    for number, (method, values) in ((0, ("random", (20.3, 22.9))), (2, ("triplet", (25.1, 23.2, 29.6)))):
        cells = texts(grid, number)
        assert (cells["Method"], cells["seeds"]) == (method, str(len(values)))
        for shift, column in [*apart, (1.7, "mask AP75")]:
            assert cells[column] == f"{mean(values) + shift:.1f} ± {stdev(values):.1f}"
    gains = (25.1 - 20.3, 23.2 - 22.9)
    assert texts(grid, 2)["box AP over random"] == f"+{mean(gains):.1f} ± {stdev(gains):.1f}"
    assert texts(grid, 0)["box AP over random"] == tables.NONE


def classified(name="byol"):
    """Results of the other benchmarks, of which no two are equal."""
    best, last = {"epoch": 40, "top1": 70.4, "top5": 89.1}, {"epoch": 100, "top1": 70.1, "top5": 88.7}
    shots = {k: {"mean": 30.0 + i * i, "std": 0.5} for i, k in enumerate(targets.SHOTS)}
    results = {
        "linear/published": {"best": best, "last": last, "protocol": "published"},
        "linear/fast": {"last": {"top1": 69.2, "top5": 87.3}, "protocol": "fast"},
        "knn/both": {"top1_20": 61.5, "top1_200": 58.9, "images": 7},
        "semi/one": {"best": {"top1": 50.7, "top5": 75.5}, "last": last, "percent": 1, "drawn": False},
        "semi/ten": {"best": {"top1": 66.6, "top5": 86.8}, "percent": 10, "drawn": False},
        "svm/voc": {
            "best_layer": "feat4",
            "feat4": {"mAP": 83.3, "low_shot": shots},
            "feat5": {"mAP": 81.1, "low_shot": {k: {"mean": 11.0} for k in targets.SHOTS}},
        },
    }
    stages = {
        key: record(key.partition("/")[0], i, results=each) for i, (key, each) in enumerate(results.items())
    }
    return Run(name, stages)


def test_the_other_targets_have_each_number_in_its_own_column():
    published = yaml.safe_load((CONFIGS / "published.yaml").read_text())["tables"]

    def of(benchmark, metric, source, method="byol"):
        found = [
            table["methods"][method][table["metrics"].index(metric)]
            for table in published
            if (table["benchmark"], table["source"]) == (benchmark, source)
            if metric in table["metrics"] and method in table["methods"]
        ]
        return f"{found[0]:.1f}" if found and found[0] is not None else tables.NONE

    voc = made("voc/byol", 55.5, run_records.VOC, images=4952)
    voc.stages["eval"].results.update(engine="voc")
    grids = {table.name: tables.of_target(table) for table in targets.tables([classified(), voc], METHODS)}
    (few,) = (row for row in grids["low-shot"].rows if row[0].text == "Rotation-Pred")
    published_96 = dict(zip(grids["low-shot"].columns, few, strict=True))["96 zoo"].text
    assert published_96 == of("svm", "96", "zoo", "rotation-pred") == "61.1"
    shots = {k: 30.0 + i * i for i, k in enumerate(targets.SHOTS)}
    expected = {
        ("linear", "published"): {"top1": 70.4},
        ("linear", "fast, fast: not like for like"): {"top1": 69.2},
        ("knn", "both"): {"k=20": 61.5, "k=200": 58.9},
        ("semi-1percent", "one"): {"top1": 50.7, "top5": 75.5},
        ("semi-10percent", "ten"): {"top1": 66.6, "top5": 86.8},
        ("svm", "voc, feat4"): {"mAP": 83.3},
        ("low-shot", "voc, feat4"): shots,
        ("voc-detection", "voc: moco"): {"AP50": 55.5 + 20.1, "AP": 55.5, "AP75": 55.5 + 3.2},
    }
    for (name, protocol), ours in expected.items():
        grid = grids[name]
        at = next(i for i, row in enumerate(grid.rows) if row[-2].text == protocol)
        cells = texts(grid, at)
        assert cells["Method"] == "BYOL"
        assert cells["what makes it"] == tables.NONE
        benchmark = "svm" if name == "low-shot" else name
        for metric, value in ours.items():
            assert cells[f"{metric} ours"] == f"{value:.1f}"
            for source in ("readme", "zoo"):
                column = f"{metric} {source.replace('readme', 'README')}"
                assert cells.get(column, tables.NONE) == of(benchmark, metric, source)
        first = next(iter(ours))
        foreign = [
            table["source"]
            for table in published
            if table["benchmark"] == benchmark and "byol" in table.get("files", {})
        ]
        own = (s for s in ("readme", "zoo") if of(benchmark, first, s) != tables.NONE and s not in foreign)
        source = next(own, None)
        if source:
            value = ours[first] - next(
                table["methods"]["byol"][table["metrics"].index(first)]
                for table in published
                if (table["benchmark"], table["source"]) == (benchmark, source)
                and first in table["metrics"]
            )
            assert cells["difference"] == f"{value:+.1f} to {source.replace('readme', 'README')}"


def test_a_method_that_is_not_measured_says_what_measures_it():
    pretrained = Run("byol", {"pretrain": record("pretrain")})
    for runs, method, name, command in (
        ([pretrained], "byol", "linear", "make linear METHOD=byol"),
        ([pretrained], "byol", "semi-1percent", "make semi PERCENT=1 LIST=1percent.txt METHOD=byol"),
        (
            [Run("x/byol", pretrained.stages)],
            "byol",
            "svm",
            "make pull PULL=weights METHOD=byol && make svm METHOD=byol WEIGHTS=checkpoints/weights/byol/",
        ),
        (
            [],
            "triplet-200e",
            "linear",
            "make pull PULL=weights METHOD=triplet && make linear METHOD=triplet-200e WEIGHTS=",
        ),
        (
            [],
            "moco",
            "voc-detection",
            "make pull convert finetune eval PULL=weights METHOD=moco RUN=voc/moco DETECTION=",
        ),
    ):
        (table,) = [each for each in targets.tables(runs, METHODS) if each.name == name]
        lines = [line for line in table.lines if line.method == method]
        assert [line.command[: len(command)] for line in lines] == [command]
        assert (lines[0].runs, lines[0].difference) == ((), None)


def test_what_a_record_tells_of_a_shortfall():
    run = made("byol", 30.0, SOLVER__MAX_ITER=45_000, SOLVER__IMS_PER_BATCH=8, SOLVER__BASE_LR=0.03, gpus=4)
    run.stages["finetune"].config["bn_images"] = 2
    facts = facts_of_run(run)
    assert (facts.iterations, facts.planned, facts.batch, facts.rate) == (45_000, 45_000, 8, 0.03)
    assert (facts.gpus, facts.pool, facts.norm, facts.last_rate) == (4, 2, "SyncBN", 0.0)
    assert (facts.checked, facts.precise_ran, facts.length) == (True, True, 22_500)
    found = coco.causes([run], METHODS)
    assert found.keys() == {"the student's run", "byol, own, 1/4x"}
    seen = [cause.name for cause in found["byol, own, 1/4x"] if cause.verdict == "seen"]
    assert sorted(seen) == ["BN statistics", "learning rate", "schedule"]


def test_flat_numbers_are_each_with_task_metric_and_record():
    voc = made("voc/byol", 55.5, run_records.VOC, images=4952, seed=4)
    voc.stages["eval"].results.update(engine="voc")
    runs = [made("x/seed3/byol", 40.0, seed=3), made("demo/byol", 20.0, images=60), voc, classified()]
    flat = results.flat(runs)
    found = {tuple(line[key] for key in ("run", "table", "task", "metric")): line for line in flat}
    assert len(found) == len(flat) == 6 * 3 + 2 + 2 + 4 + 1 + 8
    apart = {("box", "AP"): 0, ("box", "AP50"): 20.1, ("box", "AP75"): 3.2}
    apart |= {("mask", "AP"): -5.9, ("mask", "AP50"): 16.4, ("mask", "AP75"): 1.7}
    for run, first, table, seed in (("x/seed3/byol", 40, "coco", 3), ("demo/byol", 20, "experiment", 0)):
        for (task, metric), shift in apart.items():
            line = found[run, table, task, metric]
            assert line["value"] == pytest.approx(first + shift)
            assert (line["experiment"], line["method"], line["seed"]) == (run.split("/")[0], "byol", seed)
            assert line["record"] == f"checkpoints/{run}/eval/record.json"
    assert found["voc/byol", "voc-detection", "box", "AP75"]["value"] == pytest.approx(58.7)
    for key, value in {
        ("linear", "published", "top1"): 70.4,
        ("knn", "both", "k=200"): 58.9,
        ("semi-10percent", "ten", "top5"): 86.8,
        ("svm", "voc, feat4", "mAP"): 83.3,
        ("low-shot", "voc, feat4", "8"): 39.0,
    }.items():
        assert found["byol", *key]["value"] == value
    assert found["byol", "svm", "voc, feat4", "mAP"]["record"] == "checkpoints/byol/svm/voc/record.json"
    assert (
        results.as_csv(flat).splitlines()[0] == "run,experiment,method,seed,table,task,metric,value,record"
    )
