"""Steps of two processes, of which the second is told to stop: ``python pair_of_steps.py FILE``."""

import sys

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.support.toy_detector import Toy, toy_steps
from triplet.training.distributed import Processes, join

from detectron2.utils.events import EventStorage


def take_steps(processes: Processes, path: str) -> None:
    """The network is gone when this returns: after the group has ended, gloo may wait for it for ever."""
    found, steps = toy_steps(processes, 2, network=DistributedDataParallel(Toy()))
    steps.stop.signal = 15 if processes.rank else None
    steps.iter = 3
    with EventStorage() as steps.storage:
        steps.run_step()
    assert steps.stopping, processes.rank
    torch.save(found, f"{path}.{processes.rank}")


with join() as processes:
    take_steps(processes, sys.argv[1])
