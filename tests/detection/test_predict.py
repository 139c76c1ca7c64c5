"""`triplet predict`: a real model, untrained, on images of odd kinds, and what others read of its files."""

import json
import os
import shutil
import signal
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO

from benchmarks.detection import inference, model, predict, predictions, sources, visualize
from tests.conftest import placed
from tests.detection.conftest import DEMO
from triplet import cli, paths, records
from triplet.images import to_eight_bits

from detectron2.data import DatasetMapper

COMMON = ["--score", "0.05", "--most", "5"]


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture
def given(untrained):
    return ["predict", "--run", "method", *COMMON, *untrained()]


@pytest.fixture
def photographs(tmp_path, drawn):
    """A folder of images as people have them, and two that are none."""
    folder = tmp_path / "photos"
    (folder / "a folder").mkdir(parents=True)
    source = Image.open(sorted((drawn / "val2017").iterdir())[0]).convert("RGB").resize((96, 64))
    source.save(folder / "plain.jpg")
    source.convert("L").save(folder / "grey.jpg")
    source.convert("CMYK").save(folder / "a folder" / "cmyk.jpg")
    Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the top is on the right
    source.save(folder / "turned.jpg", exif=exif)
    whole = (folder / "plain.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no image")
    (folder / "notes.txt").write_text("not looked at")
    return folder


@pytest.fixture(scope="module")
def predicted(tmp_path_factory, drawn):
    """The folder of a prediction of the drawn validation images, and that of their evaluation."""
    folder = tmp_path_factory.mktemp("predicted")
    torch.manual_seed(0)
    torch.save({"model": model.build(model.load_config(DEMO)).state_dict()}, folder / "model.pth")
    common = ["--run", "method", "--model", str(folder / "model.pth"), "--config", str(DEMO)]
    with placed(folder):
        assert cli.main(["eval", *common, "--data", str(drawn)]) == 0
        images = ["--images", str(drawn / "val2017"), "--score", "0.05"]
        assert cli.main(["predict", *common, *images]) == 0
        yield paths.stage_folder("method", "predict") / "val2017", paths.stage_folder("method", "eval")


def test_it_finds_what_an_evaluation_finds(predicted, truth):
    folder, evaluated = predicted
    names = {image["id"]: image["file_name"] for image in read(folder, "images.json")["images"]}
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    assert [*names.values()] == sorted(ids)
    found = [{**each, "image_id": ids[names[each["image_id"]]]} for each in read(folder, "results.json")]

    def key(each):
        return each["image_id"], -each["score"], each["bbox"]

    expected = read(evaluated, "coco_instances_results.json")
    assert len(expected) > 20
    assert sorted(found, key=key) == sorted(expected, key=key)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--score", "0.06"], "config.score 0.05 -> 0.06"),
        (["--most", "3"], "config.most None -> 3"),
        (["--every", "2"], "config.every 1 -> 2"),
        (["--show", "class 2"], "config.show [] -> ['class 2']"),
        (["--images", "0*"], "config.images."),
        (["--model", "other.pth"], "input model "),
    ],
)
def test_what_changes_the_result_is_another_prediction(predicted, drawn, options, said, capsys):
    folder, _ = predicted
    root = folder.parents[3]
    (root / "other.pth").write_bytes((root / "model.pth").read_bytes() + b"more")
    options = [str(root / each) if each == "other.pth" else each for each in options]
    options = [str(drawn / "val2017" / "*[1-5].*") if each == "0*" else each for each in options]
    command = ["predict", "--run", "method", "--model", str(root / "model.pth"), "--config", str(DEMO)]
    usual = ["--images", str(drawn / "val2017"), "--score", "0.05", "--name", "val2017"]
    with placed(root):
        assert cli.main([*command, *usual, *options]) == 2
    assert said in capsys.readouterr().err


def test_coco_reads_the_results(predicted):
    folder, _ = predicted
    results = COCO(folder / "images.json").loadRes(str(folder / "results.json"))
    assert len(results.anns) == len(read(folder, "results.json"))
    assert all(
        each["area"] > 0 for each in results.anns.values() if each["segmentation"]["counts"] != "P`4"
    )


