"""A setting without sense is one line with name, value and what was expected, before anything begins."""

import re

import pytest

from benchmarks.detection import model
from tests.conftest import KIT
from triplet import cli
from triplet.errors import KitError

DEMO = KIT / "configs/detection/demo.yaml"
CONFIGS = sorted(path for path in (KIT / "configs/detection").glob("*_*_*.yaml"))
SENSELESS = [
    "SOLVER.WARMUP_ITERS=-3",
    "SOLVER.MAX_ITER=0",
    "SOLVER.MAX_ITER=-100",
    "SOLVER.IMS_PER_BATCH=-16",
    "SOLVER.IMS_PER_BATCH=0",
    "SOLVER.CHECKPOINT_PERIOD=0",
    "SOLVER.BASE_LR=0.0",
    "SOLVER.BASE_LR=-0.02",
    "SOLVER.BASE_LR=1e999",
    "SOLVER.MOMENTUM=1.5",
    "SOLVER.WEIGHT_DECAY=-1e-4",
    "SOLVER.GAMMA=0.0",
    "SOLVER.WARMUP_FACTOR=-0.1",
    "SOLVER.WARMUP_METHOD='none'",
    "SOLVER.LR_SCHEDULER_NAME='WarmupCosinLR'",
    "DATALOADER.NUM_WORKERS=-1",
    "DATALOADER.NUM_WORKERS=100000",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE=0",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE=-512",
    "MODEL.ROI_HEADS.NUM_CLASSES=0",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST=1.01",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST=-0.5",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS=[1.5]",
    "MODEL.RPN.IOU_THRESHOLDS=[0.7,0.3]",
    "MODEL.RPN.POSITIVE_FRACTION=2.0",
    "MODEL.META_ARCHITECTURE='FasterRCNN'",
    "MODEL.BACKBONE.NAME='build_resnet'",
    "MODEL.ROI_HEADS.NAME='Res5Heads'",
    "MODEL.RESNETS.NORM='BatchNorm'",
    "MODEL.RESNETS.DEPTH=51",
    "MODEL.ANCHOR_GENERATOR.SIZES=[[-16]]",
    "MODEL.ANCHOR_GENERATOR.SIZES=[]",
    "MODEL.RPN.BBOX_REG_WEIGHTS=(0.0,1.0,1.0,1.0)",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS=(1.0,)",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS=[[0.5,0]]",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS=[[1.0],2.0]",
    "MODEL.PIXEL_STD=[1.0,0.0,1.0]",
    "MODEL.PIXEL_MEAN=[1.0]",
    "TEST.DETECTIONS_PER_IMAGE=-1",
    "TEST.PRECISE_BN.NUM_ITER=0",
    "INPUT.MIN_SIZE_TRAIN=(-5,)",
    "INPUT.MIN_SIZE_TRAIN=()",
    "INPUT.MAX_SIZE_TRAIN=0",
    "INPUT.FORMAT='HSV'",
    "INPUT.MASK_FORMAT='rle'",
    "INPUT.CROP.SIZE=[5,5]",
    "INPUT.CROP.SIZE=[0.5]",
    "INPUT.CROP.TYPE='square'",
    "MODEL.BACKBONE.FREEZE_AT=99",
    "SEED=-5",
    "SOLVER.IMS_PER_BATCH=1000000",
]


