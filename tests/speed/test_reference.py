"""The released formulations compute what the kit computes."""

import copy

import pytest
import torch
from torch import nn
from torchvision import transforms

from benchmarks.speed import photos, reference
from benchmarks.speed.steps import Kit
from triplet.images import open_images
from triplet.models.networks import Networks
from triplet.pretrain import trainer
from triplet.pretrain.config import Views
from triplet.pretrain.data import ViewPairs
from triplet.pretrain.loss import truncated_triplet_loss
from triplet.pretrain.views import InputResolutions, normalize, sample_augmentation, view_rng
from triplet.training.optim import ema_update

CPU = torch.device("cpu")


@pytest.mark.parametrize("n", [11, 40])
def test_the_heads_agree(n):
    prediction = torch.randn(n, 16, dtype=torch.float64, requires_grad=True)
    target = torch.randn(n, 16, dtype=torch.float64)
    losses, gradients = [], []
    for head in (truncated_triplet_loss, reference.head):
        loss = head(prediction, target)
        losses.append(loss.detach())
        gradients += torch.autograd.grad(loss, prediction)
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-14)


def test_three_updates_agree(config):
    mine = Networks(**config.model.model_dump()).double()
    theirs = copy.deepcopy(mine)
    my_optimizer, their_optimizer = (
        make(networks, config)
        for make, networks in ((trainer.make_optimizer, mine), (reference.make_optimizer, theirs))
    )
    for _ in range(3):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            if a.requires_grad:
                a.grad = torch.randn_like(a)
                b.grad = a.grad.clone()
        my_optimizer.step()
        their_optimizer.step()
        ema_update(mine.target, mine.online, 0.9)
        reference.ema_update(theirs.target, theirs.online, 0.9)
    same(mine, theirs)


def same(mine: nn.Module, theirs: nn.Module) -> None:
    for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


def test_whole_steps_agree(config):
    mine, theirs = Kit(config, CPU), reference.ReleasedStep(config, CPU)
    mine.objective.double()
    theirs.networks.double()
    theirs.networks.load_state_dict(mine.networks.state_dict())
    pairs = torch.randint(256, (12, 2, 3, 48, 48), dtype=torch.uint8)
    views = normalize(pairs, torch.float64)
    for sizes in (InputResolutions(32, 41, 48, 33), InputResolutions(40, 48, 32, 47)):
        mine.micro_batch(pairs, sizes)
        logged = theirs.micro_batch(views, sizes)
        assert mine.seen[-1][0].item() == pytest.approx(logged, abs=1e-5)  # the kit's log is float32
    rate, momentum = trainer.advance(mine.networks, mine.optimizer, config, mine.order, 7)
    for group in theirs.optimizer.param_groups:
        group["lr"] = rate
    theirs.config = config.model_copy(
        update={"schedule": config.schedule.model_copy(update={"ema_base": momentum})}
    )
    theirs.update()
    same(mine.networks, theirs.networks)


def test_views_agree_given_the_same_draws(folder, monkeypatch):
    config = Views(size=96, backend="pil", jitter=0.7, grayscale=0.3, blur=(1.0, 0.5), solarize=(0.3, 0.5))
    images = open_images(folder)
    kit = ViewPairs(images, config, seed=3)
    seen = set()
    for index in range(len(images)):
        pixels, _ = kit[0, index]
        for view in (0, 1):
            draws = sample_augmentation(
                config, (photos.WIDTH, photos.HEIGHT), view, view_rng(3, 0, index, view)
            )
            left, top, width, height = draws.box
            factors = dict(draws.jitter)
            order = [
                ("brightness", "contrast", "saturation", "hue").index(name) for name, _ in draws.jitter
            ]
            monkeypatch.setattr(
                transforms.RandomResizedCrop,
                "get_params",
                lambda *_, box=(top, left, height, width): box,
            )
            monkeypatch.setattr(
                transforms.ColorJitter,
                "get_params",
                lambda *_, order=order, factors=factors: (
                    order,
                    *(factors.get(name) for name in ("brightness", "contrast", "saturation", "hue")),
                ),
            )
            radius = draws.blur_radius
            certain = config.model_copy(
                update={
                    "flip": float(draws.flip),
                    "jitter": float(bool(draws.jitter)),
                    "grayscale": float(draws.grayscale),
                    "blur": (float(radius is not None),) * 2,
                    "blur_radius": (radius or 1.0,) * 2,
                    "solarize": (float(draws.solarize),) * 2,
                }
            )
            theirs = reference.Pairs(images, certain)[index][view]
            mine = normalize(torch.from_numpy(pixels[view]).permute(2, 0, 1))
            torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5)
            seen |= {("flip", draws.flip), ("gray", draws.grayscale), ("jitter", bool(draws.jitter))}
            seen |= {("blur", radius is not None), ("solarize", draws.solarize)}
    assert len(seen) == 10, "every transform is met, done and not done"


def test_released_batches_come_without_end(folder, config):
    config = config.model_copy(update={"workers": 0, "loss": config.loss.model_copy(update={"group": 4})})
    batches = reference.load(open_images(folder), config)
    shapes = {next(batches).shape for _ in range(3)}
    assert shapes == {(4, 2, 3, 48, 48)}
