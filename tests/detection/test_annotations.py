"""From annotations as people have them to Detectron2, both engines, and what the user is told."""

import io
import json
import random
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as masks

from benchmarks.detection import data, evaluate, loading, model
from benchmarks.detection.evaluate import VocEvaluator
from tests.annotations.mutations import mutate_json
from tests.detection.conftest import DEMO
from triplet import cli, paths, scores
from triplet.errors import KitError
from triplet.training.distributed import Processes

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, load_voc_instances
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import PascalVOCDetectionEvaluator, pascal_voc_evaluation
from detectron2.structures import Boxes, Instances

ALONE = Processes(0, 1, torch.device("cpu"))
PARSE = pascal_voc_evaluation.parse_rec
"""Detectron2's own reader of annotations, which an evaluation of the kit's replaces."""
VOC = ("DATASETS.TEST=('voc_2007_test',)", "MODEL.ROI_HEADS.NUM_CLASSES=20")


@pytest.fixture
def mine(drawn, tmp_path):
    """A copy of the drawn data set that may be changed."""
    return Path(shutil.copytree(drawn, tmp_path / "mine"))


def change(folder, spoil, split="val2017"):
    path = folder / "annotations" / f"instances_{split}.json"
    table = json.loads(path.read_text())
    spoil(table)
    path.write_text(json.dumps(table))


def config(*overrides):
    return model.load_config(DEMO, overrides)


def perfect(truth):
    """Detections that are the annotations."""
    return [
        {**{key: each[key] for key in ("image_id", "category_id", "bbox", "segmentation")}, "score": 0.9}
        for each in truth["annotations"]
    ]


def count_from_zero(table):
    for number, each in enumerate(table["annotations"]):
        each["id"] = number


def test_ids_from_zero_count_in_every_engine(mine):
    """COCO's own takes an annotation with the id 0 for none, and finds 62.6 where all is right."""
    change(mine, count_from_zero)
    file = MetadataCatalog.get(data.testing(config(), mine)[0]).json_file
    detections = perfect(json.loads(Path(file).read_text()))
    for each in detections:  # in the form of detections
        each.pop("segmentation")
    found = [
        scores.CocoGroundTruth(Path(file), engine).score(detections, "bbox") for engine in scores.ENGINES
    ]
    assert [each.numbers["AP"] for each in found] == [pytest.approx(100)] * len(scores.ENGINES)


def rename(table):
    for image in table["images"]:
        image["id"] = f"img{image['id']}"
    for each in table["annotations"]:
        each["image_id"] = f"img{each['image_id']}"


def test_detections_carry_the_ids_of_the_users_file(mine):
    change(mine, rename)
    name, _ = data.testing(config(), mine)
    assert {image["image_id"] for image in DatasetCatalog.get(name)} == set(range(1, 7))
    metadata = MetadataCatalog.get(name)
    found = [{"image_id": 2, "category_id": 3, "score": 0.5}]
    assert evaluate._own_ids(found, metadata.image_ids, metadata.category_ids) == [
        {"image_id": "img2", "category_id": 3, "score": 0.5}
    ]
    assert evaluate._own_ids(found, {}, {}) == found


def test_a_file_as_it_should_be_is_read_by_detectron2_itself(drawn):
    name, _ = data.testing(config(), drawn)
    file = drawn / "annotations" / "instances_val2017.json"
    assert MetadataCatalog.get(name).json_file == str(file)
    assert DatasetCatalog.get(name) == load_coco_json(str(file), str(drawn / "val2017"), name)


def test_other_encodings_and_folders_reach_detectron2(mine, drawn):
    (mine / "val2017" / "a").mkdir()
    for path in list((mine / "val2017").glob("*.png")):
        path.rename(path.parent / "a" / path.name)
    change(mine, lambda t: [image.update(file_name=f"a/{image['file_name']}") for image in t["images"]])
    path = mine / "annotations" / "instances_val2017.json"
    path.write_bytes(path.read_text().encode("utf-16"))
    name, _ = data.testing(config(), mine)
    data.check_images([name], ALONE)
    own, plain = DatasetCatalog.get(name), DatasetCatalog.get(data.testing(config(), drawn)[0])
    assert [image["annotations"] for image in own] == [image["annotations"] for image in plain]
    assert all(Path(image["file_name"]).parent == mine / "val2017" / "a" for image in own)


