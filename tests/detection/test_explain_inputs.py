"""What explain reads: logs behind any launcher, configs of any version, weights, records, numbers."""

import codecs
import json
import re

import pytest
import torch

from benchmarks.detection import explain
from benchmarks.detection.explain.command import ExplainOptions, explanation
from tests.conftest import KIT
from tests.support import run_records
from triplet import cli
from triplet.models.resnet import ResNet
from triplet.published import curves
from triplet.published.causes import SEEN

CONFIGS = KIT / "configs/detection"
LOGS = KIT / "tests/detection/cases/logs"
PLAIN = (LOGS / "detectron2_log.txt").read_text()


def prefixed(prefix):
    return "".join(f"{prefix}{line}\n" for line in PLAIN.splitlines())


def of_two_ranks(text):
    return "".join(f"1: other rank\n0: {line}\n" for line in text.splitlines())


def facts_of(tmp_path, data, name="log.txt"):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return explain.read(None, path)


def names(found, verdict=SEEN):
    return [cause.name for cause in found.causes if cause.verdict == verdict]


OTHER_KEYS = "\nVERSION: 2\nMODEL_OF_THE_YEAR:\n  KEY: !!python/tuple [1, 2]\n  UNKNOWN: 3"
WRAPPED = {
    "srun": prefixed("0: "),
    "torchrun": prefixed("[rank0]:"),
    "default": prefixed("[default0]:"),
    "mpirun": prefixed("[1,0]<stdout>:"),
    "docker": prefixed("2024-11-24T10:00:00.123456789Z "),
    "kubernetes": prefixed("2024-11-24T10:00:00.123456789Z stderr F "),
    "compose": prefixed("finetune-1  | "),
    "ray": prefixed("\x1b[36m(train pid=1234, ip=10.0.0.1)\x1b[0m "),
    "two ranks": of_two_ranks(PLAIN),
    "windows": PLAIN.replace("\n", "\r\n"),
    "bom": codecs.BOM_UTF8 + PLAIN.encode(),
    "utf-16": PLAIN.encode("utf-16"),
    "utf-16-le": PLAIN.encode("utf-16-le"),
    "tqdm": re.sub(r"(\[11/24 11)", "  5%|5  | 10/200 [00:01<00:20]\r 10%|#  | 20/200\r\\1", PLAIN),
    "log.txt": PLAIN.replace("[11/24 10:00:00 detectron2]:", "[11/24 10:00:00] detectron2 INFO:"),
    "the kit's": re.sub(r"\[11/24 (\S+) (\S+)\]:", r"2024-11-24 \1,123 \2 INFO:", PLAIN),
    "another version": PLAIN.replace("\nVERSION: 2", OTHER_KEYS),
}


@pytest.mark.parametrize("data", WRAPPED.values(), ids=WRAPPED)
def test_no_wrapper_and_no_encoding_hides_what_a_log_tells(tmp_path, data):
    facts = facts_of(tmp_path, data)
    assert (facts.iterations, facts.planned, facts.batch, facts.rate) == (180000, 180000, 16, 0.02)
    assert (facts.gpus, facts.images, facts.norm, facts.freeze_at) == (8, 117266, "SyncBN", 0)
    assert facts.checked
    assert facts.unloaded == []
    assert facts.converged
    assert facts.precise_ran
    assert facts.reached == (38.658, 34.014)


def test_a_log_of_mmdetection_is_read(tmp_path):
    facts = explain.read(None, LOGS / "mmdetection_log.txt")
    assert (facts.gpus, facts.batch, facts.rate, facts.last_rate) == (4, 8, 0.02, 0.002)
    assert facts.iterations == facts.planned == 175899
    assert (facts.norm, facts.freeze_at, facts.weights) == ("FrozenBN", 2, "moco.pth")
    assert facts.unloaded == ["layer1.0.conv1.weight", "layer1.0.bn1.weight"]
    assert facts.reached == (pytest.approx(32.1), pytest.approx(29.6))


def test_an_mmdetection_log_beside_a_detectron2_config_is_named(capsys):
    config, log = CONFIGS / "coco_r50_c4_2x_moco.yaml", LOGS / "mmdetection_log.txt"
    arguments = ["--result", "32.1", "29.6", "--config", str(config), "--log", str(log)]
    assert cli.main(["explain", *arguments]) == 0
    assert "is a log of mmdetection's, the config is not: are both of one run?" in capsys.readouterr().out


