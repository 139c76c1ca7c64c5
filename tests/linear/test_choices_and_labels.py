"""What the linear benchmarks learn from and choose by: tiny features with answers known beforehand."""

import itertools
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.linear import knn, sweep, training
from benchmarks.linear.backbone import Classifier, Head
from benchmarks.linear.config import KnnConfig, Linear, Semi, Sweep, Training
from benchmarks.linear.data import Crops, EpochOrder, Labelled, open_sets
from benchmarks.linear.semi import drawn, from_list
from benchmarks.linear.stage import Task
from benchmarks.linear.sweep import Heads, hold_out, score
from triplet.errors import Interrupted, KitError
from triplet.knn import nearest
from triplet.models.resnet import ResNet
from triplet.pretrain.views import normalize
from triplet.records import Job
from triplet.training.distributed import Processes
from triplet.training.schedule import learning_rate

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)


class Names:
    """Images that have names alone."""

    def __init__(self, names):
        self.names = names

    def name(self, index):
        return self.names[index]


def labelled(labels, classes=3):
    names = Names([f"n{label:02d}/n{label:02d}_{i}.JPEG" for i, label in enumerate(labels)])
    return Labelled(names, np.arange(len(labels)), np.array(labels), [f"n{c:02d}" for c in range(classes)])


class Kept:
    """Features in memory, with the interface of those in shards."""

    def __init__(self, rows):
        self.shards = [np.asarray(rows, dtype=np.float16)]

    def __len__(self):
        return len(self.shards[0])

    def rows(self, places):
        return torch.from_numpy(self.shards[0][places])

    def on(self, device):
        return torch.from_numpy(self.shards[0]).to(device)


def one_hot(labels, classes=3):
    return np.eye(classes)[np.asarray(labels)]


def given(monkeypatch, module, train, test, crops=()):
    """Let the features of a stage be these."""

    def extract(config, task, sets, *, crops=0):
        if crops:
            return {f"train-{i}": Kept(rows) for i, rows in enumerate(more)}
        return {name: Kept({"train": train, "test": test}[name]) for name in sets}

    more = crops
    monkeypatch.setattr(module, "extract", extract)


def evaluated(tmp_path, config, ours, theirs, processes=ALONE):
    job = Job(tmp_path)
    sweep.evaluate(config, config.sweep, Task("run", ours, theirs, {}, processes, job))
    return job.results


def swept(**changes):
    fields = dict(
        crops=0, held_out=0.25, learning_rates=(1e-9, 0.5), weight_decays=(0.0, 0.001), batch=7, epochs=30
    )
    return Linear(sweep=Sweep(**{**fields, **changes}))


def test_the_head_is_chosen_by_held_out_images(tmp_path, monkeypatch):
    """On the test images every trained head is wrong, those at a rate of next to nothing less often."""
    ours, theirs = labelled([0, 1, 2] * 12), labelled([1, 2, 0, 0, 0])
    given(monkeypatch, sweep, 3 * one_hot(ours.labels), 3 * one_hot([0, 1, 2, 1, 2]))
    found = evaluated(tmp_path, swept(), ours, theirs)
    assert found["chosen"]["learning_rate"] == 0.5
    assert found["chosen"]["held_out_top1"] == 100
    assert found["last"] == {"epoch": 30, "top1": 0, "top5": 100}
    assert [(head["learning_rate"], head["weight_decay"]) for head in found["heads"]] == [
        (1e-9, 0.0),
        (1e-9, 0.001),
        (0.5, 0.0),
        (0.5, 0.001),
    ]
    assert found["heads"][0]["held_out_top1"] < 100
    assert (found["images"], found["test_images"], found["classes"], found["views"]) == (27, 5, 3, 1)


def test_nothing_is_learned_from_held_out_images(tmp_path, monkeypatch):
    """They have other labels than all images that look like them, and a mark by which to learn that."""
    ours, theirs = labelled([0, 1, 2] * 12), labelled([0, 1, 2])
    held = hold_out(ours.labels, 0.25, 0)
    assert held.sum() == 9
    looks = np.where(held, (ours.labels + 1) % 3, ours.labels)
    marked = np.concatenate([3 * one_hot(looks), 3 * held[:, None] * one_hot(ours.labels)], 1)
    given(monkeypatch, sweep, marked, np.concatenate([3 * one_hot([0, 1, 2]), np.zeros((3, 3))], 1))
    found = evaluated(tmp_path, swept(learning_rates=(0.5,)), ours, theirs)
    assert found["chosen"]["held_out_top1"] == 0
    assert found["last"]["top1"] == 100


