"""The engines that compute COCO's numbers: names alone, which import none of them."""

ENGINES = {
    "hotcoco": ("hotcoco", "hotcoco"),
    "ultrafast": ("ultrafast_pycocotools.coco", "ultrafast_pycocotools.cocoeval"),
    "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval"),
}
"""Engine -> modules of its COCO and COCOeval: two fast engines, and COCO's own."""
FASTEST = "hotcoco"