def test_a_log_that_told_nothing_beside_a_config_is_named(capsys, tmp_path):
    (tmp_path / "slurm.out").write_text("srun: job 1 queued\nDone.\n")
    config = CONFIGS / "coco_r50_c4_2x_moco.yaml"
    arguments = ["--result", "30", "28", "--config", str(config), "--log", str(tmp_path / "slurm.out")]
    assert cli.main(["explain", *arguments]) == 0
    assert "slurm.out told nothing: no config, iteration, weights or evaluation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "FloatingPointError: Loss became infinite or NaN at iteration=556!",
            "Loss became infinite or NaN",
        ),
        ("Predicted boxes or scores contain Inf/NaN. Training has diverged.", "contain Inf/NaN"),
        ("[11/24 11:00:00 d2]: iter: 99  total_loss: nan  lr: 0.02", "the loss was nan at iteration 99"),
        ('{"iteration": 119, "total_loss": Infinity, "lr": 0.02}', "the loss was inf at iteration 119"),
        (
            "".join(f"iter: {n} total_loss: 5.{n % 7} lr: 0.02\n" for n in range(0, 9000, 20)),
            "does not fall",
        ),
    ],
)
def test_divergence_is_named_first(tmp_path, line, said):
    path = tmp_path / "log.txt"
    path.write_text(line)
    found = explanation(
        ExplainOptions((1.0, 0.9), "moco", config=CONFIGS / "coco_r50_c4_2x_moco.yaml", log=path)
    )
    assert found.causes[0].name == "divergence"
    assert found.causes[0].verdict == SEEN
    assert said in found.causes[0].text
    assert "SOLVER.BASE_LR=0.01" in found.next.command


def test_fractions_are_converted_and_said(capsys):
    assert cli.main(["explain", "--result", "0.251", "0.223"]) == 0
    out = capsys.readouterr().out
    assert "box 25.1, mask 22.3" in out
    assert "--result 0.251 0.223 was taken for fractions of 1" in out


def test_box_and_mask_are_fitted_together(capsys):
    cli.main(["explain", "--result", "25.1", "22.3"])
    out = capsys.readouterr().out
    assert "14.6k to 18.9k of 180k iterations by its box AP, 12.3k to 14.6k by its mask AP, " in out
    assert "box/mask    1.126 +- 0.010; by published ratios, a compressed schedule of" in out


@pytest.mark.parametrize("box", ["25.05", "25.1", "25.14"])
@pytest.mark.parametrize("mask", ["22.25", "22.3", "22.34"])
def test_neither_headline_alone_explains_the_students_ratio(capsys, box, mask):
    """The audit says so; what the report's numbers were before they were rounded does not change it."""
    points = {curve.init: curve.points for curve in curves.published().curves if curve.detector == "c4"}
    at_12k = [b / m for init, each in points.items() if init != "random" for n, b, m in each if n == 12_000]
    assert len(at_12k) == 7
    cli.main(["explain", "--result", box, mask])
    (line,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith("box/mask")]
    compressed = f"gives {min(at_12k):.3f} to {max(at_12k):.3f}, as of 12k, the shortest"
    assert (min(at_12k), max(at_12k)) == (pytest.approx(1.089, abs=1e-3), pytest.approx(1.108, abs=1e-3))
    assert compressed in line
    undecayed = [float(each) for each in re.findall(r"gives ([\d.]+) to ([\d.]+)", line)[1]]
    assert 17.0 / 16.0 < undecayed[0] < undecayed[1] < 24.2 / 22.3  # GluonCV's at 7.3k and at 22k
    assert line.endswith("neither alone explains it")


def test_what_fits_the_ratio_is_said(capsys):
    cli.main(["explain", "--result", "38.0", "33.2", "--method", "moco-v2"])
    assert "fits a compressed schedule" in capsys.readouterr().out


