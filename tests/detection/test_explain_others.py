"""Files of other people's runs, each with one mistake: it is among explain's first two causes."""

import gzip
import json
import re

import pytest
import yaml

from benchmarks.detection import explain
from benchmarks.detection.explain.command import ExplainOptions, explanation
from tests.conftest import KIT
from tests.support import explain_cases
from triplet import cli
from triplet.published.configs import nested, released

LOGS = KIT / "tests/detection/cases/logs"
PLAIN = (LOGS / "detectron2_log.txt").read_text()
SHORT = re.sub(r"iter: 1\d{5} ", "iter: 22499 ", PLAIN.replace("MAX_ITER: 180000", "MAX_ITER: 22500"))
MMDETECTION = """_base_ = ['../_base_/models/mask-rcnn_r50_fpn.py', '../_base_/schedules/schedule_1x.py']
"""
PIPELINES = """
train_pipeline = [dict(type='Resize', img_scale=(640, 384)), dict(type='RandomFlip')]
test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(640, 384), transforms=[])]
"""
LAZY = """
from ..common.optim import SGD as optimizer
from ..common.models.mask_rcnn_c4 import model
from ..common.train import train
model.backbone.freeze_at = 2
train.max_iter = 22500
train.init_checkpoint = "moco.pkl"
"""
C4 = """_BASE_: "../Base-RCNN-C4.yaml"
MODEL:
  MASK_ON: True
  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
"""


def first(tmp_path, result, *, method="moco-v2", target=None, gpus=None, **files):
    """The names of the two likeliest causes."""
    paths = {}
    for kind, (name, data) in files.items():
        paths[kind] = tmp_path / name
        paths[kind].write_bytes(data if isinstance(data, bytes) else data.encode())
    return explain_cases.first_two(
        explanation(ExplainOptions(result, method, target=target, gpus=gpus, **paths))
    )


@pytest.mark.parametrize(
    ("change", "result", "cause"),
    [
        ("SOLVER: {MAX_ITER: 60000}", (29.9, 27.0), "undecayed stop"),
        ("SOLVER: {BASE_LR: 0.002}", (33.0, 29.4), "learning rate"),
        ("SOLVER: {WEIGHT_DECAY: 0.01}", (37.0, 32.8), "weight decay"),
        ("MODEL: {ROI_HEADS: {NUM_CLASSES: 20}}", (35.0, 31.0), "training data"),
        ("DATASETS: {TRAIN: ['coco_2014_train']}", (36.9, 32.2), "training data"),
        ("DATASETS: {TEST: ['coco_2017_val_100']}", (30.0, 26.0), "evaluation"),
        ("TEST: {DETECTIONS_PER_IMAGE: 10}", (38.6, 33.8), "evaluation"),
        ("INPUT: {MAX_SIZE_TRAIN: 600}", (38.0, 33.1), "image sizes"),
        ("MODEL: {RESNETS: {NORM: GN}}", (33.1, 29.4), "BN statistics"),
        ("MODEL: {MASK_ON: False}", (39.7,), "mask head"),
        ("{}", (41.0, 3.0), "masks alone"),
        ("{}", (1.3, 0.9), "evaluation"),
    ],
)
def test_one_mistake_in_a_config_is_among_the_first_two(tmp_path, change, result, cause):
    config = f"_BASE_: coco_R_50_C4_2x_moco.yaml\n{'' if change == '{}' else change}\n"
    assert cause in first(tmp_path, result, config=("config.yaml", config))


def test_the_other_recipe_is_seen(tmp_path):
    config = ("config.yaml", f"_BASE_: {KIT}/configs/detection/coco_r50_c4_2x_moco.yaml\n")
    assert "another recipe" in first(tmp_path, (39.9, 34.8), method="triplet", config=config)


@pytest.mark.parametrize(
    ("owner", "whose", "ours", "method"),
    [
        ("authors", "the authors' file", "authors", "moco"),
        ("openselfsup", "OpenSelfSup's", "moco", "triplet"),
    ],
)
def test_a_released_config_is_known_by_its_settings(tmp_path, owner, whose, ours, method):
    """Both have a file of this name; for the other one's method, it is another recipe."""
    path = tmp_path / "coco_R_50_C4_2x_moco.yaml"
    path.write_text(yaml.safe_dump(nested(released()[f"{owner}/{path.stem}"])))
    found = explanation(ExplainOptions((36.0, 31.5), method, config=path))
    note = (
        f"{path.name}: by its settings it is {whose} of that name, and in the kit it is configs/detection/"
    )
    assert f"{note}coco_r50_c4_2x_{ours}.yaml" in found.facts.notes
    assert {cause.name: cause.verdict for cause in found.causes}["another recipe"] == "seen"


