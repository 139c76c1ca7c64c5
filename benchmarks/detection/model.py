"""Mask R-CNN R50-C4 as the paper and MoCo finetune it: config in, Detectron2 model out."""

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from torch import nn

from benchmarks.detection import compat  # noqa: F401
from triplet.errors import KitError

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import get_norm
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """C4 head with one more norm after res5 (MoCo, arXiv 1911.05722, appendix; its detection code)."""

    def _build_res5_block(self, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        blocks, channels = super()._build_res5_block(cfg)
        blocks.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return blocks, channels


def load_config(path: Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Detectron2's defaults, a yacs YAML on top, ``KEY.SUB=value`` overrides on top of that.

    On a machine without a GPU the model runs on the CPU.

    Raises:
        KitError: no such file, or a key or value that Detectron2 does not know.
    """
    cfg = get_cfg()
    if not path.is_file():
        raise KitError(f"no detection config at {path}; see configs/detection/")
    pairs = [part for override in overrides for part in override.split("=", 1)]
    if len(pairs) != 2 * len(overrides):
        raise KitError(f"overrides of Detectron2's settings are KEY.SUB=value: found {overrides}")
    try:
        cfg.merge_from_file(str(path), allow_unsafe=False)
        cfg.merge_from_list(pairs)
    except (LookupError, ValueError, AssertionError, AttributeError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).strip("'\"").split())
        raise KitError(f"{path}: Detectron2 refuses it: {reason}") from None
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def build(cfg: CfgNode) -> nn.Module:
    """The model of a config, randomly initialised, on the config's device."""
    return build_model(cfg)
