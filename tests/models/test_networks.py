import pytest
import torch
import torchvision
from torch import nn

from tests.support.batches import triplet_batch
from triplet.models.networks import Networks
from triplet.models.resnet import ResNet
from triplet.pretrain.methods import triplet
from triplet.pretrain.views import InputResolutions


@pytest.mark.parametrize("depth", [18, 50])
def test_backbone_is_torchvisions(depth):
    """Same names, same shapes, same features before the pooling."""
    theirs = getattr(torchvision.models, f"resnet{depth}")()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours = ResNet(depth)
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    layers = list(theirs.children())[:-2]
    torch.testing.assert_close(ours.eval()(images), nn.Sequential(*layers).eval()(images))


def test_width_scales_every_channel():
    full = ResNet(50, 64).state_dict()
    for name, value in ResNet(50, 16).state_dict().items():
        scaled = [n // 4 if axis < 2 and n > 3 else n for axis, n in enumerate(full[name].shape)]
        assert list(value.shape) == scaled, name
    assert ResNet(50, 16).channels == 512
    assert ResNet(50, 16)(torch.randn(1, 3, 64, 64)).shape == (1, 512, 2, 2)


def test_initialisation_is_the_authors():
    torch.manual_seed(0)
    networks = Networks(50, 64, 512, 256)
    conv = networks.online.backbone.layer3[2].conv2.weight
    assert conv.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert networks.online.projector.fc0.weight.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.02)
    assert networks.predictor.fc0.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not networks.online.projector.fc1.bias.any()
    assert (networks.online.backbone.layer1[0].bn3.weight == 1).all()


def test_target_is_a_frozen_copy_in_train_mode(monkeypatch):
    torch.manual_seed(0)
    networks = Networks(18, 8, 16, 8).train()
    for ours, theirs in zip(networks.online.parameters(), networks.target.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.requires_grad
        assert not theirs.requires_grad
    views = torch.randn(2, 12, 3, 32, 32)
    targets = []

    def loss_of(prediction, target, **options):
        targets.append(target)
        assert prediction.shape == target.shape == (12, 8)
        return (prediction * target).sum()

    monkeypatch.setattr(triplet, "truncated_triplet_loss", loss_of)
    for loss in triplet.step(networks, views, triplet_batch(InputResolutions(32, 32, 48, 64), group=12)):
        loss.backward()
    assert len(targets) == 2
    assert not any(target.requires_grad for target in targets)
    assert all(p.grad is None for p in networks.target.parameters())
    assert all(p.grad is not None for p in networks.predictor.parameters())
    assert networks.target.backbone.bn1.num_batches_tracked == 2
    # Another resolution, so other statistics than the online network's.
    assert not torch.equal(
        networks.target.backbone.bn1.running_mean, networks.online.backbone.bn1.running_mean
    )
