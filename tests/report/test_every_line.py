"""Every cell of the tables of costs, causes, deviations and records, and what is left out of all tables."""

from pathlib import PurePath

import pytest

from tests.support.example_runs import GPU, artifact, made, record, texts
from triplet.published.causes import EXCLUDED, SEEN, Cause
from triplet.published.methods import load_methods
from triplet.report import costs, deviations, provenance, tables
from triplet.runs import Run, assemble

METHODS = load_methods()


def test_costs_are_hours_times_gpus_times_watts():
    """Two kinds of GPU, one that nobody knows, and a CPU; some with a counter of their own."""
    run = Run(
        "byol",
        {
            "pretrain": record("pretrain", 8, seconds=9000.0, energy_kwh=5.125),
            "finetune": record("finetune", 4, seconds=5400.0, hardware={"gpus": ["NVIDIA L4"]}),
            "eval": record("eval", 2, seconds=1800.0, hardware={"gpus": ["Nobody's"]}, energy_kwh=0.5),
            "linear/a": record("linear", 1, seconds=900.0, hardware={}),
            "linear/b": record("linear", 3, seconds=1260.0, energy_kwh=0.25),
            "linear/c": record("linear", 2, seconds=720.0, hardware={"gpus": ["NVIDIA L40"]}),
        },
    )
    power = costs.Power(utilisation=0.8, pue=1.3, tdp={"L4": 72, "L40": 300, "A100": 400})
    sums, each = tables.of_costs(costs.costs([run], power), "formula")
    a100, l4, l40 = (watts / 1000 * 0.8 * 1.3 for watts in (400, 72, 300))
    none = tables.NONE
    assert [list(texts(each, i).values()) for i in range(6)] == [
        ["byol", "pretrain", "2.50", f"8 x {GPU}", "20.00", f"{20 * a100:.2f}", "5.12"],
        ["byol", "finetune", "1.50", "4 x NVIDIA L4", "6.00", f"{6 * l4:.2f}", none],
        ["byol", "eval", "0.50", "2 x Nobody's", "1.00", none, "0.50"],
        ["byol", "linear/a", "0.25", "CPU", none, none, none],
        ["byol", "linear/b", "0.35", f"3 x {GPU}", "1.05", f"{1.05 * a100:.2f}", "0.25"],
        ["byol", "linear/c", "0.20", "2 x NVIDIA L40", "0.40", f"{0.4 * l40:.2f}", none],
    ]
    assert [list(texts(sums, i).values()) for i in range(4)] == [
        ["pretrain", "1", "2.50", "20.00", f"{20 * a100:.2f}", "5.12"],
        ["finetune", "1", "1.50", "6.00", f"{6 * l4:.2f}", none],
        ["eval", "1", "0.50", "1.00", none, "0.50"],
        ["linear", "3", "0.80", "1.45", f"{1.05 * a100 + 0.4 * l40:.2f}", "0.25"],
    ]
    assert sums.note == "formula"


def test_causes_are_listed_with_what_they_cost():
    found = [Cause("schedule", SEEN, "too short", (1.26, 3.74)), Cause("input", EXCLUDED, "right")]
    grid = tables.of_causes("BYOL, moco, 1x", found)
    assert grid.title == "BYOL, moco, 1x: the likeliest is schedule"
    assert [list(texts(grid, i).values()) for i in range(2)] == [
        ["schedule", "seen", "1.3 to 3.7", "too short"],
        ["input", "excluded", "not published", "right"],
    ]
    assert grid.rows[0][2].value == 3.74
    assert tables.of_causes("x", found[1:]).title == "x: none of these"


def test_deviations_name_what_is_there_and_what_is_here():
    run = made("byol", 40.0, SOLVER__BASE_LR=0.03, MODEL__RPN__NMS_THRESH=0.55, SOLVER__IMS_PER_BATCH=24)
    run.stages["finetune"].config.update(precision="bfloat16", bn_images=4)
    found = {each.key: each for each in deviations.run_deviations(run, METHODS)}
    cells = {
        key: (each.stage, each.against, each.theirs, each.ours, each.kind) for key, each in found.items()
    }
    against = "openselfsup/coco_R_50_C4_2x_moco.yaml"
    assert cells == {
        "SOLVER.BASE_LR": ("finetune", against, "0.02", "0.03", "learning rate"),
        "MODEL.RPN.NMS_THRESH": ("finetune", against, "0.7", "0.55", "model"),
        "SOLVER.IMS_PER_BATCH": ("finetune", against, "16", "24", "batch"),
        "precision": ("finetune", against, "float32", "bfloat16", "precision"),
        "bn_images": ("finetune", against, "16", "4", "BN statistics"),
    }
    grid = tables.of_deviations([run], METHODS)
    rows = [list(texts(grid, i).values()) for i in range(len(grid.rows)) if grid.rows[i][0].text == "byol"]
    assert rows == [
        ["byol", *cells[key][:2], key, *cells[key][2:], found[key].size or tables.NONE] for key in cells
    ]
    sized = {key for key, each in found.items() if each.size}
    assert sized == {"bn_images"}, "0.03 for 24 images is the recipe's rate"