@pytest.mark.parametrize(("method", "taken"), [("triplet", "the authors' file"), ("moco", "OpenSelfSup's")])
def test_a_missing_base_is_no_other_recipe(tmp_path, method, taken):
    path = tmp_path / "coco_R_50_C4_2x_moco.yaml"
    path.write_text("_BASE_: coco_R_50_C4_2x.yaml\nINPUT: {FORMAT: RGB}\n")
    found = explanation(ExplainOptions((36.0, 31.5), method, config=path))
    assert "another recipe" not in [cause.name for cause in found.causes]
    (said,) = [note for note in found.facts.notes if "is not there" in note]
    assert f"was taken for {taken}; " in said
    assert "SOLVER.BASE_LR" in said


def test_a_target_of_another_detector_is_seen_by_its_ratio(tmp_path):
    config = ("mask_rcnn_R_50_C4_1x.yaml", C4)
    found = first(tmp_path, (38.2, 33.3), method=None, target=(40.6, 36.8), config=config)
    assert found[0] == "another detector"
    assert "another detector" not in first(
        tmp_path, (36.0, 31.5), method=None, target=(38.2, 33.3), config=config
    )


@pytest.mark.parametrize(
    ("text", "gpus", "cause"),
    [
        (MMDETECTION, 4, "learning rate"),
        (MMDETECTION + PIPELINES, 8, "image sizes"),
        (MMDETECTION + "train_cfg = dict(max_epochs=4)", 8, "undecayed stop"),
        (
            MMDETECTION
            + "model = dict(data_preprocessor=dict(mean=[0.485], std=[0.229], bgr_to_rgb=True))",
            8,
            "colour order, mean, stride",
        ),
    ],
)
def test_a_mistake_in_a_config_of_mmdetection_is_seen(tmp_path, text, gpus, cause):
    result = (33.9, 30.2) if cause == "image sizes" else (36.9, 33.5)
    config = ("mask-rcnn_r50_fpn_1x_coco.py", text)
    assert cause in first(tmp_path, result, method=None, target=(38.2, 34.7), gpus=gpus, config=config)


def test_a_lazy_config_is_read_as_text(tmp_path):
    found = first(tmp_path, (29.0, 26.3), config=("mask_rcnn_R_50_C4.py", LAZY))
    assert found == ["schedule", "BN statistics"]
    facts = explain.read(tmp_path / "mask_rcnn_R_50_C4.py", None)
    assert (facts.kind, facts.planned, facts.batch, facts.freeze_at) == ("c4", 22500, 16, 2)
    assert (facts.norm, facts.weights) == ("FrozenBN", "moco.pkl")
    dumped = tmp_path / "config.yaml"
    dumped.write_text(
        "train: {max_iter: 22500}\ndataloader: {train: {total_batch_size: 4}}\noptimizer: {lr: 0.02}\n"
    )
    facts = explain.read(dumped, None)
    assert (facts.planned, facts.batch, facts.rate) == (22500, 4, 0.02)


@pytest.mark.parametrize(
    ("changes", "possible"),
    [
        ("MODEL: {WEIGHTS: moco.pkl, RESNETS: {NORM: SyncBN}}", True),
        ("MODEL: {WEIGHTS: moco.pkl}", False),  # frozen BN needs no other
        ("MODEL: {RESNETS: {NORM: SyncBN}}", False),  # supervised weights of Detectron2's
    ],
)
def test_the_norm_after_res5_is_looked_for_without_a_method(tmp_path, changes, possible):
    (tmp_path / "stock.yaml").write_text(C4)
    (tmp_path / "mine.yaml").write_text(f"_BASE_: stock.yaml\n{changes}\n")
    found = explanation(
        ExplainOptions((36.0, 31.5), target=(38.9, 34.2), config=tmp_path / "mine.yaml")
    ).causes
    verdicts = {cause.name: cause.verdict for cause in found}
    assert verdicts.get("norm after res5") == ("possible" if possible else None)


LISTED = "Some model parameters or buffers are not found in the checkpoint:"


