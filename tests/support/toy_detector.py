"""A detector of two linear layers, whose steps are quick and exact."""

import torch
from torch import nn

from benchmarks.detection import trainer

from detectron2.utils.events import EventStorage


class Toy(nn.Module):
    """Images in, two losses of unequal size out, as a detector; a loss is a mean over images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(5, 3).double(), nn.Linear(5, 1).double()

    def forward(self, images):
        x = torch.stack([image["x"] for image in images])
        return {"loss_a": self.one(x).square().mean(), "loss_b": 3 * (self.two(x) - 1).square().mean()}


def toy_batches(share, rank=0):
    random = torch.Generator().manual_seed(1)
    while True:
        batch = [{"x": torch.randn(5, generator=random, dtype=torch.double)} for _ in range(8)]
        yield batch[rank * share : (rank + 1) * share]


def toy_steps(processes, images, count=3, network=None):
    network = network or Toy()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    batches = toy_batches(8 // processes.size, processes.rank)
    steps = trainer.GradAccumTrainer(network, batches, optimizer, processes, images, "float32")
    with EventStorage() as steps.storage:
        for steps.iter in range(count):
            steps.run_step()
    return [p.detach().clone() for p in network.parameters()], steps
