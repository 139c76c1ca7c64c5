"""Our detection configs against the authors' and OpenSelfSup's, key by key, as Detectron2 resolves them.

`scripts/golden_detection.py` wrote theirs down: what differs from Detectron2's defaults. A key in neither
is the default of the Detectron2 at hand on both sides, so that its version does not matter.
"""

import json
import re

import pytest

from benchmarks.detection import model
from scripts.golden_detection import OUTPUT, flat
from tests.conftest import KIT

from detectron2.config import get_cfg

CONFIGS = KIT / "configs" / "detection"
THEIRS = json.loads(OUTPUT.read_text())
DEFAULTS = flat(get_cfg())
NAME = re.compile(
    r"(?P<kind>coco_r50_c4|coco_r50_fpn|coco_r50_retinanet|keypoint_r50_fpn|voc_r50_c4)"
    r"_(?P<schedule>1x|2x|24k)_(?P<recipe>authors|moco)(?P<msra>_msra)?"
)
KINDS = {
    "coco_r50_c4": "coco_R_50_C4",
    "coco_r50_fpn": "coco_R_50_FPN",
    "coco_r50_retinanet": "coco_R_50_RetinaNet",
    "keypoint_r50_fpn": "keypoint_rcnn_R_50_FPN",
    "voc_r50_c4": "pascal_voc_R_50_C4",
}
LEAVES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if NAME.fullmatch(path.stem))
# Where ours differ from theirs on purpose: name of ours -> key -> (ours, theirs).
# And in all of them MODEL.WEIGHTS is empty: the stage gives what the run converted.
BROKEN_VOC = {
    # Theirs lost the SOLVER section of VOC and inherits COCO's; the file says what ours has instead.
    "SOLVER.MAX_ITER": (24000, 180000),
    "SOLVER.WARMUP_ITERS": (1200, 10000),
    # Without meaning beside the cosine: OpenSelfSup's steps for VOC, and Detectron2's default.
    "SOLVER.STEPS": ([18000, 22000], [30000]),
}
DELIBERATE = {"voc_r50_c4_24k_authors": BROKEN_VOC, "voc_r50_c4_24k_authors_msra": BROKEN_VOC}


def theirs_of(name):
    """The name of their file in the fixture. Theirs is MSRA's unless its name ends in `_moco`."""
    part = NAME.fullmatch(name)
    repository = {"authors": "authors", "moco": "openselfsup"}[part["recipe"]]
    return f"{repository}/{KINDS[part['kind']]}_{part['schedule']}{'' if part['msra'] else '_moco'}"


def test_each_of_their_files_has_one_of_ours():
    assert sorted(map(theirs_of, LEAVES)) == sorted(THEIRS)


@pytest.mark.parametrize("name", LEAVES)
def test_ours_resolve_to_theirs(name):
    ours = flat(model.load_config(CONFIGS / f"{name}.yaml"))
    theirs = DEFAULTS | THEIRS[theirs_of(name)]
    differ = {key: (ours[key], theirs[key]) for key in theirs if ours[key] != theirs[key]}
    differ.pop("MODEL.DEVICE", None)  # of this machine
    weights = {"MODEL.WEIGHTS": ("", theirs["MODEL.WEIGHTS"])}
    assert differ == weights | DELIBERATE.get(name, {})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_is_read_alone_and_says_its_kind_of_data(path):
    cfg = model.load_config(path)
    if NAME.fullmatch(path.stem) or path.stem == "demo":
        kind = {"keypoint": "keypoints_coco_2017_train", "voc": "voc_2007_trainval"}
        assert cfg.DATASETS.TRAIN[0] == kind.get(path.stem.partition("_")[0], "coco_2017_train")