@pytest.mark.parametrize(
    "said",
    [
        "Some model parameters are not in the checkpoint:\nbackbone.res2.0.conv1.weight",
        "_IncompatibleKeys(missing_keys=['backbone.stem.conv1.weight'], unexpected_keys=['conv1.weight'])",
        "size mismatch for layer2.0.conv1.weight: copying a param with shape torch.Size([256])",
    ],
)
def test_every_loaders_words_for_what_was_not_loaded_are_known(tmp_path, said):
    log = PLAIN.replace(LISTED, said)
    assert first(tmp_path, (35.5, 31.3), log=("log.txt", log))[0] == "weights not loaded"


@pytest.mark.parametrize("checkpoint", ["model_0059999.pth", "iter_60000.pth"])
def test_an_evaluation_of_an_earlier_checkpoint_is_seen(tmp_path, checkpoint):
    log = PLAIN.replace(
        "[11/25 11:20:00",
        f"[11/25 11:10:00 fvcore]: Loading from output/{checkpoint} ...\n[11/25 11:20:00",
        1,
    )
    assert first(tmp_path, (28.8, 26.0), log=("log.txt", log)) == ["undecayed stop", "schedule"]
    resumed = PLAIN.replace("Loading from out.pkl", f"Loading from output/{checkpoint}")
    assert "schedule" not in first(tmp_path, (28.8, 26.0), log=("log.txt", resumed))


JSON = "".join(
    json.dumps(
        {"mode": "train", "epoch": epoch, "iter": step, "lr": 0.02 / 10 ** (epoch > 8), "loss": 3 / epoch}
    )
    + "\n"
    for epoch in range(1, 13)
    for step in (50, 29300)
)
MACHINE = {
    "env_info": "GPU 0,1: Tesla V100",
    "config": "model = dict(type='MaskRCNN')\ndata = dict(samples_per_gpu=2)\noptimizer = dict(lr=0.02)\n"
    "runner = dict(max_epochs=12)\n",
}
BENCHMARK = "OrderedDict([('bbox', OrderedDict([('AP', 0.311)])), ('segm', OrderedDict([('AP', 0.279)]))])"
SUMMARY = " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = "


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (
            "20210101.log.json",
            json.dumps(MACHINE) + "\n" + JSON + '{"mode": "val", "bbox_mAP": 0.311, "segm_mAP": 0.279}',
        ),
        ("scalars.json", '{"coco/bbox_mAP": 0.311, "coco/segm_mAP": 0.279, "step": 12}'),
        ("log.txt", BENCHMARK),
        ("log.txt", f"{SUMMARY}0.311\n{SUMMARY}0.279\n"),
        ("results.json", json.dumps({"bbox": {"AP": 31.1}, "segm": {"AP": 27.9}}, indent=2)),
        ("log.txt.gz", gzip.compress(SHORT.replace("38.658", "31.1").replace("34.014", "27.9").encode())),
        ("cut.gz", gzip.compress(SHORT.replace("38.658", "31.1").replace("34.014", "27.9").encode())[:-8]),
    ],
)
def test_an_ap_is_heard_in_every_form_in_which_programs_write_it(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    facts = explain.read(None, path)
    assert facts.reached == (pytest.approx(31.1), pytest.approx(27.9))
    if "log.json" in name:
        assert (facts.gpus, facts.batch, facts.rate, facts.iterations) == (2, 4, 0.02, 351798)


def test_percent_below_one_in_detectron2s_table_is_percent(tmp_path):
    log = PLAIN.replace("| 38.658", "| 0.812").replace("| 34.014", "| 0.401")
    (tmp_path / "log.txt").write_text(log)
    assert explain.read(None, tmp_path / "log.txt").reached == (0.812, 0.401)


@pytest.mark.parametrize(
    "words", [["25.1%", "22.3%"], ["25.1/22.3"], ["25.1,", "22.3"], ["0.251", "0.223"]]
)
def test_an_ap_is_taken_as_people_write_it(capsys, words):
    assert cli.main(["explain", "--result", *words]) == 0
    assert "box 25.1, mask 22.3" in capsys.readouterr().out


def test_a_percent_sign_is_kept(capsys):
    """A run that learned hardly anything has such an AP; as fractions of 1 it would be a good one."""
    assert cli.main(["explain", "--result", "0.4%", "0.3%"]) == 0
    out = capsys.readouterr().out
    assert "Triplet: box 0.4, mask 0.3; " in out
    assert "taken for fractions" not in out
    assert "--result 0.4% 0.3%" in out.splitlines()[-1]


def test_a_decimal_comma_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["explain", "--result", "25,1", "22,3"])
    assert stopped.value.code == 2
    assert "found 25,1, expected a number, such as 25.1" in capsys.readouterr().err