def test_cvats_file_is_coco_with_polygons(predicted, truth):
    """Its format is COCO 1.0's instances; polygons fill holes and lose specks."""
    folder, _ = predicted
    written = COCO(folder / "cvat.json")
    for each, exact in zip(written.dataset["annotations"], read(folder, "results.json"), strict=True):
        assert (each["image_id"], each["category_id"]) == (exact["image_id"], exact["category_id"])
        assert each["iscrowd"] == 0
        assert all(len(outline) >= 6 for outline in each["segmentation"])
    assert [each["id"] for each in written.dataset["categories"]] == [1, 2, 3, 4, 5, 6]
    for each in truth["annotations"]:
        exact = masks.merge(masks.frPyObjects(each["segmentation"], 128, 128))
        outlined = masks.merge(masks.frPyObjects(predictions.outlines(exact), 128, 128))
        assert masks.iou([outlined], [exact], [0])[0, 0] > 0.95


def test_label_studios_regions_belong_to_its_interface(predicted):
    folder, _ = predicted
    interface = ET.fromstring((folder / "label_studio.xml").read_text())
    controls = {each.get("name"): each for each in interface if each.get("toName")}
    tasks = read(folder, "label_studio.json")
    assert len(tasks) == 6
    assert tasks[0]["data"]["image"].startswith("/data/local-files/?d=0")
    for task in tasks:
        for region in task["predictions"][0]["result"]:
            control = controls[region["from_name"]]
            assert control.tag.lower() == region["type"]
            assert control.get("toName") == region["to_name"]
            names = {label.get("value") for label in control}
            assert set(region["value"][region["type"]]) <= names
            points = region["value"].get("points") or [[region["value"]["x"], region["value"]["y"]]]
            assert all(0 <= number <= 100 for point in points for number in point)


def test_photographs_of_every_kind_are_read_and_others_named(places, photographs, given, capsys):
    assert cli.main([*given, "--images", str(photographs)]) == 0
    out = capsys.readouterr().out
    folder = paths.stage_folder("method", "predict") / "photos"
    images = {each["file_name"]: each for each in read(folder, "images.json")["images"]}
    expected = {"a folder/cmyk.jpg", "deep.png", "grey.jpg", "plain.jpg", "turned.jpg"}
    assert set(images) == expected
    assert (images["turned.jpg"]["width"], images["turned.jpg"]["height"]) == (64, 96)
    assert "predict: cut.jpg cannot be read and is left out: OSError: image file is truncated" in out
    assert "predict: text.png cannot be read and is left out: UnidentifiedImageError" in out
    assert "2 of 7 images cannot be read" in out
    assert (folder / "unreadable.txt").read_text() == "cut.jpg\ntext.png\n"
    drawn = {path.relative_to(folder / "pictures").as_posix() for path in folder.rglob("pictures/**/*.jpg")}
    assert drawn == {*predict.picture_names(sorted(expected)).values()}
    assert Image.open(folder / "pictures" / "turned.jpg").size == (64, 96)
    places_of = (folder / "pictures", photographs)
    shown, plain = (np.asarray(Image.open(place / "plain.jpg"), int) for place in places_of)
    assert np.median(np.abs(shown - plain)) < 10 < np.median(np.abs(shown - plain[..., ::-1]))
    record = records.read(folder)
    assert record.results == {"images": 5, "detections": record.results["detections"], "unreadable": 2}
    assert 0 < record.results["detections"] <= 25
    assert cli.main([*given, "--images", str(photographs)]) == 0
    assert "done already" in capsys.readouterr().out
    (photographs / "plain.jpg").write_bytes((photographs / "plain.jpg").read_bytes() + b"more")
    assert cli.main([*given, "--images", str(photographs)]) == 2
    assert "config.images" in capsys.readouterr().err


def test_images_are_read_as_for_training(photographs):
    """One whose bytes are turned, gray or of 16 bits comes to the network as Pillow shows it."""
    mapper = DatasetMapper(model.load_config(DEMO), is_train=False)
    mapper.augmentations.augs.clear()
    _, found = sources.find([str(photographs)])
    dataset = sources.ImageFiles(found, mapper)
    pixels = {each.name: dataset[i] for i, each in enumerate(found)}
    for name in ("plain.jpg", "grey.jpg", "a folder/cmyk.jpg", "deep.png"):
        expected = np.asarray(to_eight_bits(Image.open(photographs / name)).convert("RGB"))
        assert np.array_equal(pixels[name]["image"].permute(1, 2, 0).numpy(), expected)
    upright = np.asarray(Image.open(photographs / "turned.jpg").convert("RGB"))
    assert np.array_equal(pixels["turned.jpg"]["image"].permute(1, 2, 0).numpy(), np.rot90(upright, -1))


