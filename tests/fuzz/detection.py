"""Annotations in COCO's and VOC's formats, and logs of Detectron2's."""

import json
import os
import shutil
from pathlib import Path
from random import Random

import yaml

from tests.fuzz import mutate
from tests.fuzz.child import command
from triplet.paths import CONFIGS


def annotated(folder: Path) -> None:
    from tests.conftest import TINY
    from triplet.pull.synthetic import draw_dataset

    draw_dataset(folder / "tiny", TINY)


def coco(folder: Path, scratch: Path, random: Random) -> object:
    from benchmarks.detection import data, model

    honest = folder / "tiny"
    for name in ("train2017", "val2017"):
        (scratch / name).symlink_to(honest / name)
    (scratch / "annotations").mkdir()
    for path in (honest / "annotations").iterdir():
        values = json.loads(path.read_text())
        if random.random() < 0.1:
            key = random.choice(list(values))
            values[key] = mutate.tree(random, values[key])
        else:  # most are of single annotations, images and categories
            key = random.choice(["annotations", "annotations", "images", "categories"])
            number = random.randrange(len(values[key]))
            values[key][number] = mutate.tree(random, values[key][number])
        (scratch / "annotations" / path.name).write_bytes(mutate.as_json(random, values))
    cfg = model.load_config(CONFIGS / "detection" / "demo.yaml")
    from detectron2.data import DatasetCatalog

    name, _ = random.choice([data.testing, lambda *a: (data.training(*a)[0][0], 0)])(cfg, scratch)
    return len(DatasetCatalog.get(name))


def exported(folder: Path) -> None:
    """The same data as each tool exports it."""
    from tests.support.own_data import EXPORTS, parts_of

    annotated(folder)
    for name, export in EXPORTS.items():
        export(parts_of(folder / "tiny"), folder / "exported" / name)


def own_data(folder: Path, scratch: Path, random: Random) -> object:
    """A layout of which one file is changed: of annotations, of YOLO's classes, or of an image's labels."""
    from triplet.datasets.source import DataSource, read

    honest = random.choice(sorted((folder / "exported").iterdir()))
    changed = scratch / "mine"
    shutil.copytree(honest, changed)
    path = random.choice(sorted({each.suffix: each for each in changed.rglob("*.*")}.items()))[1]
    path = random.choice(sorted(changed.rglob(f"*{path.suffix}")))
    if path.suffix == ".json":
        values = json.loads(path.read_text())
        key = random.choice(["annotations", "images", "categories"])
        number = random.randrange(len(values[key]))
        values[key][number] = mutate.tree(random, values[key][number])
        path.write_bytes(
            mutate.as_json(random, values if random.random() < 0.8 else mutate.tree(random, values))
        )
    elif path.suffix == ".yaml":
        path.write_bytes(mutate.as_yaml(random, mutate.tree(random, yaml.safe_load(path.read_text()))))
    elif random.random() < 0.2:  # what tools and disks leave where a file was
        path.unlink()
        random.choice([os.mkfifo, Path.mkdir, lambda each: each.symlink_to("nowhere")])(path)
    else:
        path.write_bytes(mutate.data(random, path.read_bytes()))
    return read(DataSource(changed, val_share=random.choice([0.0, 0.2]))).texts


OBJECT = (
    "<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax>"
    "<ymax>40</ymax></bndbox></object>"
)
XML = (
    f"<annotation><size><width>128</width><height>128</height><depth>3</depth></size>{OBJECT}</annotation>"
)
ENTITIES = (
    '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;&c;&c;">]>'
)


def voc(folder: Path, scratch: Path, random: Random) -> object:
    from PIL import Image

    from benchmarks.detection import data, model

    root = scratch / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for number in ("000001", "000002"):
        Image.new("RGB", (128, 128)).save(root / "JPEGImages" / f"{number}.jpg")
    (root / "Annotations" / "000002.xml").write_text(XML)
    for name in ("test", "trainval"):
        names = b"000001\n000002\n"
        (root / "ImageSets" / "Main" / f"{name}.txt").write_bytes(
            mutate.data(random, names) if random.random() < 0.1 else names
        )
    text = XML
    for _ in range(random.randint(1, 3)):
        old = random.choice(
            ["<difficult>0</difficult>", "128", "cat", ">1<", ">30<", "<bndbox>", "</object>", OBJECT]
        )
        new = random.choice(
            ["", "-5", "1.5", "nan", "9" * 5000, "x", "<a/>", ">inf<", OBJECT * 100, "<b>" * 100_000]
        )
        text = text.replace(old, new, 100)  # else three changes multiply to gigabytes
    text = ENTITIES + text.replace("cat", "&d;") if random.random() < 0.1 else text
    content = mutate.data(random, text.encode()) if random.random() < 0.2 else text.encode()
    (root / "Annotations" / "000001.xml").write_bytes(content)
    cfg = model.load_config(CONFIGS / "detection" / "voc_r50_c4_24k_moco.yaml")
    cfg.DATASETS.TRAIN = ("voc_2007_trainval",)
    return random.choice([data.testing, data.training])(cfg, scratch)


LOG = "\n".join(
    [
        "[06/12 10:00:00] detectron2 INFO: Running with full config:",
        "SETTINGS",
        "[06/12 10:00:01 d2.utils.events]: World size: 8",
        *(
            f"[06/12 10:00:0{i} d2.utils.events]:  eta: 1:00:00  iter: {20 * i + 19}  loss: 2  lr: 0.0{i}"
            for i in range(9)
        ),
        '{"iteration": 199, "lr": 0.02, "total_loss": 1.5}',
        "backbone.res2.0.conv1.norm.{bias, weight} not found in the checkpoint:",
    ]
)
REPEATED = (
    "iter: 1 ",
    "Running with full config:\n",
    "not found in the checkpoint:\n",
    "backbone{",
    "\x1b[",
    "lr: ",
    "\n",
)


def settings() -> str:
    """A whole config as Detectron2 logs it."""
    from benchmarks.detection import model

    return str(model.load_config(CONFIGS / "detection" / "coco_r50_c4_2x_moco.yaml").dump())


def explain(folder: Path, scratch: Path, random: Random) -> object:
    log = scratch / "log.txt"
    text = LOG.replace("SETTINGS", settings())
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(text) + 1)
        piece = random.choice([*REPEATED, "nan", "9" * 5000, "-1", '{"iteration": 1e999, "lr": null}\n'])
        text = (
            text[:place] + piece * random.choice([1, 1, 1, 50_000]) + text[place + random.randrange(30) :]
        )
    content = text.encode()
    log.write_bytes(mutate.data(random, content) if random.random() < 0.3 else content)
    scores = ["25.1", "22.3"]
    if random.random() < 0.2:
        scores = [random.choice(["25.1", "0.25", "nan", "-1", "1e309", "x", "101"]) for _ in range(2)]
    return command("explain", "--result", *scores, "--log", str(log))