@pytest.mark.parametrize(
    ("rates", "best", "edge"),
    [((1e-9, 0.3), 0.3, True), ((1e-9, 0.3, 1e4), 0.3, False), ((0.3, 1e-9), 0.3, True)],
)
def test_a_best_rate_at_the_edge_of_the_grid_is_said(tmp_path, monkeypatch, rates, best, edge):
    ours = labelled([0, 1, 2, 0, 1, 2, 0, 0] * 6)
    rng = np.random.default_rng(0)
    features = 3 * one_hot(ours.labels) + rng.normal(size=(48, 3))
    given(monkeypatch, sweep, features, features)
    monkeypatch.setattr(sweep, "score", scored({rate: float(rate == best) for rate in rates}, rates))
    found = evaluated(tmp_path, swept(learning_rates=rates, weight_decays=(0.0,)), ours, ours)
    assert (found["chosen"]["learning_rate"], found["at_the_edge"]) == (best, edge)


def scored(values, rates):
    return lambda *_: torch.tensor([[100 * values[rate], 0.0] for rate in rates], dtype=torch.double)


def test_two_processes_train_other_heads_and_choose_among_all(tmp_path, monkeypatch):
    ours, theirs = labelled([0, 1, 2] * 12), labelled([0, 1, 2, 2])
    given(monkeypatch, sweep, 3 * one_hot(ours.labels), 3 * one_hot([0, 1, 2, 0]))
    shares = []

    class Pair(Processes):
        def gather(self, value):
            shares.append(value)
            return shares

    for rank in (0, 1):
        found = evaluated(tmp_path, swept(), ours, theirs, Pair(rank, 2, CPU))
    assert [[pair for pair, *_ in share] for share in shares] == [
        [(1e-9, 0.0), (0.5, 0.0)],
        [(1e-9, 0.001), (0.5, 0.001)],
    ]
    assert found["chosen"]["learning_rate"] == 0.5
    assert found["last"]["top1"] == 75
    pairs = [(head["learning_rate"], head["weight_decay"]) for head in found["heads"]]
    assert pairs == [(1e-9, 0.0), (1e-9, 0.001), (0.5, 0.0), (0.5, 0.001)]


def test_a_sweep_shows_each_image_once_with_its_own_label():
    labels = torch.arange(40) % 3
    kept, asked, steps = np.flatnonzero(np.arange(40) % 4), [], []

    def view(number):
        def rows(places):
            asked.append((number, places.tolist()))
            return torch.tensor([[number, place] for place in places.tolist()], dtype=torch.float)

        return rows

    heads = SimpleNamespace(step=lambda features, labels, factor: steps.append((features, labels, factor)))
    config = Sweep(
        crops=2, held_out=0.2, learning_rates=(1,), weight_decays=(0,), batch=9, epochs=4, warmup_epochs=2
    )
    sweep.train([view(0), view(1), view(2)], labels, kept, heads, config, 5, quiet=True)
    assert len(steps) == 4 * 3
    seen = []
    for number, (features, given_labels, factor) in enumerate(steps):
        places = features[:, 1].long()
        assert torch.equal(given_labels, labels[places])
        assert len(places) == 9
        assert factor == learning_rate(number, peak=1.0, iterations_per_epoch=3, epochs=4, warmup_epochs=2)
        seen.append(list(map(tuple, features.tolist())))
    for epoch in range(4):
        shown = [place for batch in seen[3 * epoch : 3 * epoch + 3] for _, place in batch]
        assert len(set(shown)) == 27
        assert set(shown) <= set(kept.tolist())
    assert {view for batch in seen for view, _ in batch} == {0, 1, 2}
    first = [{place for _, place in seen[3 * epoch]} for epoch in range(4)]
    assert all(one != other for one, other in itertools.combinations(first, 2)), "other orders"
    taken = [{place: view for batch in seen[3 * e : 3 * e + 3] for view, place in batch} for e in (0, 1)]
    assert any(taken[0][place] != taken[1][place] for place in kept), "other views"


def test_scores_are_counted_by_hand_over_many_parts():
    """Half of 5000 images in two parts, seven classes, heads that are right about other images."""
    labels = torch.arange(5000) % 7
    places = np.arange(0, 5000, 2)
    heads = Heads(7, 7, torch.tensor([1.0, 2.0]), torch.zeros(2), 0.9, 0, CPU)
    # The first head says the class itself, then the next ones; the second one is five classes off.
    order = torch.stack([torch.roll(torch.arange(7.0, 0, -1), n) for n in range(7)])
    heads.weight = torch.cat([order, torch.roll(order, 5, 1)], 1)
    heads.bias = torch.zeros(14)
    wrong = labels.clone()
    wrong[:2000] = (labels[:2000] + 1) % 7
    found = score(lambda p: F.one_hot(labels[torch.from_numpy(p)], 7).half(), places, wrong, heads)
    # 1000 of 2500 are one class off: second of the first head's; of the other's order 5, 6, 0, 1, 2, 3, 4.
    assert found.tolist() == [[60.0, 100.0], [0.0, 100.0]]