def test_a_stop_is_clean_and_the_next_call_goes_on(places, drawn, given, monkeypatch, capsys):
    draw, done, written = visualize.panel, [], []
    folder = paths.stage_folder("method", "predict") / "mine"

    def interrupting(*arguments):
        done.append(arguments)
        written.append(len((folder / "done.jsonl").read_text().splitlines()))
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(*arguments)

    monkeypatch.setattr(visualize, "panel", interrupting)
    command = [*given, "--images", str(drawn / "val2017" / "0*"), "--name", "mine"]
    assert cli.main(command) == 143
    assert "stopped by SIGTERM: 2 of 6 images are done" in capsys.readouterr().err
    assert not (folder / "results.json").exists()
    with (folder / "done.jsonl").open("a") as lines:
        lines.write('{"name": "0000')  # as a kill would leave it
    assert cli.main(command) == 0
    assert len(done) == 6
    assert written == [0, 1, 2, 3, 4, 5], "each image is kept before the next one is drawn"
    assert "going on after 2 images" in capsys.readouterr().out
    assert len(read(folder, "images.json")["images"]) == 6
    assert not (folder / "done.jsonl").exists()
    assert cli.main([*command, "--score", "0.1"]) == 2
    assert "config.score 0.05 -> 0.1" in capsys.readouterr().err


def video(path, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), (10 * number, 0, 250 - 10 * number), np.uint8))
    writer.release()


def test_every_so_many_frames_of_a_video(places, tmp_path, given, capsys):
    video(tmp_path / "clip.avi", 10)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    wanted = [str(tmp_path / "clip.avi"), str(tmp_path / "broken.mp4")]
    Image.new("RGB", (64, 48)).save(tmp_path / "still.png")
    wanted.append(str(tmp_path / "still.png"))
    assert cli.main([*given, "--images", *wanted, "--every", "4", "--name", "clips"]) == 0
    folder = paths.stage_folder("method", "predict") / "clips"
    cvat = read(folder, "cvat.json")["images"]
    # In a task of a video, CVAT reads the number of an item's frame behind `frame_` (match_dm_item).
    stems = [Path(each["file_name"]).stem for each in cvat if "/" in each["file_name"]]
    assert [int(stem[len("frame_") :]) for stem in stems] == [0, 4, 8]
    (task,) = read(folder, "label_studio.json")  # frames are not files
    assert task["data"]["image"] == "/data/local-files/?d=still.png"
    images = read(folder, "images.json")["images"]
    names = [f"clip.avi/frame_{n:06d}.jpg" for n in (0, 4, 8)]
    assert [each["file_name"] for each in images] == [*names, "still.png"]
    assert {(each["width"], each["height"]) for each in images} == {(64, 48)}
    assert (
        "broken.mp4 cannot be read and is left out: OpenCV reads no frame of it" in capsys.readouterr().out
    )
    mapper = DatasetMapper(model.load_config(DEMO), is_train=False)
    (frame,) = sources.frames(tmp_path / "clip.avi", 4, 8, mapper)
    assert np.abs(frame["rgb"].astype(int) - [170, 0, 80]).max() < 12
    middle = frame["image"][:, 5, 5].numpy().astype(int)
    expected = [170, 0, 80] if mapper.image_format == "RGB" else [80, 0, 170]
    assert np.abs(middle - expected).max() < 12


