"""One data set as the tools that people annotate with export it."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

Parts = Mapping[str, tuple[Path, Mapping[str, Any]]]
"""Folder of the images and content in COCO's format, of ``train`` and ``val``."""


def parts_of(folder: Path) -> Parts:
    """The parts of a folder in COCO 2017's layout."""
    return {
        part: (
            folder / f"{part}2017",
            json.loads((folder / "annotations" / f"instances_{part}2017.json").read_text()),
        )
        for part in ("train", "val")
    }


def _roboflow(parts: Parts, folder: Path) -> None:
    """Classes have a class 0 above them, which annotates nothing."""
    for part, (images, content) in parts.items():
        inner = folder / {"train": "train", "val": "valid"}[part]
        shutil.copytree(images, inner)
        own = [{**each, "supercategory": "things"} for each in content["categories"]]
        above = {"id": 0, "name": "things", "supercategory": "none"}
        text = json.dumps({**content, "categories": [above, *own]})
        (inner / "_annotations.coco.json").write_text(text)


def _cvat(parts: Parts, folder: Path) -> None:
    (folder / "annotations").mkdir(parents=True)
    for part, (images, content) in parts.items():
        name = {"train": "Train", "val": "Validation"}[part]
        shutil.copytree(images, folder / "images" / name)
        (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))


def _label_studio(parts: Parts, folder: Path) -> None:
    """One part, ids from 0 on, and file names as Windows writes them."""
    images, content = parts["train"]
    shutil.copytree(images, folder / "images")
    named = [{**each, "file_name": f"images\\{each['file_name']}"} for each in content["images"]]
    rows = [{**each, "id": i, "ignore": 0} for i, each in enumerate(content["annotations"])]
    (folder / "result.json").write_text(json.dumps({**content, "images": named, "annotations": rows}))


def _yolo(parts: Parts, folder: Path) -> None:
    names: dict[int, str] = {}
    for part, (images, content) in parts.items():
        shutil.copytree(images, folder / "images" / part)
        (folder / "labels" / part).mkdir(parents=True)
        places = {each["id"]: i for i, each in enumerate(content["categories"])}
        names = {places[each["id"]]: each["name"] for each in content["categories"]}
        for image in content["images"]:
            sides = [image["width"], image["height"]]
            rows = [
                " ".join(
                    [str(places[each["category_id"]])]
                    + [repr(value / sides[i % 2]) for i, value in enumerate(each["segmentation"][0])]
                )
                for each in content["annotations"]
                if each["image_id"] == image["id"]
            ]
            if rows:
                label = folder / "labels" / part / f"{Path(image['file_name']).stem}.txt"
                label.write_text("\n".join(rows) + "\n")
    text = yaml.safe_dump({"path": ".", "train": "images/train", "val": "images/val", "names": names})
    (folder / "data.yaml").write_text(text)


EXPORTS: dict[str, Callable[[Parts, Path], None]] = {
    "Roboflow COCO": _roboflow,
    "CVAT COCO": _cvat,
    "Label Studio COCO": _label_studio,
    "YOLO segmentation": _yolo,
}
"""By the names of the layouts."""
