"""The baselines' own parts, and that their trainings do not depend on the number of processes or on a
stop."""

import copy
import os
import signal
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from tests.support.processes import launch
from tests.support.small_pretrain import ALONE, settings
from triplet import cli, records
from triplet.defaults import recipe
from triplet.errors import Interrupted, KitError
from triplet.images import Files, open_images
from triplet.pretrain.config import Patches, Pretrain, Views
from triplet.pretrain.layout import MicroBatch, make_layout
from triplet.pretrain.methods import METHODS, check
from triplet.pretrain.methods.byol import byol_loss
from triplet.pretrain.methods.common import contrastive_loss
from triplet.pretrain.methods.moco import enqueue
from triplet.pretrain.methods.relative_loc import draw_patches, sample_patches, side_of_patches
from triplet.pretrain.methods.rotation_pred import rotations
from triplet.pretrain.methods.simclr import nt_xent
from triplet.pretrain.objective import backward, make_objective
from triplet.pretrain.trainer import pretrain
from triplet.training import checkpoint
from triplet.training.batch_norm import group_batch_norm
from triplet.training.schedule import learning_rate
from triplet.weights.read import read_backbone


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def test_the_config_takes_every_method_and_no_other():
    assert set(get_args(Pretrain.model_fields["method"].annotation)) == METHODS.keys()


def test_byols_loss_is_minus_twice_the_cosine():
    p, z = unit(5, 4), unit(5, 4, seed=1)
    assert byol_loss(3 * p, z).item() == pytest.approx(-2 * F.cosine_similarity(p, z).mean().item())
    assert byol_loss(p, p).item() == pytest.approx(-2)


def test_simclrs_loss_is_its_formula():
    z, t = unit(6, 4), 0.5
    expected = []
    for i in range(6):
        s = [torch.exp(z[i] @ z[k] / t) for k in range(6)]
        other = i + 1 if i % 2 == 0 else i - 1
        expected.append(-torch.log(s[other] / sum(s[k] for k in range(6) if k != i)))
    assert nt_xent(z, t)[0].item() == pytest.approx(torch.stack(expected).mean().item())
    assert nt_xent(unit(3, 4).repeat_interleave(2, 0), 0.1)[1] == 1
    short = z.bfloat16()
    assert nt_xent(short, t)[0] == nt_xent(short.float(), t)[0]


def test_the_contrastive_loss_is_its_formula():
    positive, negative = torch.tensor([0.9, 0.1]), torch.tensor([[0.2, 0.3], [0.4, -0.5]])
    loss, found = contrastive_loss(positive, negative, 0.2)
    each = [
        np.log(1 + sum(np.exp((n - p) / 0.2) for n in row))
        for p, row in ((0.9, (0.2, 0.3)), (0.1, (0.4, -0.5)))
    ]
    assert loss.item() == pytest.approx(np.mean(each), rel=1e-5)
    assert found == 0.5


def test_the_queue_replaces_its_oldest_keys():
    queue, pointer = torch.zeros(1, 6), torch.zeros(1, dtype=torch.long)
    for first in (1, 3, 5, 7):
        enqueue(queue, pointer, torch.tensor([[first], [first + 1]]).float())
    assert queue.tolist() == [[7, 8, 3, 4, 5, 6]]
    assert pointer == 2