def test_a_finished_run_tells_its_classes(drawn, finished, capsys):
    finished("own", drawn, "abcdef", [3, 5, 7, 9, 11, 13])
    picture = str(sorted((drawn / "val2017").iterdir())[0])
    command = ["predict", "--run", "own", "--images", picture, "--score", "0.05"]
    assert cli.main([*command, "--name", "all"]) == 0
    folder = paths.stage_folder("own", "predict")
    every = {each["category_id"] for each in read(folder / "all", "results.json")}
    assert every <= {3, 5, 7, 9, 11, 13}
    assert len(every) > 1
    number = max(every)
    name = "abcdef"[(number - 3) // 2]
    assert cli.main([*command, "--name", "one", "--show", f"{name}, a" if name != "a" else "a"]) == 0
    assert number in {each["category_id"] for each in read(folder / "one", "results.json")} <= {3, number}
    assert cli.main([*command, "--show", "aa"]) == 2
    assert "the model has no class 'aa'; did you mean 'a'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the images: --images FOLDER"),
        (["--images", "nowhere/*.jpg"], "nothing at --images nowhere/*.jpg"),
        (["--images", "configs"], "no image or video in --images configs"),
        (["--images", "README.md"], "none of 1 images can be read: README.md (UnidentifiedImageError"),
        (["--images", "README.md", "--name", "../out"], "--name names a folder below checkpoints/"),
        (["--images", "README.md", "--name", ".", "--force"], "--name names a folder below checkpoints/"),
        (["--images", "~nobody-of-that-name/*"], "nothing at --images ~nobody-of-that-name/*"),
    ],
)
def test_what_cannot_be_done_is_one_line(places, given, capsys, arguments, message):
    assert cli.main([*given, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_image_that_was_the_only_one_can_be_mended(places, given, drawn):
    command = [*given, "--images", str(places / "a.jpg"), "--name", "mine"]
    (places / "a.jpg").write_bytes(b"cut")
    assert cli.main(command) == 2
    shutil.copy(next((drawn / "val2017").iterdir()), places / "a.jpg")
    assert cli.main(command) == 0
    assert len(read(paths.stage_folder("method", "predict") / "mine", "images.json")["images"]) == 1


def test_a_model_needs_its_config(places, given, capsys):
    assert cli.main([*given[:-2], "--images", "README.md"]) == 2
    assert "--model needs --config" in capsys.readouterr().err
    assert cli.main(["predict", "--images", "README.md"]) == 2
    assert "run 'triplet' has no finished finetune stage" in capsys.readouterr().err


def test_names_and_files_of_every_kind_end_no_prediction(places, photographs, given, capsys):
    """Names in no encoding, as long as they may be, and of which one is another's picture; what is no
    file."""
    plain = (photographs / "plain.jpg").read_bytes()
    deep = (photographs / "deep.png").read_bytes()
    folder = photographs.with_name("odd")
    folder.mkdir()
    odd = [
        b"caf\xe9.jpg",
        b"a.png",
        b"a.png.jpg",
        b"x" * 250 + b".png",
        "\xe9".encode() * 125 + b".png",
        b"\x1b[2J.jpg",
        b"a\nb.jpg",
    ]
    for name in odd:
        content = deep if name.endswith(b".png") else plain
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(content)
    (folder / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.jpg")
    assert cli.main([*given, "--images", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "predict: gone.jpg cannot be read and is left out: FileNotFoundError" in out
    assert "predict: pipe.jpg cannot be read and is left out: OSError: it is not a file" in out
    result = paths.stage_folder("method", "predict") / "odd"
    named = {each["file_name"] for each in read(result, "images.json")["images"]}
    assert named == {os.fsdecode(name) for name in odd}
    assert len(list((result / "pictures").iterdir())) == len(odd)
    addresses = [each["data"]["image"] for each in read(result, "label_studio.json")]
    assert "/data/local-files/?d=caf%E9.jpg" in addresses


def test_a_video_goes_on_after_its_last_frame(places, tmp_path, given, monkeypatch, capsys):
    video(tmp_path / "clip.avi", 14)
    draw, drawn_frames = visualize.panel, []

    def interrupting(*arguments):
        drawn_frames.append(arguments)
        if len(drawn_frames) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(*arguments)

    monkeypatch.setattr(visualize, "panel", interrupting)
    command = [*given, "--images", str(tmp_path / "clip.avi"), "--every", "4", "--name", "clip"]
    assert cli.main(command) == 143
    assert cli.main(command) == 0
    assert len(drawn_frames) == 4
    images = read(paths.stage_folder("method", "predict") / "clip", "images.json")["images"]
    assert [each["file_name"] for each in images] == [f"clip.avi/frame_{n:06d}.jpg" for n in (0, 4, 8, 12)]


def test_masks_of_a_large_image_are_not_all_held_at_once(given, monkeypatch):
    """In parts, of one mask at least, they are what they are together; in float32 by the file's weights."""
    model.allow_tf32(True)
    network = inference.load_network(model.load_config(Path(given[-1])), Path(given[-3])).eval()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    saved, loaded = torch.load(given[-3])["model"], network.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in saved.items())
    pixels = torch.arange(3 * 64 * 96).view(3, 64, 96).to(torch.uint8)
    image = {"image": pixels, "height": 640, "width": 960}
    with torch.no_grad():
        whole = network([image])[0]["instances"]
    assert len(whole) > 3
    assert inference.PASTED < 100 * 24e6  # as of a photograph of 24 megapixels
    for most, largest in ((1, 1), (640 * 960 * 3, 3), (1 << 30, len(whole))):
        monkeypatch.setattr(inference, "PASTED", most)
        parts = list(inference._parts(network, image))
        assert max(map(len, parts)) == largest
        for name in ("pred_masks", "scores", "pred_classes"):
            assert torch.equal(torch.cat([each.get(name) for each in parts]), whole.get(name))