def test_the_answer_stands_first_and_the_command_last(capsys):
    cli.main(["explain", "--result", "25.1", "22.3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "most likely: schedule (possible), then undecayed stop (possible)"
    assert lines[-1].startswith("next: triplet explain --result 25.1 22.3 --log FILE  (seconds; ")


def test_json_has_the_same(capsys):
    cli.main(["explain", "--result", "25.1", "22.3", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["short"] == {"box": pytest.approx(16.6), "mask": pytest.approx(13.9)}
    assert [cause["name"] for cause in found["causes"]][:2] == ["schedule", "undecayed stop"]
    assert found["next"]["command"].startswith("triplet explain")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("MODEL: {BACKBONE: {FREEZE_AT: 2}}", "frozen stages"),
        ("MODEL: {ROI_HEADS: {NAME: Res5ROIHeads}}", "norm after res5"),
        ("MODEL: {ROI_HEADS: {SCORE_THRESH_TEST: 0.5}}", "evaluation"),
        ("INPUT: {MIN_SIZE_TEST: 480}", "evaluation"),
        ("INPUT:\n  MIN_SIZE_TRAIN: (480,)", "image sizes"),
        ("DATASETS:\n  TRAIN: ('coco_2014_train',)", "training data"),
        ("MODEL: {WEIGHTS: 'detectron2://ImageNetPretrained/MSRA/R-50.pkl'}", "BN folded into the weights"),
        ("MODEL: {WEIGHTS: 'detectron2://ImageNetPretrained/torchvision/R-50.pkl'}", "other weights"),
        ("MODEL: {WEIGHTS: /data/byol_r50-e3b0c442.pth}", "other weights"),
    ],
)
def test_causes_of_a_config_are_seen(tmp_path, text, cause):
    path = tmp_path / "config.yaml"
    path.write_text(f"_BASE_: coco_R_50_C4_2x_moco.yaml\n{text}\n")
    assert cause in names(explanation(ExplainOptions((35.0, 31.0), "moco-v2", config=path)))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("Removed 9 images with no usable annotations. 10000 images left.", "training data"),
        (
            "Auto-scaling the config to batch_size=4, learning_rate=0.005, max_iter=720000.",
            "BN statistics",
        ),
    ],
)
def test_causes_of_a_log_are_seen(tmp_path, text, cause):
    path = tmp_path / "log.txt"
    path.write_text(
        f"[11/24 10:00:00 detectron2]: {text}\n[11/24 10:00:00 d2]: iter: 19 total_loss: 5 lr: 0.1\n"
    )
    config = CONFIGS / "coco_r50_c4_2x_moco.yaml"
    assert cause in names(explanation(ExplainOptions((30.0, 27.0), "moco", config=config, log=path)))


def test_the_number_of_gpus_rescales_a_config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("_BASE_: coco_R_50_C4_2x_moco.yaml\nSOLVER: {REFERENCE_WORLD_SIZE: 8}\n")
    found = explanation(ExplainOptions((38.0, 33.0), "moco", config=path, gpus=2))
    assert "rescaled by the number of GPUs" in names(found)


def test_weights_that_stayed_random_rank_by_what_they_cost(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(PLAIN.replace("proposal_generator.rpn_head.conv", "backbone.res2.0.conv1"))
    found = explanation(ExplainOptions((35.7, 31.4), "moco-v2", log=path))
    assert found.causes[0].name == "weights not loaded"
    assert found.causes[0].box[1] > 5


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    network = ResNet(18, 8)
    return network.state_dict()


def saved(folder, state, name="weights.pth"):
    torch.save({"state_dict": state}, folder / name)
    return folder / name


def trained(state, *, statistics, scale):
    changed = {name: value.clone() for name, value in state.items()}
    for name, value in changed.items():
        if statistics and name.endswith("running_mean"):
            value += torch.arange(len(value)) / 10
        if scale and ".bn" in name and name.endswith("weight"):
            value += torch.arange(len(value)) / 10
    return changed


@pytest.mark.parametrize(
    ("statistics", "scale", "name", "cause"),
    [
        (False, False, "weights.pth", "other weights"),
        (False, True, "weights.pth", "BN folded into the weights"),
        (True, True, "byol_r50-e3b0c442.pth", "other weights"),
        (True, True, "weights.pth", None),
    ],
)
def test_weights_tell_what_they_are(tmp_path, state, statistics, scale, name, cause):
    path = saved(tmp_path, trained(state, statistics=statistics, scale=scale), name)
    config = CONFIGS / "coco_r50_c4_2x_moco.yaml"
    found = explanation(ExplainOptions((35.0, 31.0), "byol", config=config, weights=path))
    seen = names(found)
    assert cause in seen if cause else not {"other weights", "BN folded into the weights"} & set(seen)


@pytest.mark.parametrize(("name", "said"), [("triplet_r50_200e-738.pth", 1), ("triplet_r50-759.pth", 0)])
def test_of_two_weights_of_a_method_it_is_said_which_a_file_is(tmp_path, state, name, said):
    path = saved(tmp_path, trained(state, statistics=True, scale=True), name)
    found = explanation(ExplainOptions((36.0, 31.0), "triplet", weights=path))
    notes = [note for note in found.facts.notes if note.startswith(f"{name} is by its name triplet-200e, ")]
    assert len(notes) == said


def test_a_run_of_the_kit_is_explained_by_its_records(places, capsys):
    run_records.run("short/moco-v2", 33.0, 29.5, SOLVER__MAX_ITER=22_500)
    assert cli.main(["explain", "--run", "short/moco-v2"]) == 0
    out = capsys.readouterr().out
    assert "MoCo v2: box 33.0, mask 29.5" in out
    assert "most likely: schedule (seen)" in out
    assert cli.main(["explain", "--run", "none/moco-v2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
