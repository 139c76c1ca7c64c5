"""The C4 head that MoCo and the paper finetune, arranged so that a GPU does not wait for the CPU."""

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
    """The masks of an image's foreground proposals, which the mask loss finds cropped and resized already.

    Args:
        masks: of the objects that the proposals were matched with.
        boxes: (N, 4) of the proposals, on the CPU where the masks are polygons.
        side: of the mask head's maps, in cells.
    """

    def __init__(self, masks: PolygonMasks | BitMasks, boxes: Tensor, side: int) -> None:
        self.masks: Any = masks
        self.cropped: Tensor = self.masks.crop_and_resize(boxes, side)

    def __len__(self) -> int:
        return len(self.masks)

    def crop_and_resize(self, boxes: Tensor, side: int) -> Tensor:
        """(N, side, side) bool: as the masks' own method, which another side than ours is left to."""
        if side == self.cropped.shape[-1]:
            return self.cropped
        other: Tensor = self.masks.crop_and_resize(boxes, side)
        return other


class Blocks(nn.Sequential):
    """nn.Sequential whose forward torch.compile takes as a whole: it skips torch's own, for its parts."""

    def forward(self, input: Tensor) -> Tensor:
        """See there."""
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
        # Where res5 is compiled, one graph then serves any number of RoIs.
        torch._dynamo.maybe_mark_dynamic(pooled, 0)
        return self.res5(pooled)  # type: ignore[no-any-return]

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Compute what Detectron2's own ``forward`` does, in another order while training masks.

        That one rasterises polygons on the CPU after the box losses, whose logging waits for the GPU, which
        then has nothing to do. Here the CPU rasterises while the GPU is at res5: what it needs of the
        GPU it fetches before, and the first wait comes after.
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
            if len(each):  # the mask head's deconvolution doubles res5's side
                each.gt_masks = MaskTargets(each.gt_masks, own, 2 * box_features.shape[-1])
        losses: dict[str, Any] = self.box_predictor.losses(predictions, proposals)
        losses.update(self.mask_head(box_features[rows], foreground))
        return [], losses


def _fetch_boxes(proposals: Instances) -> Tensor:
    """(N, 4) where the masks are rasterised: on the CPU for polygons, where they are for bitmaps."""
    boxes: Tensor = proposals.proposal_boxes.tensor
    polygons = proposals.has("gt_masks") and isinstance(proposals.gt_masks, PolygonMasks)
    return boxes.cpu() if polygons else boxes
