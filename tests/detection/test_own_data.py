"""People's own data become the classes, the parts and the record of a finetuning."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as masks

from benchmarks.detection import data, loading, model, own_data
from tests.conftest import KIT
from tests.detection.conftest import DEMO
from tests.support import blocks, photographs
from tests.support.own_data import EXPORTS, parts_of
from triplet import cli, paths, records
from triplet.datasets.source import DataSource
from triplet.errors import KitError
from triplet.models.networks import Networks
from triplet.training import checkpoint
from triplet.training.distributed import Processes

from detectron2.data import DatasetCatalog

ALONE = Processes(0, 1, torch.device("cpu"))
SHORT = ["SOLVER.MAX_ITER=2", "SOLVER.STEPS=(1,)", "TEST.PRECISE_BN.NUM_ITER=1"]


@pytest.fixture(scope="module")
def exported(drawn, tmp_path_factory):
    """The drawn data set in a YOLO layout, and as one JSON of Label Studio's; not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    for name in ("YOLO segmentation", "Label Studio COCO"):
        EXPORTS[name](parts_of(drawn), folder / name.split()[0])
    return folder


def config(*overrides):
    return model.load_config(DEMO, overrides)


def test_a_folder_in_cocos_layout_is_used_where_it_is(drawn, places):
    assert own_data.place("method", DataSource(drawn), ALONE) == drawn
    assert not paths.stage_folder("method", "data").exists()


def test_a_layout_is_written_into_the_run_and_registered(exported, places, capsys):
    folder = own_data.place("method", DataSource(exported / "YOLO"), ALONE)
    assert capsys.readouterr().out.splitlines()[:3] == [
        "data: reading train: 12/12, 0 s left",
        "data: reading val: 6/6, 0 s left",
        "data: YOLO segmentation: 12 train, 6 val images, 6 classes",
    ]
    record = records.require("method", "data")
    assert record.results["classes"][0] == "striped disc"
    assert record.config["parts"]["val"]["source"] == str(exported / "YOLO" / "data.yaml")
    names, classes = data.training(config(), folder)
    assert classes == record.results["classes"]
    assert data.category_ids(names[0]) == [0, 1, 2, 3, 4, 5]
    assert data.testing(config(), folder)[1] == classes
    assert len(DatasetCatalog.get(names[0])) == 12
    assert data.inputs(config(), folder, train=True) == {
        "annotations": folder / "instances_train.json",
        "images": exported / "YOLO" / "images" / "train",
    }
    with pytest.raises(
        KitError, match="own data has instances alone, the config's DATASETS names 'voc_2007"
    ):
        data.training(config("DATASETS.TRAIN=('voc_2007_trainval',)"), folder)


def test_a_split_stays_and_other_data_are_refused_later(exported, places):
    source = DataSource(exported / "Label", val_share=0.25, split_seed=3)
    folder = own_data.place("method", source, ALONE)
    held_out = (folder / "instances_val.json").read_bytes()
    assert records.require("method", "data").config["split_seed"] == 3
    # Before a finetuning another seed replaces it; afterwards only FORCE=1 does.
    own_data.place("method", DataSource(exported / "Label", val_share=0.25, split_seed=4), ALONE)
    assert (folder / "instances_val.json").read_bytes() != held_out
    own_data.place("method", source, ALONE)
    assert (folder / "instances_val.json").read_bytes() == held_out
    records.perform(
        "finetune", paths.stage_folder("method", "finetune"), config={}, inputs={}, work=lambda _: None
    )
    for other in (
        DataSource(exported / "YOLO"),
        DataSource(exported / "Label", val_share=0.5, split_seed=3),
    ):
        with pytest.raises(KitError, match=r"method/data holds a data of something else .*; add --force"):
            own_data.place("method", other, ALONE)
    assert own_data.place("method", source, ALONE) == folder
    assert (folder / "instances_val.json").read_bytes() == held_out
    assert own_data.place("method", DataSource(folder), ALONE) == folder  # as what it is by now
    assert records.require("method", "data").results["images"] == {"train": 9, "val": 3}
    (folder / "own_data.json").unlink()
    own_data.place("method", source, ALONE)
    assert (folder / "own_data.json").exists()
    for name in ("YOLO", "Label"):  # of an evaluation, which replaces its own
        own_data.place("method", DataSource(exported / name), ALONE, stage="eval-data")
    own_data.place("method", DataSource(exported / "YOLO"), ALONE, force=True)
    assert records.require("method", "data").results["images"] == {"train": 12, "val": 6}