def test_held_out_images_are_drawn_by_the_seed():
    labels = np.arange(60) % 3
    one, other = hold_out(labels, 0.3, 0), hold_out(labels, 0.3, 1)
    assert not np.array_equal(one, other)
    assert sorted(np.flatnonzero(one)) != [*range(18)]
    with pytest.raises(KitError, match="a class with one training image"):
        hold_out(np.array([0, 0, 1]), 0.3, 0)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_neighbours_vote_by_the_configs_temperature(tmp_path, monkeypatch, processes):
    """By hand: exp(cosine / 0.5) of the nearest k, however the queries are shared and cut."""
    rng = np.random.default_rng(4)
    ours, theirs = labelled(rng.integers(0, 3, 30)), labelled(rng.integers(0, 3, 61))
    bank, queries = (rng.normal(size=(n, 4)).astype(np.float16) for n in (30, 61))
    given(monkeypatch, knn, bank, queries)
    monkeypatch.setattr(knn, "QUERIES", 8)
    job, shares = Job(tmp_path), []

    class Several(Processes):
        def gather(self, value):
            shares.append(value)
            return shares

    config = KnnConfig(neighbours=(3, 17), temperature=0.5)
    for rank in range(processes):
        knn._classify(config, Task("run", ours, theirs, {}, Several(rank, processes, CPU), job))
    unit = [
        x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (bank, queries)
    ]
    cosines = unit[1] @ unit[0].T
    for k in (3, 17):
        right = 0
        for row, answer in zip(cosines, theirs.labels, strict=True):
            votes = np.zeros(3)
            for place in np.argsort(-row)[:k]:
                votes[ours.labels[place]] += np.exp(row[place] / 0.5)
            right += votes.argmax() == answer
        assert job.results[f"top1_{k}"] == pytest.approx(100 * right / 61)
    assert job.results["top1_3"] != job.results["top1_17"]
    assert [job.results[key] for key in ("images", "test_images", "classes")] == [30, 61, 3]


def test_a_stop_between_two_parts_says_how_many_are_classified(tmp_path, monkeypatch):
    rng = np.random.default_rng(4)
    ours, theirs = labelled(rng.integers(0, 3, 9)), labelled(rng.integers(0, 3, 61))
    given(monkeypatch, knn, rng.normal(size=(9, 4)), rng.normal(size=(61, 4)))
    monkeypatch.setattr(knn, "QUERIES", 8)
    asked = []

    def nearest_of_a_stopped_process(*arguments):
        asked.append(arguments)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return nearest(*arguments)

    monkeypatch.setattr(knn, "nearest", nearest_of_a_stopped_process)
    task = Task("run", ours, theirs, {}, ALONE, Job(tmp_path))
    with pytest.raises(Interrupted, match="the features are kept, 16 of 61 images are classified"):
        knn._classify(KnnConfig(neighbours=(3,)), task)


def test_a_part_of_the_labels_is_the_same_share_of_each_class():
    train = labelled([0] * 40 + [1] * 10 + [2] * 3)
    found = drawn(train, semi(percent=16))  # 6.4, 1.6 and 0.48 images
    assert np.bincount(found.labels).tolist() == [6, 2, 1]
    assert found.indices.tolist() == sorted(found.indices)
    assert found.indices.tolist() != drawn(train, semi(percent=16, seed=1)).indices.tolist()
    assert np.bincount(drawn(train, semi(percent=100)).labels).tolist() == [40, 10, 3]


def semi(percent, seed=0):
    return Semi(percent=percent, seed=seed, training=Training(num_replicas=1, learning_rate=1, epochs=1))


def test_a_list_names_images_in_its_own_order(tmp_path):
    train = labelled([0, 0, 1, 2, 2])
    (tmp_path / "list").write_text("n02_4.JPEG\n\nn00/n00_1.JPEG 0\nsomewhere/n01_2.JPEG 7\n")
    found = from_list(train, tmp_path / "list")
    assert (found.indices.tolist(), found.labels.tolist()) == ([4, 1, 2], [2, 0, 1])
    some = from_list(train.only([4, 2, 1]), tmp_path / "list")  # as after --classes
    assert (some.indices.tolist(), some.labels.tolist()) == ([4, 1, 2], [2, 0, 1])
    for text, message in (
        ("n00_1.JPEG\nn00_1.JPEG\n", "lists 2 images, 1 different"),
        ("", "lists 0 images, 0 different"),
        ("n00_1.JPEG\nn00_7.JPEG\nn00_8.JPEG\n", "names 2 of 3 images .* n00_7.JPEG first"),
    ):
        (tmp_path / "list").write_text(text)
        with pytest.raises(KitError, match=message):
            from_list(train, tmp_path / "list")
    twins = Labelled(Names(["a/x.png", "b/x.png"]), np.arange(2), np.array([0, 1]), ["a", "b"])
    with pytest.raises(KitError, match="1 training images share a name"):
        from_list(twins, tmp_path / "list")


