"""Real models, untrained, on a few drawn images, by the command line."""

import json
import logging
import os
import pickle
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as masks

from benchmarks.detection import data, evaluate, log_capture, model, visualize
from tests.conftest import KIT, TINY
from tests.detection.conftest import DEMO
from tests.support.processes import launch, wait_until
from triplet import cli, paths, records
from triplet.errors import KitError
from triplet.pull.synthetic import draw_dataset

from detectron2.data import DatasetCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

SMALL_FPN = {
    "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
    "RESNETS": {"OUT_FEATURES": ["res2", "res3", "res4", "res5"]},
    "FPN": {"IN_FEATURES": ["res2", "res3", "res4", "res5"], "OUT_CHANNELS": 16},
    "ANCHOR_GENERATOR": {"SIZES": [[16], [32], [64], [128], [256]]},
    "RPN": {"IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"]},
    "ROI_HEADS": {"NAME": "StandardROIHeads", "IN_FEATURES": ["p2", "p3", "p4", "p5"], "NUM_CLASSES": 1},
    "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 1, "FC_DIM": 16},
    "ROI_KEYPOINT_HEAD": {"CONV_DIMS": [16]},
    "MASK_ON": False,
    "KEYPOINT_ON": True,
}


def results(run):
    return records.require(run, "eval").results


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_any_model_by_one_and_two_processes_and_both_engines(places, drawn, untrained, capsys):
    given = ["eval", *untrained(), "--data", str(drawn)]
    assert cli.main([*given, "--run", "one"]) == 0
    assert "box AP" in capsys.readouterr().out
    one = results("one")
    assert cli.main([*given, "--run", "slow", "--engine", "pycocotools"]) == 0
    assert results("slow") == {**one, "engine": "pycocotools"}
    two = launch(2, *given, "--run", "two")
    out, error = two.communicate()
    assert two.returncode == 0, error
    assert out.count("box AP") == 1
    assert results("two") == one
    assert one["images"] == 6
    assert list(one["bbox"]) == list(one["segm"])
    assert list(one["bbox"])[:3] + list(one["bbox"])[-3:] == ["AP", "AP50", "AP75", "ARs", "ARm", "ARl"]
    for task in ("bbox", "segm"):
        each = [v for v in one["categories"][task].values() if v is not None]
        assert one[task]["AP"] == pytest.approx(np.mean(each))
    record = records.require("two", "eval")
    assert record.world_size == 2
    assert record.config["detectron2"]["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 6
    predictions = json.loads(records.output(record, "predictions").read_text())
    assert {each["image_id"] for each in predictions} == {1, 2, 3, 4, 5, 6}


def test_voc_has_its_own_numbers(places, voc, untrained):
    given = untrained(DATASETS={"TEST": ["voc_2007_test"]}, MODEL={"ROI_HEADS": {"NUM_CLASSES": 20}})
    assert cli.main(["eval", "--run", "voc", *given, "--data", str(voc)]) == 0
    found = results("voc")
    assert list(found["bbox"]) == ["AP", "AP50", "AP75"]
    assert (found["engine"], found["images"]) == ("voc", 6)
    record = records.require("voc", "eval")
    assert "list" in record.inputs
    assert record.config["detectron2"]["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 20


def test_a_finished_run_is_evaluated_on_what_its_record_names(voc, drawn, finished, capsys, monkeypatch):
    numbers = {"AP": 23.45, "AP50": 45.67, "AP75": None}
    monkeypatch.setattr(evaluate, "_voc", lambda summary: {"bbox": numbers})  # a random model has none
    twenty = {"ROI_HEADS": {"NUM_CLASSES": 20}}
    finished("own", voc, CLASS_NAMES, range(20), ["voc_2007_test"], MODEL=twenty)
    assert cli.main(["eval", "--run", "own"]) == 0
    record = records.require("own", "eval")
    assert (record.results["engine"], record.results["images"], record.seed) == ("voc", 6, 5)
    assert record.config == {"dataset": paths.portable(voc)}
    assert record.inputs["list"].path.endswith("VOC2007/ImageSets/Main/test.txt")
    pictures = records.output(record, "pictures")
    assert sorted(each.name for each in pictures.iterdir()) == sorted(record.results["pictures"])
    assert record.results["bbox"] == numbers
    assert "eval: box AP 23.4 (AP50 45.7)\n" in capsys.readouterr().out
    assert cli.main(["eval", "--run", "own", "--data", str(drawn)]) == 2
    assert str(drawn) in capsys.readouterr().err
    finished("other", voc, reversed(CLASS_NAMES), range(20), ["voc_2007_test"], MODEL=twenty)
    assert cli.main(["eval", "--run", "other"]) == 2
    assert "has other categories (aeroplane, bicycle, bird, ...) than the model" in capsys.readouterr().err


PACKED = masks.encode(np.eye(128, dtype=np.uint8, order="F"))
DIAGONAL = {**PACKED, "counts": PACKED["counts"].decode()}
FOUND = [
    {"image_id": image, "category_id": 2, "bbox": [8.0, 9, 30, 20], "score": 0.5, "segmentation": DIAGONAL}
    for image in (2, 5)
]
"""Detections in two of the six drawn images."""


def test_all_images_count_and_the_detections_of_all_processes(places, drawn, untrained, monkeypatch):
    """Each of two processes has found something in one image."""
    monkeypatch.setattr(evaluate, "_detect", lambda *_: FOUND[:1])
    monkeypatch.setattr(evaluate.comm, "gather", lambda found: [found, FOUND[1:]])
    command = ["eval", "--run", "any", *untrained(), "--data", str(drawn), "--engine", "ultrafast"]
    assert cli.main(command) == 0
    record = records.require("any", "eval")
    assert (record.results["images"], record.results["engine"]) == (6, "ultrafast")
    assert record.config["engine"] == "ultrafast"
    predictions = json.loads(records.output(record, "predictions").read_text())
    assert [(each["image_id"], each["category_id"]) for each in predictions] == [(2, 3), (5, 3)]
    assert cli.main(command[:-2]) == 2, "another engine is another evaluation"


def test_a_stop_while_detecting_leaves_no_numbers(places, drawn, untrained, monkeypatch, capsys):
    def stopped(network, images, voc, bar, stop):
        bar.step()
        os.kill(os.getpid(), signal.SIGTERM)
        return FOUND

    monkeypatch.setattr(evaluate, "_detect", stopped)
    assert cli.main(["eval", "--run", "any", *untrained(), "--data", str(drawn)]) == 143
    assert "stopped by SIGTERM: 1 of 6 images evaluated" in capsys.readouterr().err
    assert records.read(paths.stage_folder("any", "eval")) is None


def test_where_nothing_counts_there_is_no_number(places, drawn, untrained, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "_detect", lambda *_: FOUND)
    monkeypatch.setattr(evaluate, "_coco", lambda *_: {"bbox": {"AP": None}})
    assert cli.main(["eval", "--run", "any", *untrained(), "--data", str(drawn)]) == 2
    assert f"{drawn}: nothing is annotated that counts" in capsys.readouterr().err
    assert records.read(paths.stage_folder("any", "eval")) is None


def test_keypoints(places, keypoints, untrained):
    given = untrained(DATASETS={"TEST": ["keypoints_coco_2017_val"]}, MODEL=SMALL_FPN)
    assert cli.main(["eval", "--run", "people", *given, "--data", str(keypoints)]) == 0
    found = results("people")
    assert list(found["keypoints"])[:3] == ["AP", "AP50", "AP75"]
    assert "segm" not in found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stop_is_clean(places, tmp_path, untrained):
    draw_dataset(tmp_path / "many", TINY.model_copy(update={"unlabelled": 1, "val": 100}))
    running = launch(2, "eval", "--run", "method", *untrained(), "--data", str(tmp_path / "many"))
    folder = paths.stage_folder("method", "eval")
    wait_until(lambda: all((folder / name).exists() for name in ("log.txt", "log.1.txt")), running)
    running.send_signal(signal.SIGTERM)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 143, error
    assert error.count("stopped by SIGTERM") == 1
    assert "Traceback" not in error
    assert not (folder / "record.json").exists()


def test_the_log_takes_names_that_are_bytes(tmp_path, capsys):
    with log_capture.log_to(tmp_path / "log.txt"):
        logging.getLogger("detectron2").info("Loaded %s", os.fsdecode(b"caf\xe9/val.json"))
    assert r"Loaded caf\udce9/val.json" in (tmp_path / "log.txt").read_text()
    assert capsys.readouterr().err == ""


def test_models_that_do_not_fit_are_named(places, drawn, untrained, capsys):
    given = untrained()
    for words, needed in ((given[:2], "--config"), (given, "--data")):
        assert cli.main(["eval", "--run", "method", *words]) == 2
        assert f"--model needs {needed}" in capsys.readouterr().err
    wide = ["eval", "--run", "method", *given[:3], str(KIT / "configs/detection/coco_r50_c4_2x_moco.yaml")]
    assert cli.main([*wide, "--data", str(drawn)]) == 2
    assert "has 6 categories, the config expects 80" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("backbone.stem.conv1.weight"), "conv1.weight is missing, expected"),
        (lambda state: state.update(more=torch.zeros(1)), r"more is \(1,\), expected nothing"),
        (lambda state: state.update(odd=3), "not a Detectron2 model file"),
    ],
)
def test_a_file_of_another_model_is_refused(untrained, tmp_path, spoil, message):
    path = untrained()[1]
    state = torch.load(path, weights_only=True)["model"]
    spoil(state)
    torch.save({"model": state}, tmp_path / "spoilt.pth")
    network = model.build(model.load_config(DEMO))
    with pytest.raises(KitError, match=message):
        model.load_trained(network, tmp_path / "spoilt.pth")


