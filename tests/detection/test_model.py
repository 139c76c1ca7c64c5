import pytest

from benchmarks.detection import model
from tests.conftest import KIT
from triplet.errors import KitError

CONFIGS = KIT / "configs" / "detection"
SHARED = {  # section 5 of the recipe: common to both schedules
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "INPUT.FORMAT": "RGB",
    "INPUT.MAX_SIZE_TRAIN": 1200,
    "INPUT.MIN_SIZE_TEST": 800,
    "MODEL.RESNETS.NORM": "SyncBN",
    "TEST.PRECISE_BN.ENABLED": True,
    "SOLVER.MAX_ITER": 180000,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.MOMENTUM": 0.9,
}
AUTHORS = {
    **SHARED,
    "SOLVER.BASE_LR": 0.05,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.WARMUP_ITERS": 10000,
    "SOLVER.WARMUP_FACTOR": 1e-4,
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800, 832, 864, 880),
}
MOCO = {
    **SHARED,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.STEPS": (120000, 160000),
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.WARMUP_FACTOR": 1 / 1000,
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
}


@pytest.mark.parametrize(("name", "expected"), [("authors", AUTHORS), ("moco", MOCO)])
def test_the_recipes_resolve_to_the_published_values(name, expected):
    cfg = model.load_config(CONFIGS / f"coco_r50_c4_2x_{name}.yaml")
    for key, value in expected.items():
        found = cfg
        for part in key.split("."):
            found = found[part]
        assert found == value, key


def test_the_extra_norm_follows_res5():
    built = model.build(model.load_config(CONFIGS / "demo.yaml"))
    assert [name for name, _ in built.roi_heads.res5.named_children()] == ["0", "1", "2", "norm"]
    assert built.roi_heads.res5.norm.num_features == 256


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SOLVER.MAX_ITR=5"], "Detectron2 refuses it: Non-existent key: SOLVER.MAX_ITR"),
        (["SOLVER.MAX_ITER=many"], "Detectron2 refuses it"),
        (["SOLVER.MAX_ITER"], "KEY.SUB=value"),
    ],
)
def test_wrong_overrides_are_named(overrides, message):
    with pytest.raises(KitError, match=message):
        model.load_config(CONFIGS / "demo.yaml", overrides)


def test_missing_and_damaged_configs_are_named(tmp_path):
    with pytest.raises(KitError, match="no detection config at"):
        model.load_config(tmp_path / "none.yaml")
    for text in ("MODEL: [", "- a list", "MODEL: !!python/object/apply:os.getcwd []"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(KitError, match=r"bad\.yaml(: is not YAML \(| is not a config: expected)"):
            model.load_config(tmp_path / "bad.yaml")
