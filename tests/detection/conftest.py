"""The drawn validation images in other data sets' layouts, and a small model that detects something."""

import json
import shutil
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
import torch
import yaml
from PIL import Image

from benchmarks.detection import model
from tests.conftest import KIT, placed
from triplet import cli, paths, records
from triplet.models.networks import Networks
from triplet.training import checkpoint

from detectron2.data.datasets.pascal_voc import CLASS_NAMES

DEMO = KIT / "configs" / "detection" / "demo.yaml"
EYES = [0, 0.5, 1] * 6  # where in its box each of 17 keypoints lies


def command(drawn, *overrides, stage="finetune"):
    """The words of a stage of that run, on a data set."""
    return [stage, "--run", "method", "--config", str(DEMO), "--data", str(drawn), *overrides]


@pytest.fixture(scope="session")
def truth(drawn):
    """Annotations of val2017."""
    return json.loads((drawn / "annotations" / "instances_val2017.json").read_text())


@pytest.fixture(scope="session")
def voc(drawn, truth, tmp_path_factory):
    """VOC 2007 (test, trainval) and 2012 (trainval), the drawn categories under VOC's first names."""
    folder = tmp_path_factory.mktemp("voc")
    for year, splits in (("2007", ("test", "trainval")), ("2012", ("trainval",))):
        root = folder / "VOCdevkit" / f"VOC{year}"
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / name).mkdir(parents=True)
        for image in truth["images"]:
            number = f"{image['id']:06d}"
            with Image.open(drawn / "val2017" / image["file_name"]) as picture:
                picture.save(root / "JPEGImages" / f"{number}.jpg", quality=95)
            objects = "".join(
                f"<object><name>{escape(CLASS_NAMES[a['category_id'] - 1])}</name><pose>Unspecified</pose>"
                "<truncated>0</truncated><difficult>0</difficult><bndbox>"
                f"<xmin>{x + 1:.0f}</xmin><ymin>{y + 1:.0f}</ymin><xmax>{x + w:.0f}</xmax>"
                f"<ymax>{y + h:.0f}</ymax></bndbox></object>"
                for a in truth["annotations"]
                if a["image_id"] == image["id"]
                for x, y, w, h in [a["bbox"]]
            )
            size = "<size><width>128</width><height>128</height><depth>3</depth></size>"
            (root / "Annotations" / f"{number}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        for split in splits:
            names = "".join(f"{image['id']:06d}\n" for image in truth["images"])
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text(names)
    return folder


@pytest.fixture(scope="session")
def keypoints(drawn, truth, tmp_path_factory):
    """COCO's keypoints: every drawn object is a person."""
    folder = tmp_path_factory.mktemp("keypoints")
    (folder / "annotations").mkdir()
    people = []
    for each in truth["annotations"]:
        x, y, w, h = each["bbox"]
        points = [v for i in range(17) for v in (x + w * EYES[i], y + h * i / 16, 2)]
        people.append({**each, "category_id": 1, "keypoints": points, "num_keypoints": 17})
    person = {"id": 1, "name": "person", "keypoints": [str(i) for i in range(17)], "skeleton": []}
    content = json.dumps({**truth, "annotations": people, "categories": [person]})
    for split in ("train2017", "val2017"):
        (folder / split).symlink_to(drawn / "val2017")
        (folder / "annotations" / f"person_keypoints_{split}.json").write_text(content)
    return folder


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """The places of a run whose drawn weights are converted; not to be changed."""
    folder = tmp_path_factory.mktemp("converted")
    torch.manual_seed(0)
    checkpoint.save(folder / "c.pth", Networks(50, 8, 8, 8), None, 0, 0)
    with placed(folder):
        arguments = ["--run", "method", "--config", str(DEMO), "--weights", str(folder / "c.pth")]
        assert cli.main(["convert", *arguments]) == 0
    return folder


@pytest.fixture
def run(places, converted):
    """The places of a run whose weights are converted."""
    shutil.copytree(converted / "checkpoints", places / "checkpoints")
    return places


@pytest.fixture
def untrained(tmp_path):
    """Makes a config of the demo's with changes, and a file of its random model; these detect something."""

    def make(**changes):
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump({"_BASE_": str(DEMO), **changes}))
        torch.manual_seed(0)
        weights = tmp_path / "model.pth"
        torch.save({"model": model.build(model.load_config(config)).state_dict()}, weights)
        return ["--model", str(weights), "--config", str(config)]

    return make


@pytest.fixture
def finished(places, untrained):
    """Makes a run whose finetuning is done: that of a random model on a data set, with classes of these
    names and ids."""

    def make(run, dataset, classes, ids, test=(), **changes):
        weights, config = (Path(each) for each in untrained(**changes)[1::2])

        def work(job):
            job.outputs.update(model=job.folder / "model.pth", config=job.folder / "config.yaml")
            (job.folder / "model.pth").write_bytes(weights.read_bytes())
            (job.folder / "config.yaml").write_text(model.load_config(config).dump())
            job.results.update(classes=list(classes), category_ids=list(ids))

        folder = paths.stage_folder(run, "finetune")
        settings = {"dataset": paths.portable(dataset), "detectron2": {"DATASETS": {"TEST": [*test]}}}
        records.perform("finetune", folder, config=settings, inputs={}, work=work, seed=5)

    return make
