"""VOC07 by support vector machines: the metric, the labels, the draws, and a run that is stopped."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score

from benchmarks.linear.config import Svm
from benchmarks.linear.svm import _fits, _read, summary
from benchmarks.linear.svm_fit import Fit, average_precision
from benchmarks.linear.svm_fit import run as fit
from benchmarks.linear.voc import low_shot, pooled_layers, read_split, square
from tests.conftest import KIT
from tests.support.processes import start, wait_until
from triplet import cli
from triplet.config import load
from triplet.errors import KitError
from triplet.models.resnet import ResNet

CLASSES = ("aeroplane", "bird", "cat")
CONFIG = "layers: [4, 5]\ncosts: [1, 1.0e-4]\nfolds: 2\nshots: [1, 2]\nsamples: 2\nworkers: 0\n"


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """Images as bright as their class; one is difficult for another class."""
    folder = tmp_path_factory.mktemp("VOC2007")
    main = folder / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("trainval", 18), ("test", 9)):
        names = [f"{split}{i:03d}" for i in range(count)]
        (main / f"{split}.txt").write_text("\n".join(names))
        for i, name in enumerate(names):
            pixels = rng.integers(0, 30, (40, 60, 3)) + 100 * (i % 3)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
        for number, label in enumerate(CLASSES):
            words = [1 if i % 3 == number else -1 for i in range(count)]
            words[0] = 0 if number == 2 else words[0]
            lines = [f"{name} {word:2d}\n" for name, word in zip(names, words, strict=True)]
            (main / f"{label}_{split}.txt").write_text("".join(lines))
    return folder


def test_average_precision_by_hand():
    # Ranked right, wrong, right: precision 1, 1/2, 2/3; made to fall 1, 2/3, 2/3.
    assert average_precision(np.array([1, -1, 1]), np.array([3.0, 2, 1])) == pytest.approx(1 / 2 + 1 / 3)
    # Wrong, right, right: 0, 1/2, 2/3; made to fall all 2/3.
    assert average_precision(np.array([0, 1, 1]), np.array([3.0, 2, 1])) == pytest.approx(2 / 3)


@given(data=st.data(), count=st.integers(2, 30))
def test_average_precision_is_the_area_under_the_falling_curve(data, count):
    labels = np.array(data.draw(st.lists(st.sampled_from([-1, 1]), min_size=count, max_size=count)))
    if (labels > 0).sum() == 0:
        return
    scores = np.array(data.draw(st.permutations(range(count))), dtype=float)
    ranked = labels[np.argsort(-scores)] > 0
    recall = np.cumsum(ranked) / ranked.sum()
    precision = np.cumsum(ranked) / np.arange(1, count + 1)
    area, before = 0.0, 0.0
    for i in range(count):
        area += (recall[i] - before) * max(precision[i:])
        before = recall[i]
    found = average_precision(labels, scores)
    assert found == pytest.approx(area)
    assert found >= average_precision_score(labels > 0, scores) - 1e-12


def test_labels_are_read_and_difficult_ones_set_apart(voc, tmp_path):
    split = read_split(voc, "trainval")
    assert split.classes == list(CLASSES)
    assert split.names[:2] == ["trainval000", "trainval001"]
    assert split.targets[:3].tolist() == [[1, 0, -1], [0, 1, 0], [0, 0, 1]]
    with pytest.raises(KitError, match=r"no ImageSets/Main/test.txt .*triplet pull voc"):
        read_split(tmp_path, "test")
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "test.txt").write_text("a\nb\n")
    (main / "bird_test.txt").write_text("a 1\n")
    with pytest.raises(
        KitError, match=r"bird_test.txt does not list 1, 0 or -1 for each image of test.txt"
    ):
        read_split(tmp_path, "test")


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("JPEGImages/test003.jpg", None, r"JPEGImages: 1 of 9 images are missing, test003\.jpg first"),
        ("ImageSets/Main/test.txt", b"a\xe9\n", r"test\.txt is not a list of names in UTF-8"),
        (
            "ImageSets/Main/test.txt",
            b"../a\n",
            r"test\.txt has the line '\.\./a', expected the name of an i",
        ),
        ("ImageSets/Main/test.txt", b"a\na\n", r"test\.txt lists 'a' more than once"),
        (
            "ImageSets/Main/cat_test.txt",
            b"\xe9 1\n",
            r"cat_test\.txt is not a list of labels in UTF-8",
        ),
        ("ImageSets/Main/cat_test.txt", b"test000 1 test001", r"cat_test\.txt does not list 1, 0 or -1"),
    ],
)
def test_damaged_lists_are_named(voc, tmp_path, path, content, message):
    copy = shutil.copytree(voc, tmp_path / "copy") / path
    copy.unlink() if content is None else copy.write_bytes(content)
    with pytest.raises(KitError, match=message):
        read_split(tmp_path / "copy", "test")


def test_features_have_openselfsups_sizes_and_length_one():
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    backbone = ResNet(50, 8).eval()
    with torch.no_grad():
        found = pooled_layers(backbone, pixels, [1, 2, 3, 4, 5])
        whole = backbone((pixels.float() - 114) / 57)
    assert [8 * each.shape[1] for each in found] == [9216, 9216, 8192, 9216, 8192]
    assert all(each.dtype == torch.float64 for each in found)
    for each in found:
        torch.testing.assert_close(each.norm(dim=1), torch.ones(2, dtype=torch.float64), atol=1e-3, rtol=0)
    assert found[-1].shape[1] == whole.shape[1] * 4
    again = pooled_layers(backbone, pixels, [5, 2])
    assert torch.equal(again[0], found[4].detach())
    assert torch.equal(again[1], found[1].detach())


def test_images_become_squares():
    image = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3))
    expected = image.resize((384, 256), Image.Resampling.BILINEAR)
    expected = expected.resize((224, 224), Image.Resampling.BILINEAR)
    assert np.array_equal(square(image), np.asarray(expected))


@given(seed=st.integers(0, 9), shots=st.integers(1, 4), sample=st.integers(0, 4), number=st.integers(0, 2))
def test_a_draw_has_its_shots_and_no_difficult_image(seed, shots, sample, number):
    targets = np.zeros((60, 3), dtype=np.int64)
    for label in range(3):
        targets[label * 6 : label * 6 + 5, label] = 1
        targets[label * 6 + 5, label] = -1
    rows = low_shot(targets, number, shots, sample, seed)
    assert len(set(rows.tolist())) == len(rows)
    assert (targets[rows, number] == 1).sum() == shots
    assert (targets[rows, number] == 0).sum() == 2 * shots
    assert np.array_equal(rows, low_shot(targets, number, shots, sample, seed))
    with pytest.raises(KitError, match="class 1 has 5 images with target 1, expected 6 for 6 shots"):
        low_shot(targets, 1, 6, 0, 0)


def test_separable_features_are_perfect_fits_reproducible(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(40) % 4 == 0, 1, -1)
    for name in ("train", "test"):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(40, 6)) + 4 * (labels[:, None] > 0))
    answers = np.where(labels > 0, 1, 0)
    answers[:8] = -1  # left out, whatever they are
    paths = tmp_path / "train.npy", tmp_path / "test.npy"
    asked = Fit(("a", 1), *paths, np.arange(40), labels, answers, (1.0, 0.1), 3, 0)
    found = fit(asked)
    assert found == {"key": ["a", 1], "test": [1.0, 1.0], "folds": [1.0, 1.0]}
    assert fit(asked) == found


def test_costs_come_by_cross_validation_low_shot_by_the_test():
    settings = Svm(costs=(1, 2), shots=(4,), samples=2)
    done = {
        (5, 0, 1.0): {"folds": [0.5], "test": [0.9]},
        (5, 0, 2.0): {"folds": [0.6], "test": [0.2]},
        (5, 1, 1.0): {"folds": [0.7], "test": [0.4]},
        (5, 1, 2.0): {"folds": [0.7], "test": [0.8]},
        (5, 0, "shots", 4, 0): {"test": [0.1, 0.3]},
        (5, 1, "shots", 4, 0): {"test": [0.3, 0.5]},
        (5, 0, "shots", 4, 1): {"test": [0.3, 0.5]},
        (5, 1, "shots", 4, 1): {"test": [0.5, 0.7]},
    }
    found = summary(settings, 5, 2, done)
    assert found["mAP"] == pytest.approx(30)
    assert found["costs"] == [2, 1]
    assert found["low_shot"]["4"] == pytest.approx({"mean": 50, "std": 10, "min": 40, "max": 60, "cost": 2})


def test_every_finished_fit_is_read_again_and_nothing_else_is(voc, tmp_path):
    settings = Svm(layers=(4,), costs=(1, 0.5**17), folds=2, shots=(1, 2), samples=2)
    fits = list(_fits(settings, [read_split(voc, "trainval"), read_split(voc, "test")], tmp_path))
    assert {len(each.key) for each in fits} == {3, 5}  # by cost, and by low-shot draw
    found = {each.key: {"key": list(each.key), "test": [0.5], "folds": []} for each in fits}
    lines = [json.dumps(each) for each in found.values()]
    odd = [
        '{"key": [9, 0, 1.0], "test": [1.0], "folds": []}',
        '{"key": {"a": 1}, "test": [1.0], "folds": []}',
        lines[0].replace("0.5", '"x"'),
        lines[1].replace('"test": [0.5]', '"test": null'),
        lines[2][:-3],
        lines[3].replace("[0.5]", '[0.5, "x"]'),
        lines[4].replace("[]", '["x"]'),
    ]
    log = tmp_path / "fits.jsonl"
    log.write_text("\n".join([*lines, *odd]))
    assert _read(log, fits) == found
    assert log.read_text().splitlines() == lines
    assert _read(tmp_path / "none.jsonl", fits) == {}


def test_the_costs_are_svm_tools():
    costs = load(KIT / "configs" / "linear" / "svm_voc07.yaml", Svm).costs
    assert list(costs) == [1, 10, 100, *(0.5**n for n in range(4, 20))]


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_tells_bright_from_dark(places, voc, weights, capsys):
    path = places / "svm.yaml"
    path.write_text(CONFIG)
    arguments = ["svm", "--run", "r", "--config", str(path), "--data", str(voc), "--weights", str(weights)]
    process = start(*arguments, session=True)
    folder = places / "checkpoints" / "r" / "svm" / "svm"
    log = folder / "fits.jsonl"
    wait_until(lambda: log.exists() and log.read_text().count("\n") > 1, process)
    os.killpg(process.pid, signal.SIGTERM)  # as from Slurm: the processes that fit get it too
    out, error = process.communicate()
    first = log.read_text().splitlines()
    if process.returncode != 0:  # else it was faster
        assert process.returncode == 143, error
        assert "stopped by SIGTERM" in error
        assert "Traceback" not in out + error
    assert cli.main(arguments) == 0
    assert log.read_text().splitlines()[: len(first)] == first
    results = json.loads((folder / "record.json").read_text())["results"]
    for layer in ("feat4", "feat5"):
        assert results[layer]["mAP"] == 100
        assert results[layer]["low_shot"]["2"]["mean"] == 100
    assert (results["images"], results["test_images"], results["classes"]) == (18, 9, 3)
    assert "svm: mAP 100.00 by feat4; low-shot 1: 100.00, 2: 100.00" in capsys.readouterr().out


def test_a_class_with_too_few_images_is_named_before_any_work(places, voc, weights, capsys):
    path = places / "svm.yaml"
    path.write_text(CONFIG)
    arguments = ["svm", "--run", "r", "--config", str(path), "--data", str(voc), "--weights", str(weights)]
    assert cli.main([*arguments, "folds=7"]) == 2
    assert "6 training images show class aeroplane, and 7 folds need as many" in capsys.readouterr().err
    assert cli.main([*arguments, "shots=[7]"]) == 2
    assert "class 0 has 6 images with target 1, expected 7 for 7 shots" in capsys.readouterr().err
    others = shutil.copytree(voc, places / "others")
    (others / "ImageSets" / "Main" / "cat_test.txt").rename(others / "ImageSets" / "Main" / "cow_test.txt")
    assert cli.main([*arguments[:-3], str(others), *arguments[-2:]]) == 2
    assert "trainval lists 3 classes, test others" in capsys.readouterr().err
    assert not [*(places / "checkpoints").rglob("*.npy")]