@pytest.mark.parametrize("override", SENSELESS)
def test_a_setting_without_sense_is_named(override):
    key = override.partition("=")[0]
    with pytest.raises(KitError, match=rf"demo\.yaml: {re.escape(key)}(\.\d)? is .*, expected ") as caught:
        model.load_config(DEMO, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("steps", ["(300,200)", "(0,)", "(401,)", "(-1,300)", "(2.5,)"])
def test_steps_are_in_order_and_within_the_schedule(steps):
    multi = "SOLVER.LR_SCHEDULER_NAME='WarmupMultiStepLR'"
    with pytest.raises(
        KitError, match=r"SOLVER\.STEPS is .*, expected iterations from 1 to .*=400, ascending"
    ):
        model.load_config(DEMO, [multi, "SOLVER.MAX_ITER=400", f"SOLVER.STEPS={steps}"])
    cosine = "SOLVER.LR_SCHEDULER_NAME='WarmupCosineLR'"  # which has none
    assert model.load_config(DEMO, [cosine, f"SOLVER.STEPS={steps}"])


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_a_number_that_is_none_is_found_anywhere(tmp_path, value):
    path = tmp_path / "config.yaml"
    path.write_text(f"MODEL: {{ANCHOR_GENERATOR: {{SIZES: [[32, {value}]]}}}}")
    with pytest.raises(
        KitError, match=r"MODEL\.ANCHOR_GENERATOR\.SIZES\.0\.1 is .*, expected a finite number"
    ):
        model.load_config(path)


@pytest.mark.parametrize(
    "override",
    [
        "MODEL.ANCHOR_GENERATOR.OFFSET=1.0",
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE='Foo'",
        "MODEL.RESNETS.OUT_FEATURES=['res9']",
        "MODEL.RPN.IN_FEATURES=['p2']",
        "MODEL.ROI_MASK_HEAD.NAME='Foo'",
        "MODEL.RPN.IOU_LABELS=[0,1]",
    ],
)
def test_a_model_that_detectron2_cannot_build_is_one_line(override):
    with pytest.raises(KitError, match=r"Detectron2 cannot build the config's model \(\w+Error") as caught:
        model.build(model.load_config(DEMO, [override]))
    assert "\n" not in str(caught.value)


def test_the_kits_own_settings_make_sense():
    assert len(CONFIGS) > 20
    for path in CONFIGS:
        model.load_config(path)


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_every_stage_says_it_before_anything_begins(places, tmp_path, capsys, command):
    path = tmp_path / "config.yaml"
    path.write_text(f"_BASE_: {DEMO}\nSOLVER: {{IMS_PER_BATCH: -1}}\n")
    (tmp_path / "weights.pth").touch()
    given = ["--weights", str(tmp_path / "weights.pth"), "--run", "byol"] if command == "convert" else []
    assert cli.main([command, "--config", str(path), *given]) == 2
    error = capsys.readouterr().err
    assert "config.yaml: SOLVER.IMS_PER_BATCH is -1, expected at least 1" in error
    assert error.count("\n") == 1
    assert not (places / "checkpoints" / "byol").exists()


@pytest.mark.parametrize(
    "base",
    [
        "http://127.0.0.1:9/x.yaml",
        "https://a.invalid/x.yaml",
        "detectron2://x.yaml",
        "[a.yaml, http://b/c]",
    ],
)
def test_nothing_is_fetched(tmp_path, base, monkeypatch):
    def refuse(*_):
        raise AssertionError("it asks the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    (tmp_path / "a.yaml").write_text("VERSION: 2")
    path = tmp_path / "config.yaml"
    path.write_text(f"_BASE_: {base}\n")
    with pytest.raises(KitError, match=r"config\.yaml: _BASE_ names .*only files of this machine are read"):
        model.load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: config.yaml", "leads in a circle"),
        ("_BASE_: other.yaml", "leads in a circle"),
        ("_BASE_: [twice.yaml, twice.yaml]", "leads in a circle"),
        ("_BASE_: nowhere.yaml", "nowhere.yaml', which is not a file"),
        ("_BASE_: /dev/zero", "'/dev/zero', which is not a file"),
        ("_BASE_: .", "which is not a file"),
        ("_BASE_: 3", r"config\.yaml is not a config: expected settings by name, and _BASE_ as file names"),
        ("_BASE_: {a: 1}", r"config\.yaml is not a config"),
        ("_BASE_: text.yaml", r"text\.yaml is not a config"),
        ("_BASE_: latin.yaml", r"latin\.yaml is not a detection config in UTF-8"),
        ("_BASE_: laughs.yaml", r"laughs\.yaml: has more than 10000 values, aliases written out"),
        ("_BASE_: [empty.yaml, deep.yaml]", r"deep\.yaml: has more than 32 levels"),
        ("_BASE_: large.yaml", r"large\.yaml has more than 262 kB, the most of a detection config"),
    ],
)
def test_a_base_is_a_file_and_no_circle(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("_BASE_: config.yaml")
    (tmp_path / "twice.yaml").write_text("_BASE_: [config.yaml, config.yaml]")
    (tmp_path / "text.yaml").write_text("localhost")
    (tmp_path / "latin.yaml").write_bytes(b"OUTPUT_DIR: caf\xe9")
    laughs = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (tmp_path / "laughs.yaml").write_text("\n".join(["a0: &a0 [x]", *laughs]))
    (tmp_path / "empty.yaml").write_text("{}")
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 50 + "]" * 50)
    (tmp_path / "large.yaml").write_text("#" * 300_000)
    with pytest.raises(KitError, match=message) as caught:
        model.load_config(tmp_path / "config.yaml")
    assert "\n" not in str(caught.value)


def test_bases_of_this_machine_are_followed(tmp_path):
    (tmp_path / "config.yaml").write_text(f"_BASE_: [{DEMO}, more.yaml]\nSEED: 4\n")
    (tmp_path / "more.yaml").write_text("SOLVER: {MAX_ITER: 500}")
    cfg = model.load_config(tmp_path / "config.yaml")
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.MODEL.META_ARCHITECTURE) == (4, 500, "GeneralizedRCNN")