def test_rotations_are_those_of_pil():
    images = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    turned, angle = rotations(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert angle.tolist() == [0, 1, 2, 3] * 2
    for place, found in enumerate(turned):
        expected = Image.fromarray(images[place // 4]).rotate(90 * (place % 4))
        assert np.array_equal(found.permute(1, 2, 0), expected)


def test_patches_lie_in_their_cells_and_move():
    """Each pixel says where it is; 255 pixels, so nothing is resized."""
    y, x = np.mgrid[:255, :255].astype(np.uint8)
    image = Image.fromarray(np.stack([y, x, np.zeros_like(x)], axis=-1))
    config, seen = Patches(resize=255, grayscale=0.0), set()
    for seed in range(40):
        patches = draw_patches(image, config, np.random.default_rng(seed))
        assert patches.shape == (9, 64, 64, 3)
        for place, patch in enumerate(patches):
            offset = patch[0, 0, :2].astype(int) - [85 * (place // 3), 85 * (place % 3)]
            assert (offset >= 0).all()
            assert (offset <= 21).all()
            assert (patch[-1, -1, :2] - patch[0, 0, :2] == 63).all()
            seen |= {*offset.tolist()}
    assert seen == {*range(22)}


def test_the_grid_of_patches_lies_anywhere_in_the_image():
    """Its shorter side is resized alone; each pixel says where it is."""
    y, x = np.mgrid[:40, :50].astype(np.uint8)
    image = Image.fromarray(np.stack([y, x, np.zeros_like(x)], axis=-1))
    views, seen = Views(patches=Patches(resize=40, crop=33, jitter=0, grayscale=0.0)), set()
    for seed in range(150):
        patches = sample_patches(image, views, lambda _, seed=seed: np.random.default_rng(seed), 9)
        top, left = patches[0, 0, 0, :2].tolist()
        assert patches[8, -1, -1, :2].tolist() == [top + 32, left + 32]
        assert patches.shape[1:3] == (side_of_patches(views),) * 2
        seen |= {("top", top), ("left", left)}
    assert seen == {*(("top", n) for n in range(8)), *(("left", n) for n in range(18))}


@pytest.mark.parametrize("shape", [(12, 3), (12, 3, 4, 4)])
def test_batch_norm_of_groups_is_that_of_each_alone(shape):
    make = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    ours, *alone = (nn.Sequential(make(3, eps=0.04, momentum=0.3)) for _ in range(4))
    for (layer,) in (ours, *alone):
        nn.init.constant_(layer.weight[:2], 1.5)
        nn.init.constant_(layer.bias[1:], -0.7)
    group_batch_norm(ours, 3)
    expected = torch.cat([layer(part) for layer, part in zip(alone, x.chunk(3), strict=True)])
    torch.testing.assert_close(ours(x), expected)
    for name, value in alone[0].state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    with pytest.raises(ValueError, match="do not divide into 3 parts"):
        ours(x[:11])
    torch.testing.assert_close(ours.eval()(x[:11]), alone[0].eval()(x[:11]))


def test_a_stepped_learning_rate_falls_to_a_tenth():
    rates = [
        learning_rate(i, peak=1.0, iterations_per_epoch=2, epochs=9, warmup_epochs=0, steps=(3, 5))
        for i in range(12)
    ]
    assert rates == pytest.approx([1.0] * 6 + [0.1] * 4 + [0.01] * 2)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_what_its_protocol_says(method):
    config = settings(method)
    traits = METHODS[method].TRAITS
    objective = make_objective(config, 24, make_layout(config, 1), ALONE).train()
    again = copy.deepcopy(objective)
    side = traits.view_side(config.views)
    pixels = torch.randint(256, (24, traits.views, 3, side, side), dtype=torch.uint8)
    begun = objective.begin(pixels, MicroBatch(0, tuple((0, index) for index in range(24))))
    terms = [objective(begun) for _ in range(traits.terms)]
    assert all(term.shape == () for term in terms)
    total = torch.stack(terms).sum()
    total.backward()
    with pytest.raises(StopIteration) as end:
        next(begun)
    assert len(end.value.value) == len(traits.measures)
    values = backward(again, again.begin(pixels, MicroBatch(0, tuple((0, index) for index in range(24)))))
    assert values.shape == (len(objective.measures),)
    assert values[0] == pytest.approx(total.item())
    assert not values.requires_grad
    for ours, theirs in zip(objective.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert objective.networks.online.backbone.conv1.weight.grad is not None
    online, target = objective.networks.online, getattr(objective.networks, "target", None)
    assert (target is not None) == (method in ("triplet", "byol", "moco"))
    if target is not None:  # no optimiser and no process waits for its gradient
        assert not any(p.requires_grad for p in target.parameters())
        assert target.state_dict().keys() == online.state_dict().keys()
        begins = make_objective(config, 24, make_layout(config, 1), ALONE).networks
        pairs = zip(begins.online.parameters(), begins.target.parameters(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_mocos_first_version_projects_by_one_layer():
    first = METHODS["moco"].build(settings("moco", model={"depth": 18, "width": 8, "hidden": 0}), 24)
    assert type(first.online.projector) is nn.Linear


def test_the_log_says_over_what_bn_goes():
    alone = make_layout(settings("relative-loc", images_per_gpu=12), 1)
    assert (alone.splits, alone.bn_images) == (2, 12)
    assert alone.describe() == "24 images a step = 1 processes x 2 passes x 12 images; BN over 12"
    assert make_layout(settings("moco"), 1).bn_images == make_layout(settings("moco"), 2).bn_images == 12
    assert make_layout(settings("byol"), 2).describe().endswith("12 images; BN over 24")


def trained(folder):
    return torch.load(folder / "checkpoint.pth", weights_only=True)["networks"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_and_two_processes_train_the_same(drawn, tmp_path):
    program = (Path(__file__).with_name("small_baselines.py"),)
    for count in (1, 2):
        running = launch(count, tmp_path / str(count), drawn / "unlabelled", *METHODS, program=program)
        _, error = running.communicate()
        assert running.returncode == 0, error
    for method in METHODS:
        one, two = (trained(tmp_path / count / method) for count in ("1", "2"))
        assert one["online.backbone.conv1.weight"].dtype == torch.float64
        for name, value in one.items():
            torch.testing.assert_close(value, two[name], atol=1e-7, rtol=1e-7, msg=f"{method} {name}")
        assert read_backbone(tmp_path / "1" / method / "checkpoint.pth").format == "kit"


class Stopping(Files):
    """Images whose reader gets a real SIGTERM after some of them."""

    left = 60

    def read(self, index):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().read(index)


@pytest.mark.parametrize("method", ["moco", "npid"])
def test_a_stopped_training_goes_on_with_its_queue_or_memory(drawn, tmp_path, method):
    images = open_images(drawn / "unlabelled")
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    pretrain(settings(method), images, records.Job(tmp_path / "whole"), ALONE)
    job = records.Job(tmp_path / "stopped")
    with pytest.raises(Interrupted, match=r"[1-5] of 6 steps"):
        pretrain(settings(method), Stopping(images.folder, images.names(), None), job, ALONE)
    assert checkpoint.checkpoints(job.folder)
    pretrain(settings(method), images, job, ALONE)
    whole, stopped = trained(tmp_path / "whole"), trained(tmp_path / "stopped")
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("moco", {"contrastive": {"queue": 50}}, "contrastive.queue must be a multiple of the batch, 24"),
        (
            "simclr",
            {"optimizer": {"groups": 2, "accumulate": 2}},
            "optimizer.accumulate must be 1 for simclr",
        ),
        ("byol", {"model": {"hidden": 0}}, "only MoCo has a linear projector"),
        ("npid", {"views": {"backend": "dali", "size": 64}}, "makes two views of an image"),
    ],
)
def test_what_does_not_fit_a_method_is_refused(method, more, message):
    config = settings(method, **more)
    with pytest.raises(KitError, match=message):
        check(config)
    with pytest.raises(KitError, match=message):
        make_layout(config, 1)


def test_a_config_that_does_not_fit_its_method_is_named(places, drawn, capsys):
    config = recipe("moco", "pretrain")
    command = ["pretrain", "--run", "r", "--config", str(config), "--data", str(drawn / "unlabelled")]
    assert cli.main([*command, "contrastive.queue=50"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"triplet pretrain: {config}: contrastive.queue must be a multiple")
    assert error.count("\n") == 1


def test_a_batch_that_is_seen_whole_is_not_cut(drawn, tmp_path):
    with pytest.raises(KitError, match="looks at its 24 images at once, so 24 must fit a GPU"):
        pretrain(
            settings("moco", images_per_gpu=12),
            open_images(drawn / "unlabelled"),
            records.Job(tmp_path),
            ALONE,
        )