def test_the_head_begins_small_and_knows_of_no_epoch():
    torch.manual_seed(0)
    head = Head(300, 20, 4)
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not head.bias.any()
    assert head.history.tolist() == [[-1, -1]] * 4


def test_the_best_and_the_last_epoch_are_told_apart(tmp_path):
    config = Training(num_replicas=1, learning_rate=1, epochs=4, batch=3)
    head = Head(2, 3, 4)
    head.history.copy_(torch.tensor([[10.0, 90.0], [30.0, 60.0], [30.0, 95.0], [20.0, 91.0]]))
    model = Classifier(ResNet(18, 8), head, frozen=True, mixed=False)
    task = Task("run", labelled([0, 1, 2, 0]), labelled([0, 1]), {}, ALONE, Job(tmp_path / "linear" / "x"))
    task.job.folder.mkdir(parents=True)
    pace = SimpleNamespace(average=lambda: 12.5)
    order = EpochOrder(4, config, 0)
    fitting = training._Fitting(model, model, None, None, config, task, order, None, 0, pace)
    fitting.finish()
    assert task.job.results == {
        "last": {"epoch": 4, "top1": 20, "top5": 91},
        "best": {"epoch": 2, "top1": 30, "top5": 60},
        "images": 4,
        "test_images": 2,
        "classes": 3,
    }
    assert task.job.images_per_second == 12.5
    state = torch.load(tmp_path / "linear" / "x" / "checkpoint.pth", weights_only=True)
    assert (state["step"], state["epoch"]) == (8, 4)


def test_finetuning_is_a_plain_loop_over_all_of_the_network(tmp_path, imagenet):
    """Four steps in float64: the head at its own rate, momentum, decay, BN over the batch."""
    chosen = dict(
        num_replicas=3,
        batch=9,
        learning_rate=0.03,
        head=7,
        momentum=0.8,
        weight_decay=0.02,
        epochs=4,
        steps=(1, 3),
        gamma=0.3,
    )
    settings = Semi(
        percent=50, seed=6, workers=0, training=Training(**chosen), images={"size": 32, "shorter": 36}
    )
    ours, theirs = (
        each.only(np.arange(0, len(each), 5)) for each in open_sets(imagenet / "train", imagenet / "val")
    )
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(1)
        model = Classifier(ResNet(18, 8), Head(64, 3, 4), frozen=False, mixed=False)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        job = Job(tmp_path)
        training.fit(model, settings, settings.training, Task("run", ours, theirs, {}, ALONE, job))
        plain = Classifier(ResNet(18, 8), Head(64, 3, 4), frozen=False, mixed=False)
        plain.load_state_dict(start)
        plain.train()
        backbone, head = plain.backbone, plain.head
        buffers = {name: torch.zeros_like(p) for name, p in plain.named_parameters()}
        crops, order = Crops(ours, settings.images, 6), EpochOrder(len(ours), settings.training, 6)
        batches = list(order.batches(0, 0, 1))
        assert [len(batch) for batch in batches] == [9] * 4
        for step, batch in enumerate(batches):
            pixels = torch.stack([torch.tensor(crops[item][0]).permute(2, 0, 1) for item in batch])
            labels = torch.tensor([ours.labels[place] for _, place in batch])
            logits = nn.functional.linear(
                backbone(normalize(pixels, torch.float64)).mean((2, 3)), head.weight, head.bias
            )
            plain.zero_grad()
            F.cross_entropy(logits, labels).backward()
            rate = 0.03 * (1, 0.3, 0.3, 0.09)[step]
            with torch.no_grad():
                for name, p in plain.named_parameters():
                    buffers[name] = 0.8 * buffers[name] + p.grad + 0.02 * p
                    p -= rate * (7 if name.startswith("head.") else 1) * buffers[name]
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in plain.state_dict().items():
        if name != "head.history":
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-9, msg=name)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["epoch"]) for line in lines] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert [line["top1"] for line in lines] == model.head.history[:, 0].tolist()
