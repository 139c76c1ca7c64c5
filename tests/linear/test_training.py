"""The published protocol: the recipe's numbers, known answers, runs that end the same however they went."""

import json
import math
import os
import re
import signal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.linear.backbone import Classifier, Head, load_backbone, pooled
from benchmarks.linear.config import Linear, Semi
from benchmarks.linear.data import CenterCrops, Crops, EpochOrder, collate, open_sets
from benchmarks.linear.semi import drawn
from benchmarks.linear.stage import Task
from benchmarks.linear.training import correct, evaluate, fit, make_optimizer, rate
from tests.conftest import KIT
from tests.linear.conftest import IMAGES, PROBE, draw
from tests.support.processes import DOUBLE, children, group_is_gone, launch, start, wait_until
from triplet import cli
from triplet.config import load
from triplet.errors import KitError
from triplet.models.resnet import ResNet
from triplet.pretrain.views import normalize
from triplet.records import Job
from triplet.signals import Stop
from triplet.training.distributed import Processes

CONFIGS = KIT / "configs" / "linear"
PER_EPOCH = 5005
"""ImageNet's 1 281 167 images in batches of 256."""


def record(places, stage="linear", run="run"):
    return json.loads((places / "checkpoints" / run / stage / stage / "record.json").read_text())


def head(places, run="run", stage="linear"):
    path = places / "checkpoints" / run / stage / stage / "checkpoint.pth"
    return torch.load(path, weights_only=True)["networks"]