def test_what_is_accepted_is_read_by_detectron2_and_every_engine(mine):
    """Of 40 mutations."""
    base = json.loads((mine / "annotations" / "instances_val2017.json").read_text())
    mask = masks.encode(np.zeros((128, 128), dtype=np.uint8, order="F"))
    empty = {**mask, "counts": mask["counts"].decode()}
    cfg, taken = config("INPUT.MIN_SIZE_TRAIN=(64,)"), 0
    shutil.copytree(mine / "val2017", mine / "train2017", dirs_exist_ok=True)
    for seed in range(40):
        for split in ("train2017", "val2017"):
            path = mine / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps(mutate_json(base, random.Random(seed))))
        try:
            trained, tested = data.training(cfg, mine)[0], data.testing(cfg, mine)[0]
        except KitError:
            continue
        taken += 1
        own = cfg.clone()
        own.DATASETS.TRAIN = trained
        loading._read.cache_clear()
        mapped = [loading.SafeMapper(own, train=True)(image) for image in loading._annotated(own)[0]]
        assert not [image for image in mapped if isinstance(image, KitError)], seed
        file = Path(MetadataCatalog.get(tested).json_file)
        detections = perfect(json.loads(file.read_text()))
        for each in detections:
            each["segmentation"] = empty
        with redirect_stdout(io.StringIO()):
            truths = [scores.CocoGroundTruth(file, engine) for engine in scores.ENGINES]
            one, *others = ([t.score(detections, task) for task in scores.TASKS] for t in truths)
        assert all(other == one for other in others), seed
    assert taken > 3


SPOILT = {
    "or its annotations cannot be read (OSError": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "or its annotations cannot be read (Unidentified": lambda path: path.write_text("none"),
    "has 9 x 8 pixels, its annotations say 128 x 128": lambda path: Image.new("RGB", (9, 8)).save(path),
    "has pixels of mode F (32 bits), expected": lambda path: Image.new("F", (128, 128)).save(path, "TIFF"),
}


def test_evaluation_looks_at_all_images_first(places, mine, untrained, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "_detect", lambda *_: pytest.fail("inference has begun"))
    image, given = max((mine / "val2017").iterdir()), untrained()
    whole = image.read_bytes()
    for number, (message, spoil) in enumerate(SPOILT.items()):
        image.write_bytes(whole)
        spoil(image)
        assert cli.main(["eval", "--run", f"row{number}", *given, "--data", str(mine)]) == 2
        error = capsys.readouterr().err
        assert f"{image} {message}" in error
        assert error.count("\n") == 1
        assert not (paths.stage_folder(f"row{number}", "eval") / "record.json").exists()


def test_an_image_spoilt_later_ends_inference_in_one_line(places, mine, untrained, capsys, monkeypatch):
    def spoil(*_):
        image.write_bytes(image.read_bytes()[:300])

    image = max((mine / "val2017").iterdir())
    monkeypatch.setattr(data, "check_images", spoil)
    assert cli.main(["eval", "--run", "method", *untrained(), "--data", str(mine)]) == 2
    error = capsys.readouterr().err
    assert f"{image} or its annotations cannot be read (" in error
    assert error.count("\n") == 1


def test_sixteen_bits_are_scaled_to_eight_and_said(mine, capsys):
    """Pillow would clip all values above 255 to white."""
    gray = {}
    for path in sorted((mine / "val2017").iterdir()):
        gray[path] = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(gray[path].astype(np.uint16) * 257).save(path)
    name, _ = data.testing(config(), mine)
    data.check_images([name], ALONE)
    said = capsys.readouterr().out
    assert "000000000001.png has pixels of 16 bits (mode I;16), scaled to 8 (and 5 more)\n" in said
    for path, pixels in gray.items():
        assert np.array_equal(read_image(str(path), "BGR"), np.repeat(pixels[..., None], 3, 2))


