"""VOC07's labels, fits and summaries beside scikit-learn and tables made by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC
from torch.nn import functional as F

from benchmarks.linear import svm
from benchmarks.linear.backbone import load_backbone
from benchmarks.linear.config import Svm
from benchmarks.linear.svm import _fits, summary
from benchmarks.linear.svm_fit import Fit, average_precision
from benchmarks.linear.svm_fit import run as fit_svm
from benchmarks.linear.voc import Split, VOC07Images, low_shot, pooled_layers, read_split
from triplet.errors import KitError
from triplet.models.resnet import ResNet
from triplet.pretrain.views import normalize

# VOC: six training images of two classes, of which some are difficult, and five test images.
TRAIN = Split([*"abcdef"], np.array([[1, 0], [1, -1], [0, 1], [-1, 1], [0, 1], [1, 0]]), ["cat", "dog"])
PARTS = (("trainval", 9), ("test", 4))
TEST = Split([*"vwxyz"], np.array([[1, -1], [-1, 1], [0, 0], [0, 1], [1, 0]]), ["cat", "dog"])


def test_difficult_images_train_as_negatives_and_are_not_tested(tmp_path):
    settings = Svm(layers=(2, 4), costs=(0.25, 3.0), folds=3, shots=(1,), samples=2, seed=5)
    fits = list(_fits(settings, [TRAIN, TEST], tmp_path))
    assert [fit.key for fit in fits if fit.key[0] == 4] == [
        (4, 0, 0.25),
        (4, 0, 3.0),
        (4, 0, "shots", 1, 0),
        (4, 0, "shots", 1, 1),
        (4, 1, 0.25),
        (4, 1, 3.0),
        (4, 1, "shots", 1, 0),
        (4, 1, "shots", 1, 1),
    ]
    for fit in fits:
        layer, number, *shots = fit.key
        labels = ([1, 1, -1, -1, -1, 1], [-1, -1, 1, 1, 1, -1])[number]
        assert fit.answers.tolist() == ([1, -1, 0, 0, 1], [-1, 1, 0, 1, 0])[number]
        assert (fit.train.name, fit.test.name) == (f"trainval_feat{layer}.npy", f"test_feat{layer}.npy")
        assert fit.seed == 5
        if shots[0] == "shots":
            rows = low_shot(TRAIN.targets, number, 1, shots[2], 5).tolist()
            assert (fit.costs, fit.folds, fit.rows.tolist()) == ((0.25, 3.0), 0, rows)
            assert fit.labels.tolist() == [labels[row] for row in rows]
        else:
            assert (fit.costs, fit.folds, fit.rows.tolist()) == ((shots[0],), 3, [*range(6)])
            assert fit.labels.tolist() == labels
    with pytest.raises(KitError, match="3 training images show class cat, and 4 folds need as many"):
        list(_fits(Svm(costs=(1.0,), folds=4), [TRAIN, TEST], tmp_path))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_fit_is_scikit_learns_with_the_protocols_weights(tmp_path):
    """Overlapping classes, one in five positive: other weights, costs or rows give other numbers."""
    rng = np.random.default_rng(1)
    labels = np.where(np.arange(90) % 5 == 0, 1, -1)
    whole, tested = (rng.normal(size=(90, 6)) + 0.7 * (labels[:, None] > 0) for _ in range(2))
    for name, rows in (("train", whole), ("test", tested)):
        np.save(tmp_path / f"{name}.npy", rows)
    answers = np.where(labels > 0, 1, 0)
    answers[::7] = -1
    rows = np.flatnonzero(np.arange(90) % 3)
    paths = tmp_path / "train.npy", tmp_path / "test.npy"
    found = fit_svm(Fit((1,), *paths, rows, labels[rows], answers, (0.01, 50.0), 3, 8))
    seen = answers >= 0
    for number, cost in enumerate((0.01, 50.0)):

        def model(cost=cost, weight=2):
            return LinearSVC(
                C=cost, class_weight={1: weight, -1: 1}, max_iter=2000, random_state=8, dual=True
            )

        plain = model().fit(whole[rows], labels[rows])
        expected = average_precision(answers[seen], plain.decision_function(tested)[seen])
        assert found["test"][number] == pytest.approx(expected)
        scores = cross_val_score(model(), whole[rows], labels[rows], cv=3, scoring="average_precision")
        assert found["folds"][number] == pytest.approx(scores.mean())
        other = model(weight=1).fit(whole[rows], labels[rows]).decision_function(tested)
        assert average_precision(answers[seen], other[seen]) != pytest.approx(expected)
    assert len({*found["test"], *found["folds"]}) == 4


def test_low_shot_numbers_are_of_the_samples_in_percent():
    settings = Svm(costs=(0.5, 4.0, 9.0), shots=(2,), samples=3)
    values = np.array([[0.1, 0.5, 0.3], [0.2, 0.3, 0.4], [0.3, 0.7, 0.1]])  # sample, cost
    done = {
        (5, 0, cost): {"folds": [f], "test": [t]}
        for cost, f, t in ((0.5, 0.2, 0.9), (4.0, 0.4, 0.6), (9.0, 0.3, 0.7))
    }
    done |= {(5, 0, "shots", 2, sample): {"test": row.tolist()} for sample, row in enumerate(values)}
    found = summary(settings, 5, 1, done)
    assert (found["mAP"], found["costs"]) == (pytest.approx(60), [4.0])
    assert found["low_shot"] == {
        "2": pytest.approx(
            {"mean": 50, "std": 100 * np.std([0.5, 0.3, 0.7]), "min": 30, "max": 70, "cost": 4.0}
        )
    }
    assert summary(settings.model_copy(update={"samples": 0}), 5, 1, done)["low_shot"] == {}


def test_words_of_the_lists_mean_what_voc_says(tmp_path):
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "test.txt").write_text("b\na\nc\n")
    (main / "dog_test.txt").write_text("a -1\nb  0\nc  1\n")
    (main / "cat_test.txt").write_text("c  0\na  1\nb -1\n")
    (tmp_path / "JPEGImages").mkdir()
    for name in "abc":
        (tmp_path / "JPEGImages" / f"{name}.jpg").touch()
    found = read_split(tmp_path, "test")
    assert (found.names, found.classes) == ([*"abc"], ["cat", "dog"])
    assert found.targets.tolist() == [[1, 0], [0, -1], [-1, 1]]
    (main / "._cat_test.txt").write_text("which a Mac leaves")
    assert read_split(tmp_path, "test").classes == ["cat", "dog"]
    for last in ("b", "d -1", "b 2", "b -1\nb -1"):
        (main / "cat_test.txt").write_text(f"c  0\na  1\n{last}\n")
        with pytest.raises(KitError, match=r"cat_test.txt does not list 1, 0 or -1 for each image"):
            read_split(tmp_path, "test")


def test_features_of_a_layer_are_pooled_and_normalised():
    torch.manual_seed(0)
    backbone, pixels = ResNet(18, 8).eval(), torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        found = pooled_layers(backbone, pixels, [1, 3])
        x = backbone.relu(backbone.bn1(backbone.conv1(normalize(pixels))))
        stem = F.avg_pool2d(x, 10, 10, 4).flatten(1).double()
        x = backbone.layer2(backbone.layer1(backbone.maxpool(x)))
        third = F.avg_pool2d(x, 13, 5, 0).flatten(1).double()
    for ours, plain in zip(found, (stem, third), strict=True):
        torch.testing.assert_close(ours, plain / (plain.norm() + 1e-5), rtol=1e-12, atol=0)


def test_features_are_those_of_each_image_of_its_split(tmp_path, weights, monkeypatch):
    """Thirteen images in batches of five; a split of which one layer is missing is computed again."""
    monkeypatch.setattr(svm, "BATCH", 5)
    folder, rng = tmp_path / "VOC2007", np.random.default_rng(0)
    (folder / "JPEGImages").mkdir(parents=True)
    splits = [
        Split([f"{part}{i}" for i in range(count)], TRAIN.targets, TRAIN.classes) for part, count in PARTS
    ]
    for split in splits:
        for name in split.names:
            pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
    settings = Svm(layers=(5, 4), costs=(1.0,), workers=0, precision="float32")
    svm._extract(settings, weights, folder, splits, tmp_path, torch.device("cpu"))
    backbone = load_backbone(weights)[0].eval()
    for (part, _), split in zip(PARTS, splits, strict=True):
        pixels, places = zip(*(VOC07Images(folder, split)[i] for i in range(len(split.names))), strict=True)
        assert list(places) == list(range(len(split.names)))
        with torch.no_grad():
            plain = pooled_layers(backbone, torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2), (4, 5))
        for layer, expected in zip((4, 5), plain, strict=True):
            np.testing.assert_allclose(np.load(tmp_path / f"{part}_feat{layer}.npy"), expected, atol=1e-5)
    made = (tmp_path / "test_feat4.npy").read_bytes()
    (tmp_path / "test_feat4.npy").unlink()
    (tmp_path / "test_feat5.npy").write_bytes(b"")
    (tmp_path / "trainval_feat5.npy").write_bytes(b"kept")
    svm._extract(settings, weights, folder, splits, tmp_path, torch.device("cpu"))
    assert (tmp_path / "test_feat4.npy").read_bytes() == made
    assert (tmp_path / "trainval_feat5.npy").read_bytes() == b"kept"


def test_each_seed_sample_shots_and_class_is_its_own_draw():
    targets = np.tile(np.repeat([1, 0], [20, 60])[:, None], (1, 2))
    draws = {
        (seed, sample, shots, number): tuple(low_shot(targets, number, shots, sample, seed))
        for seed in (0, 1)
        for sample in (0, 1)
        for shots in (5, 6)
        for number in (0, 1)
    }
    assert len({*draws.values()}) == len(draws) == 16
    assert all(list(draw) == sorted({*draw}) for draw in draws.values())
    assert len(low_shot(targets, 0, 20, 0, 0)) == 40  # all that there are