def test_a_file_of_the_model_zoo_is_loaded_in_full(untrained, tmp_path):
    """Arrays in a .pkl, with a constant that models no longer hold, and without counts of batches."""
    saved = torch.load(untrained()[1], weights_only=True)["model"]
    arrays = {k: v.numpy() for k, v in saved.items() if not k.endswith("num_batches_tracked")}
    content = {"model": {**arrays, "pixel_mean": np.zeros((3, 1, 1))}, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content))
    network = model.build(model.load_config(DEMO))
    model.load_trained(network, tmp_path / "zoo.pkl")
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())


def test_pictures_show_the_truth_beside_what_was_found(drawn, truth, tmp_path):
    name, categories = data.testing(model.load_config(DEMO), drawn)
    chosen = visualize.choose(DatasetCatalog.get(name))
    assert [image["image_id"] for image in chosen] == [1, 2, 3, 4, 5, 6]
    found = [
        {"image_id": a["image_id"], "category_id": a["category_id"] - 1, "bbox": a["bbox"], "score": score}
        for a in truth["annotations"]
        for score in (0.9, 0.4)
        if a["image_id"] != 2
    ]
    names = visualize.draw(chosen, found, categories, tmp_path)
    assert names == [f"{i}.jpg" for i in range(1, 7)]
    for image, file in zip(chosen, names, strict=True):
        with Image.open(tmp_path / file) as picture:
            pixels = np.asarray(picture).astype(int)
        assert pixels.shape == (638, 1280, 3)
        assert (tmp_path / file).stat().st_size < 300_000
        plain = np.asarray(Image.open(image["file_name"]).convert("RGB").resize((638, 638), 3)).astype(int)
        left, right = (np.abs(side - plain).max(2) > 60 for side in (pixels[:, :638], pixels[:, -638:]))
        if image["image_id"] == 2:
            assert right.mean() < 0.001
        else:
            assert left.mean() > right.mean() > 0.005  # masks and boxes; boxes


def test_pictures_are_spread_over_the_annotated_images():
    images = [{"image_id": i, "annotations": [] if i % 2 else [1]} for i in range(100)]
    assert [image["image_id"] for image in visualize.choose(images)] == [0, 16, 32, 48, 64, 80]
    assert len(visualize.choose(images[:5])) == 3