def test_other_data_than_cocos_need_a_length(converted, places, drawn, tmp_path, capsys):
    shutil.copytree(converted / "checkpoints", places / "checkpoints")
    config = tmp_path / "coco.yaml"
    config.write_text(f"_BASE_: {DEMO}\nMODEL: {{ROI_HEADS: {{NUM_CLASSES: 80}}}}\n")
    asked = ["finetune", "--run", "method", "--config", str(config), "--data", str(drawn)]
    assert cli.main(asked) == 2
    said = capsys.readouterr().err
    assert "400 iterations are meant for 117266 images and would be 133 passes over these 12" in said
    assert "add --schedule 1/8x, or --hours H; " in said
    assert said.endswith("takes: triplet plan --data FOLDER --schedule 1/8x\n")
    assert not (paths.stage_folder("method", "finetune") / "started.json").exists()
    assert cli.main([*asked, *SHORT]) == 0  # a length, too
    record = records.require("method", "finetune")
    named = torch.load(records.output(record, "model"))  # where it is copied to, its classes go along
    assert {key: named[key] for key in ("classes", "category_ids")} == {
        key: record.results[key] for key in ("classes", "category_ids")
    }


@pytest.mark.parametrize(
    ("part", "said"),
    [("labels", "has no segmentation; give it one, or train on boxes alone"), ("images", "cannot be read")],
)
def test_the_val_part_is_checked_before_the_training(exported, converted, places, capsys, part, said):
    """Not after it, at the evaluation: its masks and its pixels."""
    shutil.copytree(converted / "checkpoints", places / "checkpoints")
    mine = shutil.copytree(exported / "YOLO", places / "mine")
    path = sorted((mine / part / "val").iterdir())[0]
    path.write_bytes(b"0 0.5 0.5 0.5 0.5\n" if part == "labels" else path.read_bytes()[:-400])
    named = ["--data", str(mine), "--config", str(DEMO)]
    commands = [["finetune", "--run", "method", *named, *SHORT]]
    # A plan looks at the annotations alone.
    commands += [["plan", *named, "--schedule", "1/2"]] if part == "labels" else []
    for command in commands:
        assert cli.main(command) == 2
        assert said in capsys.readouterr().err
    assert not (paths.stage_folder("method", "finetune") / "log.txt").exists()