@pytest.mark.parametrize(("name", "peak"), [("coslr0.15", 0.15), ("coslr0.04", 0.04)])
def test_the_authors_learning_rate_is_mmcvs(name, peak):
    """CosineAnnealing by epoch with warmup='linear', warmup_iters=10, warmup_ratio=1e-4, by epoch."""
    training = load(CONFIGS / f"resnet50_8x32-{name}-100e_imagenet.yaml", Linear).training
    order = EpochOrder(1_281_167, training, 0)
    assert (order.per_epoch, order.filled) == (PER_EPOCH, 1_281_168)
    warm = 10 * PER_EPOCH
    for step in (0, 1, 5004, 5005, 31_000, warm - 1, warm, warm + 1, 250_000, order.steps - 1):
        regular = peak * 0.5 * (1 + math.cos(math.pi * (step // PER_EPOCH) / 100))
        k = (1 - step / warm) * (1 - 0.0001)
        expected = regular * (1 - k) if step < warm else regular
        assert rate(step, training, PER_EPOCH) == pytest.approx(expected, rel=1e-12)
    assert (training.batch, training.momentum, training.weight_decay) == (256, 0.9, 0)


def test_the_baselines_learning_rate_falls_twice():
    training = load(CONFIGS / "resnet50_8x32-steplr30-100e_imagenet.yaml", Linear).training
    assert [rate(e * PER_EPOCH, training, PER_EPOCH) for e in (0, 59, 60, 79, 80, 99)] == pytest.approx(
        [30, 30, 3, 3, 0.3, 0.3]
    )


@pytest.mark.parametrize(("percent", "decay"), [(1, 5e-4), (10, 1e-4)])
def test_semi_supervised_settings_are_openselfsups(percent, decay):
    name = f"semi_resnet50_4x64-steplr0.01-20e_imagenet-{percent}percent.yaml"
    settings = load(CONFIGS / name, Semi)
    training = settings.training
    rates = [rate(e * 51, training, 51) for e in (0, 11, 12, 15, 16, 19)]
    assert rates == pytest.approx([0.01, 0.01, 0.002, 0.002, 0.0004, 0.0004])
    assert (settings.percent, training.weight_decay, training.head, training.batch) == (
        percent,
        decay,
        100,
        256,
    )
    model = Classifier(ResNet(18, 4), Head(32, 3, 1), frozen=False, mixed=False)
    first, second = make_optimizer(model, training).param_groups
    assert (first["lr_mult"], second["lr_mult"]) == (100, 1)
    assert [p.shape for p in first["params"]] == [(3, 32), (3,)]
    assert len(second["params"]) == len(list(model.backbone.parameters()))


def test_bright_and_dark_images_are_told_apart(places, run):
    assert cli.main(run("linear", PROBE)) == 0
    results = record(places)["results"]
    assert results["last"] == {"epoch": 8, "top1": 100, "top5": 100}
    assert results["best"]["top1"] == 100
    assert (results["protocol"], results["images"], results["classes"]) == ("published", 45, 3)


def test_shuffled_labels_are_not_learned(places, run, tmp_path):
    """Chance is a third; of 90 images more than half right would be five deviations off."""
    data = tmp_path / "shuffled"
    draw(data / "train", 15, 0, shuffled=True)
    draw(data / "val", 30, 1, shuffled=True)
    assert cli.main(run("linear", PROBE, data=data)) == 0
    assert record(places)["results"]["last"]["top1"] < 50


def test_the_best_epoch_is_the_first_of_the_highest(places, run, imagenet):
    """A learning rate that falls to nothing at once leaves the first epoch's result to all others."""
    steps = PROBE.replace("warmup_epochs: 1", "steps: [1], gamma: 1.0e-30")
    assert cli.main(run("linear", steps)) == 0
    results = record(places)["results"]
    assert results["best"]["epoch"] == 1
    assert results["best"]["top1"] == results["last"]["top1"]
    lines = (places / "checkpoints/run/linear/linear/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 9))


def test_each_step_is_the_recipes(places, run, imagenet, weights):
    """Against a plain loop: frozen backbone in evaluation mode, mean cross-entropy, SGD with momentum."""
    text = PROBE.replace("epochs: 8", "epochs: 3, weight_decay: 0.01").replace(
        "num_replicas: 4", "num_replicas: 2"
    )
    assert cli.main(run("linear", text, "seed=3")) == 0
    settings = load(places / "linear.yaml", Linear, ["seed=3"])
    ours, theirs = open_sets(imagenet / "train", imagenet / "val")
    backbone, _ = load_backbone(weights)
    backbone.eval()
    torch.manual_seed(3)
    plain = nn.Linear(64, 3)
    nn.init.normal_(plain.weight, std=0.01)
    nn.init.zeros_(plain.bias)
    buffers = [torch.zeros_like(p) for p in plain.parameters()]
    crops, order = Crops(ours, settings.images, 3), EpochOrder(45, settings.training, 3)
    for step, batch in enumerate(order.batches(0, 0, 1)):
        pixels = torch.stack([torch.tensor(crops[item][0]).permute(2, 0, 1) for item in batch])
        labels = torch.tensor([ours.labels[place] for _, place in batch])
        with torch.no_grad():
            features = backbone(normalize(pixels)).mean((2, 3))
        loss = F.cross_entropy(plain(features), labels)
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        lr = 0.25 * (1 + math.cos(math.pi * (step // 3) / 3))
        if step < 3:
            lr *= 1 - (1 - step / 3) * (1 - 1e-4)
        with torch.no_grad():
            for p, g, buffer in zip(plain.parameters(), gradients, buffers, strict=True):
                buffer.mul_(0.9).add_(g + 0.01 * p)
                p.sub_(lr * buffer)
    found = head(places)
    torch.testing.assert_close(found["weight"], plain.weight.data, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found["bias"], plain.bias.data, atol=1e-6, rtol=1e-4)
    centres = torch.stack(
        [torch.tensor(CenterCrops(theirs, settings.images)[i][0]).permute(2, 0, 1) for i in range(15)]
    )
    with torch.no_grad():
        right = plain(backbone(normalize(centres)).mean((2, 3))).argmax(1) == torch.from_numpy(
            theirs.labels
        )
    assert record(places)["results"]["last"]["top1"] == pytest.approx(100 * right.float().mean().item())


def test_top_five_counts_the_first_five():
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6], [0.0, 9, 0, 0, 0, -1]])
    assert correct(logits, torch.tensor([0, 0, 1])).tolist() == [2, 2]
    assert correct(logits, torch.tensor([4, 1, 5])).tolist() == [0, 2]
    assert correct(logits[:, :3], torch.tensor([2, 2, 2])).tolist() == [1, 3]


def test_finetuning_moves_the_backbone_and_the_probe_does_not(places, run, weights, tmp_path):
    names = tmp_path / "list.txt"
    names.write_text("n01440764_3.png\nn02102040/n02102040_7.png 1\n\nn03028079_0.png\nn03028079_1.png\n")
    text = PROBE.replace("learning_rate: 0.5", "learning_rate: 0.01, head: 10, evaluate_every: 8")
    assert cli.main(run("semi", text + "percent: 1\n", "--list", str(names))) == 0
    found = record(places, "semi")
    assert (found["results"]["images"], found["results"]["drawn"]) == (4, False)
    assert found["results"]["best"]["epoch"] == 8
    assert found["inputs"]["list"]["sha256"]
    state = head(places, stage="semi")
    assert {"backbone.conv1.weight", "head.weight"} <= state.keys()
    before = load_backbone(weights)[0].state_dict()
    assert not torch.equal(state["backbone.layer4.0.conv1.weight"], before["layer4.0.conv1.weight"])
    assert not torch.equal(state["backbone.bn1.running_mean"], before["bn1.running_mean"])
    assert cli.main(run("linear", PROBE)) == 0
    assert head(places).keys() == {"weight", "bias", "history"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_seed_and_precision_give_a_few_labels_their_network(places, run, imagenet, weights, precision):
    """One step without a learning rate, beside a plain forward pass of the same images."""
    text = IMAGES + f"seed: 5\npercent: 20\nprecision: {precision}\n"
    text += "training: {num_replicas: 1, batch: 64, learning_rate: 1.0e-12, epochs: 1}\n"
    assert cli.main(run("semi", text, "--draw")) == 0
    settings = load(places / "semi.yaml", Semi)
    train = drawn(open_sets(imagenet / "train", imagenet / "val")[0], settings)
    backbone, _ = load_backbone(weights)
    torch.manual_seed(5)
    head_of_seed = Head(backbone.channels, 3, 1)
    crops = Crops(train, settings.images, 5)
    order = next(EpochOrder(len(train), settings.training, 5).batches(0, 0, 1))
    pixels, _ = collate([crops[item] for item in order])
    pooled(backbone.train(), pixels, mixed=precision == "bfloat16")
    found = head(places, stage="semi")
    torch.testing.assert_close(found["head.weight"], head_of_seed.weight, atol=1e-9, rtol=0)
    mean = found["backbone.layer4.1.bn2.running_mean"]
    torch.testing.assert_close(mean, backbone.layer4[1].bn2.running_mean, atol=1e-6, rtol=1e-5)
    results = record(places, "semi")["results"]
    counts = [results[key] for key in ("images", "test_images", "classes", "percent", "drawn")]
    assert counts == [9, 15, 3, 20, True]


LONG = PROBE.replace("epochs: 8", "epochs: 16, checkpoint_every: 3, evaluate_every: 4")


def learned(places, run, stage="linear"):
    """What a run ends with, but for what the clock says."""
    lines = (places / "checkpoints" / run / stage / stage / "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in values]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "number"), [("linear", signal.SIGTERM), ("semi", signal.SIGKILL)])
def test_a_killed_run_ends_as_one_that_was_never_killed(places, run, stage, number):
    extra = ("--draw",) if stage == "semi" else ()
    text = LONG + ("percent: 40\n" if stage == "semi" else "")
    assert cli.main(run(stage, text, *extra, name="whole")) == 0
    arguments = run(stage, text, *extra, name="killed")
    process = start(*arguments)
    folder = places / "checkpoints" / "killed" / stage / stage
    wait_until(lambda: list(folder.glob("step_*.pth")), process)
    process.send_signal(number)
    out, error = process.communicate()
    if number == signal.SIGTERM:
        assert process.returncode == 143, error
        assert "stopped by SIGTERM" in error
        assert "Traceback" not in out + error
    assert not (folder / "record.json").exists()
    assert cli.main(arguments) == 0
    ours, theirs = head(places, "killed", stage), head(places, "whole", stage)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert learned(places, "killed", stage) == learned(places, "whole", stage)
    assert record(places, stage, "killed")["results"] == record(places, stage, "whole")["results"]


def test_a_killed_loader_process_costs_nothing(places, run):
    arguments = run("linear", LONG, "workers=2")
    process = start(*arguments, session=True)
    folder = places / "checkpoints" / "run" / "linear" / "linear"
    wait_until(lambda: list(folder.glob("step_*.pth")), process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert "a process that loads images was killed, mostly for want of memory" in error
    assert error.count("\n") == 1
    assert group_is_gone(process)
    assert list(folder.glob("step_*.pth"))
    assert cli.main(arguments) == 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["linear", "semi"])
def test_two_processes_train_as_one(places, run, stage):
    """In float64; 45 images are filled up to 48, and the finetuned network pools its BN statistics."""
    extra = ("--draw", "percent=40", "training.learning_rate=0.01") if stage == "semi" else ()
    text = PROBE.replace("epochs: 8", "epochs: 3") + ("percent: 1\n" if stage == "semi" else "")
    running = launch(2, *run(stage, text, *extra, name="p2"), program=DOUBLE)
    torch.set_default_dtype(torch.float64)
    try:
        assert cli.main(run(stage, text, *extra, name="p1")) == 0
    finally:
        torch.set_default_dtype(torch.float32)
    out, error = running.communicate()
    assert running.returncode == 0, error
    assert out.count("top-1") == 1
    one, two = (head(places, f"p{processes}", stage) for processes in (1, 2))
    assert next(iter(one.values())).dtype == torch.float64
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-9, rtol=1e-9, msg=key)
    results = [record(places, stage, f"p{processes}")["results"] for processes in (1, 2)]
    assert results[0] == results[1]


def test_an_evaluation_that_is_told_to_stop_gives_no_number(run, places, imagenet, weights):
    run("linear", PROBE)
    settings, alone = load(places / "linear.yaml", Linear), Processes(0, 1, torch.device("cpu"))
    model = Classifier(load_backbone(weights)[0], Head(64, 3, 8), frozen=True, mixed=False).train()
    _, test = open_sets(imagenet / "train", imagenet / "val")
    stop = Stop()
    top1, top5 = evaluate(model, test, settings, alone, stop)
    assert (0 <= top1 <= 100, top5) == (True, 100)
    assert model.training
    assert not model.backbone.training
    stop.signal = signal.SIGTERM
    assert evaluate(model, test, settings, alone, stop) is None


def test_processes_that_do_not_divide_the_batch_are_refused(places, run, imagenet, weights):
    run("linear", PROBE)
    settings = load(places / "linear.yaml", Linear)
    backbone, _ = load_backbone(weights)
    model = Classifier(backbone, Head(64, 3, 8), frozen=True, mixed=False)
    three = Processes(0, 3, torch.device("cpu"))
    task = Task("run", *open_sets(imagenet / "train", imagenet / "val"), {}, three, Job(places))
    with pytest.raises(KitError, match=r"3 processes do not share training\.num_replicas=4 equally"):
        fit(model, settings, settings.training, task)


@pytest.mark.parametrize(
    ("stage", "extra", "message"),
    [
        ("semi", [], r"--list FILE; SimCLR's imagenet_subsets.*or --draw one by the seed: found neither"),
        ("semi", ["--draw", "--list", "LIST"], "found both"),
        (
            "semi",
            ["--list", "LIST"],
            "names 1 of 2 images that are not in the training set, nobody.JPEG first",
        ),
        ("semi", ["--list", "nowhere"], "nothing at nowhere"),
        (
            "linear",
            ["training.num_replicas=5"],
            r"training: batch must be a multiple of num_replicas \(5\)",
        ),
        ("linear", ["training.learning_rate=1e38"], "loss is (nan|inf) at step"),
        ("linear", ["--weights", "nothing.pth"], "no weights at nothing.pth|nothing at nothing.pth"),
    ],
)
def test_what_cannot_be_run_is_refused_in_a_line(places, run, tmp_path, capsys, stage, extra, message):
    (tmp_path / "LIST").write_text("n01440764_0.png\nnobody.JPEG\n")
    extra = [str(tmp_path / word) if word == "LIST" else word for word in extra]
    text = PROBE + ("percent: 1\n" if stage == "semi" else "")
    assert cli.main(run(stage, text, *extra)) == 2
    assert re.search(message, capsys.readouterr().err)


def test_without_weights_the_runs_pretraining_is_asked_for(places, run, capsys):
    arguments = run("linear", PROBE)
    del arguments[arguments.index("--weights") : arguments.index("--weights") + 2]
    assert cli.main(arguments) == 2
    assert "run first: triplet pretrain --run run" in capsys.readouterr().err
