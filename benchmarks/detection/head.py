"""The C4 head that MoCo and the paper finetune, ordered so that the GPU does not wait for the CPU."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.detection import compat  # noqa: F401

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads, select_foreground_proposals
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks


class MaskTargets:
    """The masks of an image's foreground proposals, cropped and resized in advance for the mask loss.

    Args:
        masks: masks of the objects that the proposals were matched with.
        boxes: (N, 4) boxes of the proposals, on the CPU if the masks are polygons.
        side: side of the mask head's maps, in cells.
    """

    def __init__(self, masks: PolygonMasks | BitMasks, boxes: Tensor, side: int) -> None:
        self.masks: Any = masks
        self.cropped: Tensor = self.masks.crop_and_resize(boxes, side)

    def __len__(self) -> int:
        return len(self.masks)

    def crop_and_resize(self, boxes: Tensor, side: int) -> Tensor:
        """Return (N, side, side) bool like the masks' own method, which is called for any other side."""
        if side == self.cropped.shape[-1]:
            return self.cropped
        other: Tensor = self.masks.crop_and_resize(boxes, side)
        return other


class Blocks(nn.Sequential):
    """nn.Sequential that torch.compile compiles as a whole; of torch's own it compiles only the parts."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the blocks in order."""
        for block in self:
            input = block(input)
        return input


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """C4 head with one more norm after res5 (MoCo, arXiv 1911.05722, appendix; its detection code)."""

    def _build_res5_block(self, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        blocks, channels = super()._build_res5_block(cfg)
        blocks.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return Blocks(OrderedDict(blocks.named_children())), channels

    def _shared_roi_transform(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        pooled = self.pooler(features, boxes)
        # If res5 is compiled, one graph then serves any number of RoIs.
        torch._dynamo.maybe_mark_dynamic(pooled, 0)
        return self.res5(pooled)  # type: ignore[no-any-return]

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Compute the same as Detectron2's ``forward``, in another order while training masks.

        Detectron2 rasterises polygons on the CPU after the box losses, whose logging waits for the GPU, so
        the GPU is idle meanwhile. Here the CPU rasterises while the GPU computes res5: the CPU fetches the
        boxes from the GPU before, and waits for it only afterwards.
        """
        if not self.training or not self.mask_on:
            return super().forward(images, features, proposals, targets)  # type: ignore[no-any-return]
        proposals = self.label_and_sample_proposals(proposals, targets)
        foreground, chosen = select_foreground_proposals(proposals, self.num_classes)
        rows = torch.cat(chosen).nonzero().squeeze(1)
        boxes = [_fetch_boxes(each) for each in foreground]
        box_features = self._shared_roi_transform(
            [features[name] for name in self.in_features], [each.proposal_boxes for each in proposals]
        )
        predictions = self.box_predictor(box_features.mean(dim=[2, 3]))
        for each, own in zip(foreground, boxes, strict=True):
            if len(each):  # the mask head's deconvolution doubles the side of res5
                each.gt_masks = MaskTargets(each.gt_masks, own, 2 * box_features.shape[-1])
        losses: dict[str, Any] = self.box_predictor.losses(predictions, proposals)
        losses.update(self.mask_head(box_features[rows], foreground))
        return [], losses


def _fetch_boxes(proposals: Instances) -> Tensor:
    """Return the (N, 4) boxes on the device that rasterises the masks: the CPU for polygons, their own for
    bitmaps."""
    boxes: Tensor = proposals.proposal_boxes.tensor
    polygons = proposals.has("gt_masks") and isinstance(proposals.gt_masks, PolygonMasks)
    return boxes.cpu() if polygons else boxes
