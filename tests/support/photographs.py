"""Openly licensed photographs that scikit-learn and matplotlib ship, annotated by hand in photographs.json.

Each is written as cameras and tools leave them: turned by EXIF, grey, CMYK, of odd sizes.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

CLASSES = ("building", "flower", "person", "tree")
SOURCES: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())
TURNED = 6
"""EXIF: to be turned by 90 degrees clockwise."""
VARIANTS = {
    "plain": (0.5, "RGB"),
    "turned": (0.45, "RGB"),
    "grey": (0.37, "L"),
    "cmyk": (0.41, "CMYK"),
}
"""Scale, and Pillow's mode."""


def photograph(name: str) -> Path:
    """The file in its package."""
    package, _, rest = SOURCES[name]["from"].partition("/")
    spec = find_spec(package)
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / rest


def write(folder: Path) -> None:
    """Write 12 images to ``train/``, 3 to ``val/``, and beside them ``train.json`` and ``val.json``."""
    for part, variants in (("train", VARIANTS), ("val", {"small": (0.33, "RGB")})):
        images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
        (folder / part).mkdir(parents=True)
        for source in SOURCES:
            for variant, (scale, mode) in variants.items():
                file = f"{Path(source).stem}_{variant}.jpg"
                size = _save(photograph(source), folder / part / file, scale, mode, variant == "turned")
                number = len(images) + 1
                images.append({"id": number, "file_name": file, "width": size[0], "height": size[1]})
                for each in SOURCES[source]["objects"]:
                    row = _annotation(each, SOURCES[source]["size"], size)
                    annotations.append({"id": len(annotations) + 1, "image_id": number, **row})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)],
        }
        (folder / f"{part}.json").write_text(json.dumps(content))


def named(folder: Path) -> list[str]:
    """The words by which a command is told of them."""
    parts = ("train", "val")
    pairs = [(f"--{part}", f"{part}.json", f"--{part}-images", part) for part in parts]
    return [
        word for a, file, b, images in pairs for word in (a, str(folder / file), b, str(folder / images))
    ]


def _save(source: Path, target: Path, scale: float, mode: str, turned: bool) -> tuple[int, int]:
    """Write a variant; returns the width and height of what is to be seen."""
    with Image.open(source) as image:
        seen = image.convert(mode).resize((round(image.width * scale), round(image.height * scale)))
    exif = Image.Exif()
    if turned:
        exif[0x0112] = TURNED
    (seen.transpose(Image.Transpose.ROTATE_90) if turned else seen).save(target, quality=90, exif=exif)
    return seen.size


def _annotation(shape: dict[str, Any], size: list[int], scaled: tuple[int, int]) -> dict[str, Any]:
    polygon = [v * scaled[i % 2] / size[i % 2] for i, v in enumerate(shape["polygon"])]
    xs, ys = polygon[::2], polygon[1::2]
    return {
        "category_id": CLASSES.index(shape["class"]) + 1,
        "segmentation": [polygon],
        "bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)],
        "iscrowd": 0,
    }
