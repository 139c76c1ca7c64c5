"""Our pretraining configs against the authors', which `scripts/golden_pretrain.py` wrote down."""

import json

import pytest

from scripts.golden_pretrain import OUTPUT
from tests.conftest import KIT
from triplet.config import load
from triplet.pretrain.config import Pretrain
from triplet.published.configs import flat

THEIRS = json.loads(OUTPUT.read_text())
OURS = {
    "r50_bs4096_accumulate4_ep1000_fp16_triplet_gpu3090": "triplet_resnet50_8x196x4-larscos-1000e_imagenet",
    "r50_bs4096_accumulate6_ep1000_fp16_triplet_gpu12g": "triplet_resnet50_8x104x6-larscos-1000e_imagenet",
    "r50_bs4096_accumulate4_ep10_fp16_triplet_gpu3090_sysu30k": (
        "triplet_resnet50_4x196x8-larscos-10e_sysu30k"
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_ours_say_what_theirs_do(name):
    ours = flat(load(KIT / "configs" / "pretrain" / f"{OURS[name]}.yaml", Pretrain).model_dump(mode="json"))
    differ = {key: ours[key] for key, value in THEIRS[name].items() if ours[key] != value}
    assert differ == {"precision": "bfloat16"}  # float16 by apex is no more
