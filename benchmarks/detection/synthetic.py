"""Synthetic batches for memory and speed measurements: random pixels, with as many objects as in COCO."""

from typing import Any

import torch

from benchmarks.detection import model

from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks

OBJECTS = 7
"""Objects in an image: COCO's train2017 has 860 001 in 117 266 annotated images."""


def images(cfg: CfgNode, count: int, seed: int, *, largest: bool = False) -> list[dict[str, Any]]:
    """Make images in the form of Detectron2's mapper.

    Args:
        cfg: config with the sizes (INPUT) and kinds of annotation; the images are 4:3, as most of COCO's.
        count: number of images.
        seed: seed of sizes, pixels and objects.
        largest: whether to use the largest possible size only.
    """
    random = torch.Generator().manual_seed(seed)

    def pick(high: int, shape: tuple[int, ...] = ()) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=random)

    found = []
    for _ in range(count):
        shorter = cfg.INPUT.MIN_SIZE_TRAIN[int(pick(len(cfg.INPUT.MIN_SIZE_TRAIN)))]
        size = (shorter, min(round(shorter * 4 / 3), cfg.INPUT.MAX_SIZE_TRAIN))
        if largest:
            size = (min(max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN)
        height, width = size
        scale = torch.tensor([width, height, width, height])
        corner = torch.rand(OBJECTS, 2, generator=random) * 0.6
        extent = 0.1 + torch.rand(OBJECTS, 2, generator=random) * 0.3
        boxes = torch.cat([corner, corner + extent], 1) * scale
        objects = Instances(size)
        objects.gt_boxes = Boxes(boxes)
        objects.gt_classes = pick(model.categories(cfg)[1], (OBJECTS,))
        if cfg.MODEL.MASK_ON:
            x0, y0, x1, y1 = boxes.T
            corners = torch.stack([x0, y0, x1, y0, x1, y1, x0, y1], 1)
            objects.gt_masks = PolygonMasks([[polygon.numpy()] for polygon in corners])
        if cfg.MODEL.KEYPOINT_ON:
            points = torch.rand(OBJECTS, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, 2, generator=random)
            points = boxes[:, None, :2] + points * (boxes[:, None, 2:] - boxes[:, None, :2])
            objects.gt_keypoints = Keypoints(
                torch.cat([points, torch.full((*points.shape[:2], 1), 2.0)], 2)
            )
        found.append({"image": pick(256, (3, *size)).to(torch.uint8), "instances": objects})
    return found