def test_a_plan_counts_the_users_images(exported, places, capsys):
    asked = ["plan", "--data", str(exported / "YOLO")]
    assert cli.main(asked) == 2
    assert "180000 iterations are meant for 117266 images" in capsys.readouterr().err
    assert cli.main([*asked, "--schedule", "1/8x", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["iterations"], found["expected"]) == (11_250, None)
    assert found["hours"] > 10  # of V100s, as published for this detector
    assert "15000.00 epochs of 12 images" in found["facts"]["schedule"]
    wanted = f"triplet finetune --run triplet --data {exported / 'YOLO'}"
    assert found["next"] == f"{wanted} --schedule 1/8x"
    split = ["--val-share", "0", "--split-seed", "3"]
    assert cli.main([*asked, *split, "--schedule", "1/8x", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["next"] == f"{wanted} {' '.join(split)} --schedule 1/8x"
    assert not (places / "checkpoints").exists()
    assert cli.main(["plan", "--data", "nowhere"]) == 2
    assert "nothing at " in capsys.readouterr().err


def test_without_a_val_part_there_is_nothing_to_evaluate(exported, places):
    folder = own_data.place("method", DataSource(exported / "Label"), ALONE)
    assert len(data.training(config(), folder)[1]) == 6
    with pytest.raises(KitError, match="has no val part, it has train; name the files of one by --val and"):
        data.testing(config(), folder)
    # For an evaluation, all of a part that stands alone is what is evaluated on.
    folder = own_data.place("method", DataSource(exported / "Label"), ALONE, stage="eval-data")
    assert len(DatasetCatalog.get(data.testing(config(), folder)[0])) == 12


def test_an_evaluation_takes_the_order_of_the_models_classes(exported, places, finished):
    """Its data get a folder of their own, beside those of the finetuning."""
    _, classes = data.training(config(), own_data.place("other", DataSource(exported / "YOLO"), ALONE))
    backward = classes[::-1]
    finished("method", exported / "YOLO", backward, range(6))
    assert cli.main(["eval", "--run", "method"]) == 0
    assert records.require("method", "eval-data").results["classes"] == backward
    assert not paths.stage_folder("method", "data").exists()
    record = records.require("method", "eval")
    assert record.results["images"] == 6
    folder = paths.stage_folder("method", "eval-data")
    assert record.config == {"dataset": paths.portable(folder)}
    assert list(record.results["categories"]["bbox"]) == backward


def test_the_data_of_the_finetuning_named_again_are_its_val_part(
    exported, places, finished, monkeypatch, capsys
):
    """Not all images of a part that the kit has split, on most of which the model was trained."""
    mine = shutil.copytree(exported / "Label", places / "mine")
    folder = own_data.place("method", DataSource(mine, val_share=0.25), ALONE)
    finished("method", folder, records.require("method", "data").results["classes"], range(6))
    monkeypatch.chdir(places)
    assert cli.main(["eval", "--run", "method", "--data", "mine"]) == 0
    assert "eval: mine is what it was finetuned on: evaluated on the val part" in capsys.readouterr().out
    record = records.require("method", "eval")
    assert (record.results["images"], record.config["dataset"]) == (3, "checkpoints/method/data")
    mine.rename(places / "elsewhere")
    monkeypatch.setenv("RUNTIME", "docker")
    assert cli.main(["eval", "--run", "method", "--force"]) == 2
    said = capsys.readouterr().err
    assert f"nothing at {mine}, where the images of {mine / 'result.json'} are" in said
    assert "name the data as for the finetuning, which mounts them: DATA=" in said


def test_the_number_of_classes_is_that_of_the_data(drawn, capsys):
    cfg = config("MODEL.ROI_HEADS.NUM_CLASSES=80")
    names = ["a", "b"]
    fitted = data.fit_classes(cfg, drawn, names, [])
    assert (fitted.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (2, 80)
    assert "2 classes, where the config has 80: MODEL.ROI_HEADS.NUM_CLASSES=2" in capsys.readouterr().out
    assert data.fit_classes(fitted, drawn, names, ["MODEL.ROI_HEADS.NUM_CLASSES=2"]) is fitted
    with pytest.raises(KitError, match=r"has 2 categories, the config expects 80; add MODEL.ROI_HEADS.NUM"):
        data.fit_classes(cfg, drawn, names, ["MODEL.ROI_HEADS.NUM_CLASSES=80"])


def test_data_without_masks_trains_boxes(exported, places, capsys):
    mine = shutil.copytree(exported / "Label", places / "mine")
    content = json.loads((mine / "result.json").read_text())
    del content["annotations"][5]["segmentation"]
    (mine / "result.json").write_text(json.dumps(content))
    folder = own_data.place("method", DataSource(mine), ALONE)
    cfg = config()
    assert data.fit_masks(cfg, folder) is cfg
    with pytest.raises(KitError, match=r"mine/result.json: annotation 6 has no segmentation; give"):
        data.training(cfg, folder)
    for each in content["annotations"]:
        each["segmentation"] = []
    (mine / "result.json").write_text(json.dumps(content))
    folder = own_data.place("method", DataSource(mine), ALONE)
    fitted = data.fit_masks(cfg, folder)
    assert (fitted.MODEL.MASK_ON, cfg.MODEL.MASK_ON) == (False, True)
    assert "no object has a mask: the model is to find boxes alone" in capsys.readouterr().out
    assert len(data.training(fitted, folder)[1]) == 6


def test_masks_of_brushes_are_trained_on_as_bitmaps(exported, places, capsys):
    mine = shutil.copytree(exported / "Label", places / "mine")
    content = json.loads((mine / "result.json").read_text())
    packed = masks.merge(masks.frPyObjects(content["annotations"][0]["segmentation"], 128, 128))
    content["annotations"][0]["segmentation"] = {**packed, "counts": packed["counts"].decode()}
    (mine / "result.json").write_text(json.dumps(content))
    folder = own_data.place("method", DataSource(mine), ALONE)
    fitted = data.fit_masks(config(), folder)
    assert (fitted.INPUT.MASK_FORMAT, fitted.MODEL.MASK_ON) == ("bitmask", True)
    assert (
        "masks of brushes are trained on as bitmaps (INPUT.MASK_FORMAT=bitmask)" in capsys.readouterr().out
    )
    assert len(data.training(fitted, folder)[1]) == 6


def test_photographs_arrive_upright_and_in_colour(places):
    """EXIF, grey and CMYK: every variant shows what its source shows, and its masks fit."""
    photographs.write(places / "mine")
    train, val = (places / "mine" / f"{part}.json" for part in ("train", "val"))
    images = {"train_images": places / "mine" / "train", "val_images": places / "mine" / "val"}
    folder = own_data.place("method", DataSource(train=train, val=val, **images), ALONE)
    cfg = config()
    names, classes = data.training(cfg, folder)
    assert classes == list(photographs.CLASSES)
    data.check_images(names, ALONE)
    mapper = loading.SafeMapper(cfg, train=False)
    seen = {}
    for image in DatasetCatalog.get(names[0]):
        pixels = mapper(image)["image"].numpy().astype(float)
        source, _, variant = image["file_name"].rpartition("/")[2].removesuffix(".jpg").rpartition("_")
        small = np.stack([[row.mean() for row in np.array_split(c, 4)] for c in pixels.mean(2)])
        seen.setdefault(source, {})[variant] = small
    for variants in seen.values():
        plain = variants["plain"]
        for variant, rows in variants.items():
            wanted = plain.mean(0) if variant == "grey" else plain
            assert np.abs(rows - wanted).max() < 40, variant
        assert np.abs(variants["turned"] - plain).max() < 6


def small_pretraining(folder):
    """Write the config of a pretraining on 12 images; return its path."""
    path = folder / "pretrain.yaml"
    path.write_text(
        "model: {depth: 50, width: 8, hidden: 16, outputs: 8}\n"
        "views: {size: 32, online: {smallest: 32, largest: 32}, target: {smallest: 32, largest: 32}}\n"
        "loss: {group: 12}\noptimizer: {learning_rate: 0.1, groups: 1, accumulate: 1}\n"
        "schedule: {epochs: 1, warmup_epochs: 0}\nworkers: 0\n"
    )
    return str(path)


@pytest.mark.slow
def test_pretraining_and_finetuning_on_the_same_images(drawn, places, monkeypatch):
    """The three commands of docs/own-data.md as they stand, with the configs of a small model."""
    EXPORTS["Roboflow COCO"](parts_of(drawn), places / "datasets" / "mine")
    torch.manual_seed(0)
    start = places / "checkpoints" / "weights" / "triplet" / "triplet_r50-759.pth"
    checkpoint.save(start, Networks(50, 8, 16, 8), None, 0, 0)
    small = {
        "pretrain": ["--config", small_pretraining(places), "schedule.epochs=2"],
        "convert": ["--config", str(DEMO)],
        "finetune": ["--config", str(DEMO), *SHORT, "MODEL.ROI_HEADS.SCORE_THRESH_TEST=0.0"],
        "eval": [],
    }
    (block,) = [
        each for each in blocks.find_blocks(KIT / "docs" / "own-data.md") if "pretrain" in each.text
    ]
    printed = [blocks.expand_make(tuple(shlex.split(line)[1:])) for line in block.commands]
    commands = [shlex.split(each) for each in re.findall(r"\.venv/bin/triplet ([^;\n]*)", "".join(printed))]
    assert [each[0] for each in commands] == [*small]
    monkeypatch.chdir(places)  # the page's paths are below the folder of the kit
    for stage, *words in commands:
        length = {"--schedule", "1/8x"}  # hours on a CPU
        assert cli.main([stage, *(each for each in words if each not in length), *small[stage]]) == 0
    inputs = {stage: records.require("triplet", stage).inputs for stage in small}
    assert inputs["pretrain"]["weights"].path == paths.portable(start)
    assert inputs["convert"]["weights"].path == "checkpoints/triplet/pretrain/checkpoint.pth"
    assert records.require("triplet", "data").config["layout"] == "Roboflow COCO"
    assert records.require("triplet", "eval").results["images"] == 6


@pytest.mark.slow
def test_photographs_from_check_to_predict(places, capsys):
    """The path of docs/own-data.md: look, pretrain without labels, finetune, evaluate, predict."""
    photographs.write(places / "mine")
    named = photographs.named(places / "mine")
    run = ["--run", "method"]
    train = str(places / "mine" / "train")
    assert cli.main(["data", "check", *named]) == 0
    assert cli.main(["pretrain", *run, "--config", small_pretraining(places), "--data", train]) == 0
    assert cli.main(["convert", *run, "--config", str(DEMO)]) == 0
    threshold = "MODEL.ROI_HEADS.SCORE_THRESH_TEST=0.0"
    assert cli.main(["finetune", *run, "--config", str(DEMO), *named, *SHORT, threshold]) == 0
    record = records.require("method", "finetune")
    assert record.results["classes"] == list(photographs.CLASSES)
    assert record.results["category_ids"] == [1, 2, 3, 4]
    assert record.config["dataset"] == "checkpoints/method/data"
    assert record.config["detectron2"]["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 4
    assert cli.main(["eval", *run]) == 0
    assert records.require("method", "eval").results["images"] == 3
    assert "box AP" in capsys.readouterr().out
    assert cli.main(["predict", *run, "--images", train, "--score", "0"]) == 0
    said = json.loads((places / "mine" / "train.json").read_text())
    folder = paths.stage_folder("method", "predict") / "train"
    found = json.loads((folder / "images.json").read_text())
    # EXIF's and all others have the size at which people see them, and annotated them.
    sizes = [
        {each["file_name"]: (each["width"], each["height"]) for each in x["images"]} for x in (said, found)
    ]
    assert sizes[0] == sizes[1]
    assert found["categories"] == said["categories"]
    results = json.loads((folder / "results.json").read_text())
    assert {each["image_id"] for each in results} == {each["id"] for each in found["images"]}
    assert {each["category_id"] for each in results} <= {1, 2, 3, 4}
    with Image.open(folder / "pictures" / "china_turned.jpg") as picture:
        assert picture.size == sizes[0]["china_turned.jpg"]
    assert cli.main(["report"]) == 0
    results = json.loads((places / "reports" / "results.json").read_text())
    assert {each["method"] for each in results} == {"method"}
    # The files alone name other data to evaluate on.
    assert (
        cli.main(["eval", *run, "--val", str(places / "mine" / "train.json"), "--val-images", train]) == 2
    )
    assert "holds an eval of something else" in capsys.readouterr().err