def test_a_runs_records_show_every_field_of_each():
    made_of = {"weights": artifact("checkpoints/a/x.pth", "1"), "images": artifact("datasets/i", "2")}
    run = Run(
        "byol",
        {"convert": record("convert", 4, inputs=made_of, outputs={"out": artifact("checkpoints/b", "3")})},
    )
    known = {"checkpoints/byol/convert/record.json": run.stages["convert"]}
    maker = record(
        "pretrain", 6, outputs={"w": artifact("checkpoints/a/x.pth", "1")}, seed=None, image=None
    )
    other = record("pretrain", 7, outputs={"w": artifact("checkpoints/a/x.pth", "9")})
    known |= {"checkpoints/o/pretrain/record.json": maker, "checkpoints/n/pretrain/record.json": other}
    grid = tables.of_records(run, known)
    assert grid.columns == ("Record", "byol/convert", "o/pretrain")
    cells = {row[0].text: [cell.text for cell in row[1:]] for row in grid.rows}
    assert cells.pop("config (SHA-256)")[0] != cells.pop("log")[0]
    assert cells == {
        "command": ["make convert", "make pretrain"],
        "inputs (SHA-256)": [
            f"weights: checkpoints/a/x.pth {'1' * 12}; images: datasets/i {'2' * 12}",
            tables.NONE,
        ],
        "outputs (SHA-256)": [f"out: checkpoints/b {'3' * 12}", f"w: checkpoints/a/x.pth {'1' * 12}"],
        "seed": ["4", tables.NONE],
        "commit": ["commit-convert", "commit-pretrain"],
        "image": ["image-convert", tables.NONE],
        "machine": [f"4 x {GPU}; cpu convert, 14 cores", f"6 x {GPU}; cpu pretrain, 16 cores"],
        "versions": ["torch 2.4, numpy 1.4", "torch 2.6, numpy 1.6"],
        "seconds": ["4000.0", "6000.0"],
        "images/s": ["104.5", "106.5"],
    }
    assert provenance.chain("checkpoints/byol/convert/record.json", known) == [
        "checkpoints/byol/convert/record.json",
        "checkpoints/o/pretrain/record.json",
    ]


@pytest.mark.parametrize(
    ("stage_", "name", "gone"),
    [
        ("convert", "weights", {"convert", "finetune", "eval"}),
        ("finetune", "weights", {"finetune", "eval"}),
        ("eval", "model", {"eval"}),
        ("linear/a", "weights", {"linear/a"}),
        ("semi/b", "weights", {"semi/b"}),
    ],
)
def test_what_was_made_of_something_else_is_left_out(stage_, name, gone):
    """And nothing else: each stage in turn has read another file than there is now."""
    wrote = {"pretrain": ("checkpoint", "1"), "convert": ("weights", "2"), "finetune": ("model", "3")}
    reads = {
        "convert": ("pretrain", "weights"),
        "finetune": ("convert", "weights"),
        "eval": ("finetune", "model"),
    }
    reads |= {"linear/a": ("pretrain", "weights"), "semi/b": ("pretrain", "weights")}
    known = {}
    for key in ("pretrain", *reads):
        outputs = {wrote[key][0]: artifact(f"checkpoints/r/{key}/o", wrote[key][1])} if key in wrote else {}
        inputs = {}
        if key in reads:
            before, read = reads[key]
            sha = "8" if key == stage_ else wrote[before][1]
            inputs = {read: artifact(f"checkpoints/r/{before}/o", sha)}
        known[PurePath("r") / key] = record(key.partition("/")[0], inputs=inputs, outputs=outputs)
    (run,) = assemble(known)
    assert set(run.stages) == {"pretrain", *reads} - gone
    assert f"its {stage_.partition('/')[0]} was made from another" in run.stale
    assert run.seconds == sum(each.seconds for each in run.stages.values())
