"""MoCo (He et al., arXiv 1911.05722) and, with a hidden layer, MoCo v2 (arXiv 2003.04297), as in
OpenSelfSup."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triplet.errors import KitError
from triplet.models.networks import Encoder
from triplet.pretrain.config import Pretrain
from triplet.pretrain.gpu_augment import send
from triplet.pretrain.methods.common import (
    Batch,
    Step,
    Traits,
    Work,
    contrastive_loss,
    unit,
)
from triplet.training.optim import ema_update


def queue_holds_whole_batches(config: Pretrain) -> None:
    """Raise KitError for a queue that is not a multiple of the batch."""
    if config.contrastive.queue % config.micro_batch:
        raise KitError(f"contrastive.queue must be a multiple of the batch, {config.micro_batch}")


# ema_target is False: the step updates the key encoder itself, before using it.
TRAITS = Traits(measures=("accuracy",), needs_whole_batch=True, check=queue_holds_whole_batches)


class Moco(nn.Module):
    """The query encoder ``online``, the key encoder ``target``, and the (d, length) queue of unit keys."""

    queue: Tensor
    pointer: Tensor

    def __init__(self, config: Pretrain) -> None:
        super().__init__()
        hidden, outputs = config.model.hidden, config.model.outputs

        def projector(channels: int) -> nn.Module:
            if not hidden:
                return nn.Linear(channels, outputs)
            return nn.Sequential(
                nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
            )

        self.online = Encoder(config.model.depth, config.model.width, projector)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(outputs, config.contrastive.queue), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))


def build(config: Pretrain, images: int) -> Moco:
    """Build the encoders and the queue; see Moco."""
    return Moco(config)


def step(networks: Moco, views: Sequence[Tensor], batch: Batch) -> Step:
    """Match first views (queries) to second views (keys), (n, 3, h, w) each; then enqueue all processes'
    keys.

    Keys are computed on images shuffled over the groups that share BN statistics, so that the statistics
    give nothing away.
    """
    settings = batch.config.contrastive
    query = unit(networks.online(views[0]))
    with torch.no_grad():
        ema_update(networks.target, networks.online, settings.momentum)
        everyone = batch.gather(views[1])
        rng = np.random.default_rng((batch.config.seed, batch.iteration, 0x5F1E))
        order = send(torch.from_numpy(rng.permutation(len(everyone))), query.device)
        mine = everyone[order[batch.own]].contiguous(memory_format=torch.channels_last)
        shuffled = batch.gather(unit(networks.target(mine)))
        keys = torch.empty_like(shuffled)
        keys[order] = shuffled
    with torch.autocast(query.device.type, enabled=False):
        positive = (query * keys[batch.own]).sum(1)
        loss, found = contrastive_loss(positive, query @ networks.queue.clone(), settings.temperature)
    enqueue(networks.queue, networks.pointer, keys)
    yield loss
    return [found]


@torch.no_grad()
def enqueue(queue: Tensor, pointer: Tensor, keys: Tensor) -> None:
    """Replace the oldest keys of a (d, length) queue, in place, by (N, d) new ones; N divides the length.

    The host never reads the pointer's value, as it would have to wait for the device.
    """
    places = (pointer + torch.arange(len(keys), device=queue.device)) % queue.shape[1]
    queue[:, places] = keys.T.to(queue.dtype)
    pointer.copy_((pointer + len(keys)) % queue.shape[1])


def work(config: Pretrain) -> Work:
    """Count the query and the key, one view each."""
    return Work.at(config.views.size, online=1, target=1)
