"""What a prediction keeps, draws and writes, in parts: thresholds, classes, boxes, files and names."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.detection import inference, model, predict
from tests.detection.conftest import DEMO
from triplet import cli, paths, records


@pytest.fixture
def given(untrained):
    return ["predict", "--run", "method", *untrained()]


def read(folder, name):
    return json.loads((folder / name).read_text())


NAMES = [{"id": 30, "name": "a"}, {"id": 10, "name": "b"}, {"id": 20, "name": "c"}]


def task(**options):
    told = predict.PredictOptions(**{"score": 0.5, "show": (), "most": None, "every": 1, **options})
    return predict._Task(model.load_config(DEMO), Path("w"), NAMES, (), told)


def found(*scores_and_classes):
    return [
        {"image_id": "x", "category_id": number, "bbox": [30.0, 10.0, 12.0, 25.0], "score": score}
        for score, number in scores_and_classes
    ]


def test_the_best_detections_of_the_classes_to_show_are_kept():
    given = found((0.3, 0), (0.9, 1), (0.25, 2), (0.6, 1), (0.5, 2), (0.7, 0))

    def kept(**options):
        return [(each["score"], each["category_id"]) for each in task(**options)._kept(given)]

    assert kept(score=0.3) == [(0.9, 1), (0.7, 0), (0.6, 1), (0.5, 2), (0.3, 0)]
    assert kept(score=0.1, most=2) == [(0.9, 1), (0.7, 0)]
    assert kept(score=0.1, show=("c", "a"), most=3) == [(0.7, 0), (0.5, 2), (0.3, 0)]


@pytest.mark.parametrize(("width", "shown"), [(80, 80), (1280, 1280), (2560, 1280)])
def test_a_picture_shows_each_box_at_its_place(tmp_path, width, shown):
    pixels = np.zeros((60 * width // 80, width, 3), np.uint8)
    scale = width / 80
    boxes = [{**each, "bbox": [scale * v for v in each["bbox"]]} for each in found((0.9, 2))]
    task()._draw(pixels, boxes, tmp_path / "p.jpg")
    with Image.open(tmp_path / "p.jpg") as picture:
        assert picture.size == (shown, 60 * shown // 80)
        bright = np.asarray(picture).max(2).reshape(60, shown // 80, 80, shown // 80).max((1, 3)) > 60
    rows, columns = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
    assert max(abs(columns[0] - 30), abs(rows[-1] - 35)) <= 2
    assert bright[15:33, 40:45].any()
    assert not bright[:, 75:].any()


def test_each_line_of_what_is_done_is_written(tmp_path, capsys):
    """Thirteen unreadable images, of which ten are named, and two whose order is that of their names."""
    done = {f"bad {n:02d}": {"name": f"bad {n:02d}", "unreadable": f"why {n}"} for n in range(12, -1, -1)}
    for name, width, classes in (("z", 90, (2, 0)), ("k", 80, (1,))):
        detections = [{**each, "image_id": name} for each in found(*((0.5 + c / 10, c) for c in classes))]
        done[name] = {"name": name, "width": width, "height": 60, "detections": detections}
    job = records.Job(tmp_path)
    task()._write(done, job)
    out = capsys.readouterr().out
    assert job.results == {"images": 2, "detections": 3, "unreadable": 13}
    assert read(tmp_path, "images.json")["images"] == [
        {"id": 1, "file_name": "k", "width": 80, "height": 60},
        {"id": 2, "file_name": "z", "width": 90, "height": 60},
    ]
    written = [(each["image_id"], each["category_id"]) for each in read(tmp_path, "results.json")]
    assert written == [(1, 10), (2, 20), (2, 30)]
    assert job.outputs["unreadable"].read_text() == "".join(f"bad {n:02d}\n" for n in range(13))
    assert out.count("is left out") == 10
    assert "bad 09 cannot be read and is left out: why 9\n" in out
    assert "13 of 15 images cannot be read" in out


@pytest.mark.parametrize(("score", "lowest"), [("0.01", 0.01), ("0.8", 0.05)])
def test_no_detector_drops_what_is_asked_for(places, given, monkeypatch, capsys, score, lowest):
    """Nor is a model used that has changed since it was recorded."""
    seen = []

    def loaded(cfg, weights):
        seen.append((cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.MODEL.RETINANET.SCORE_THRESH_TEST))
        weights.write_bytes(b"changed meanwhile")

    monkeypatch.setattr(inference, "load_network", loaded)
    assert cli.main([*given, "--images", "README.md", "--score", score]) == 2
    assert seen == [(lowest, lowest)]
    assert "model.pth" in capsys.readouterr().err


def test_a_model_that_names_no_classes_has_those_of_its_number():
    coco = predict.known_categories(80)
    assert (coco[0], coco[79]) == ({"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"})
    assert predict.known_categories(20)[14] == {"id": 15, "name": "person"}
    assert predict.known_categories(2) == [{"id": 1, "name": "class 1"}, {"id": 2, "name": "class 2"}]


def test_the_model_file_of_a_finetuning_names_its_classes(
    places, drawn, truth, finished, untrained, capsys
):
    """By the record beside it, which also tells its config; a copy by what is written into it."""
    ids, names = [3, 5, 7, 9, 11, 13], [each["name"] for each in truth["categories"]]
    finished("own", drawn, names, ids)
    picture = str(sorted((drawn / "val2017").iterdir())[0])
    command = ["predict", "--run", "other", "--images", picture, "--score", "0.05"]
    file = paths.stage_folder("own", "finetune") / "model.pth"
    copy = places / "copy.pth"
    torch.save({**torch.load(file), "classes": names, "category_ids": ids}, copy)
    config = untrained()[-1]
    for name, given in (("beside", [str(file)]), ("copy", [str(copy), "--config", config])):
        assert cli.main([*command, "--name", name, "--model", *given]) == 0
        assert "names no classes" not in capsys.readouterr().out
        found = read(paths.stage_folder("other", "predict") / name, "images.json")["categories"]
        assert found == [{"id": id, "name": name} for id, name in zip(ids, names, strict=True)]
    shutil.copy(file, copy)
    assert cli.main([*command, "--name", "none", "--model", str(copy), "--config", config]) == 0
    said = "predict: copy.pth names no classes: its 6 are taken for class 1, ..., class 6\n"
    assert said in capsys.readouterr().out
    assert cli.main(["eval", "--run", "other", "--model", str(file)]) == 0
    assert list(records.require("other", "eval").results["categories"]["bbox"]) == names