def test_data_without_enough_keypoints_is_refused(keypoints):
    cfg = config(
        "DATASETS.TRAIN=('keypoints_coco_2017_train',)",
        "MODEL.KEYPOINT_ON=True",
        "MODEL.ROI_HEADS.NUM_CLASSES=1",
        "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE=1000",
    )
    cfg.DATASETS.TRAIN = data.training(cfg, keypoints)[0]
    with pytest.raises(KitError, match=r"No valid data found in .*: no image is left to train on"):
        loading.data_size(cfg)


def test_masks_of_voc_are_refused(voc):
    more = ("DATASETS.TRAIN=('voc_2007_trainval',)", "MODEL.ROI_HEADS.NUM_CLASSES=20")
    cfg = config(*more)
    cfg.DATASETS.TRAIN = data.training(cfg, voc)[0]
    with pytest.raises(KitError, match=r"voc_2007_trainval has boxes alone; add MODEL\.MASK_ON=False"):
        loading.data_size(cfg)
    cfg.MODEL.MASK_ON = False
    assert loading.data_size(cfg) == 6


def test_voc_is_read_as_by_detectron2(voc):
    root = voc / "VOCdevkit" / "VOC2007"
    name, _ = data.testing(config(*VOC), voc)
    assert DatasetCatalog.get(name) == load_voc_instances(str(root), "test", CLASS_NAMES)


def detect(evaluator, images, shift=0.0):
    """Every annotated object, and one that is none."""
    evaluator.reset()
    for image in images:
        boxes = torch.tensor([each["bbox"] for each in image["annotations"]] + [[1.0, 1, 9, 9]]) + shift
        found = Instances((image["height"], image["width"]))
        found.pred_boxes = Boxes(boxes)
        found.scores = torch.linspace(0.9, 0.5, len(boxes))
        found.pred_classes = torch.tensor([each["category_id"] for each in image["annotations"]] + [0])
        evaluator.process([image], [{"instances": found}])
    return evaluator.evaluate()["bbox"]


@pytest.mark.parametrize("difficult", [0, 1])
def test_voc_scores_equal_detectron2s(voc, tmp_path, monkeypatch, difficult):
    """Whether every second object is difficult or none."""
    copy = Path(shutil.copytree(voc, tmp_path / "copy"))
    for path in (copy / "VOCdevkit" / "VOC2007" / "Annotations").iterdir():
        first, *more = path.read_text().split("<difficult>0<")
        marks = [f"<difficult>{difficult * (i % 2 == 0)}<" for i in range(len(more))]
        path.write_text(first + "".join(map("".join, zip(marks, more, strict=True))))
    name, _ = data.testing(config(*VOC), copy)
    images = DatasetCatalog.get(name)
    monkeypatch.setattr(pascal_voc_evaluation, "parse_rec", PARSE)
    theirs = detect(PascalVOCDetectionEvaluator(name), images, shift=2.0)
    assert 0 < theirs["AP"] < 100
    ours = detect(VocEvaluator(name), images, shift=2.0)
    assert {k: v for k, v in ours.items() if v == v} == {k: v for k, v in theirs.items() if v == v}


def test_voc_needs_no_mark_of_difficulty_and_takes_decimals(voc, tmp_path):
    copy = Path(shutil.copytree(voc, tmp_path / "copy"))
    for path in (copy / "VOCdevkit" / "VOC2007" / "Annotations").iterdir():
        text = (
            path.read_text().replace("<difficult>0</difficult>", "").replace("<truncated>0</truncated>", "")
        )
        path.write_text(text.replace("</xmin>", ".25</xmin>").replace("<pose>Unspecified</pose>", ""))
    name, _ = data.testing(config(*VOC), copy)
    again = detect(VocEvaluator(name), DatasetCatalog.get(name))
    assert again["AP50"] > 0
