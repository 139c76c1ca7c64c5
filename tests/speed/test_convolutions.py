"""What is measured as a step's convolutions is all of them, and nothing else."""

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.convolutions import convolutions
from benchmarks.speed.steps import Kit
from triplet.pretrain.views import InputResolutions

CPU = torch.device("cpu")
OF_CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)


def counted(work):
    with FlopCounterMode(display=False) as flop:
        work()
    return flop.get_flop_counts()["Global"]


def test_the_convolutions_are_those_of_a_step(config):
    kit, images = Kit(config, CPU), config.micro_batch
    sizes = [InputResolutions(32, 41, 48, 33), InputResolutions(40, 47, 32, 48)]
    pairs = torch.randint(256, (images, 2, 3, 48, 48), dtype=torch.uint8)
    whole = counted(lambda: [kit.micro_batch(pairs, each) for each in sizes])
    alone = counted(convolutions(kit.networks, images, sizes).run)
    assert alone == {operator: whole[operator] for operator in OF_CONVOLUTIONS}


def test_the_networks_stay_as_they_are(config):
    networks = Kit(config, CPU).networks
    before = copy.deepcopy(networks.state_dict())
    variant = convolutions(networks, config.micro_batch, [InputResolutions(32, 41, 48, 33)])
    variant.run()
    assert variant.images == config.micro_batch
    for name, tensor in networks.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in networks.parameters())
