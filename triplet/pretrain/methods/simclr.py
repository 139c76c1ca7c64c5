"""SimCLR (Chen et al., arXiv 2002.05709) as in OpenSelfSup: every other view of the batch is a negative."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triplet.models.networks import Encoder
from triplet.pretrain.config import Pretrain
from triplet.pretrain.methods.common import Batch, Step, Traits, Work, accuracy

TRAITS = Traits(measures=("accuracy",), needs_whole_batch=True)


def nt_xent(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of finding each view's partner among (2n, d) unit rows, where an image's two
    views are adjacent.

    Returns:
        The loss, in float32 or wider, and the share of views that find their partner.
    """
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    other = torch.arange(len(z), device=z.device) ^ 1
    return F.cross_entropy(logits, other), accuracy(logits, other)


def build(config: Pretrain, images: int) -> nn.Module:
    """Build an encoder whose linear layers have no bias and whose last layer is BN."""
    hidden, outputs = config.model.hidden, config.model.outputs

    def projector(channels: int) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                fc0=nn.Linear(channels, hidden, bias=False),
                bn0=nn.BatchNorm1d(hidden),
                relu=nn.ReLU(inplace=True),
                fc1=nn.Linear(hidden, outputs, bias=False),
                bn1=nn.BatchNorm1d(outputs),
            )
        )

    return nn.ModuleDict({"online": Encoder(config.model.depth, config.model.width, projector)})


def step(networks: Any, views: Sequence[Tensor], batch: Batch) -> Step:
    """Pass two (n, 3, h, w) views through the encoder at once, and compare them with those of all
    processes.

    Each of OpenSelfSup's 8 GPUs computes the gradient of the whole loss for its own images alone, and their
    mean is an eighth of the loss's gradient. This matters where LARS does not adapt the rate (BN), so it is
    reproduced on any number of GPUs: the gradient is divided by the config's number of groups.
    """
    both = torch.stack([*views], dim=1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    z = networks.online(both)
    with torch.autocast(z.device.type, enabled=False):
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        z = z / (z.norm(dim=1, keepdim=True) + 1e-10)
        loss, found = nt_xent(batch.gather(z), batch.config.contrastive.temperature)
    share = batch.processes / batch.config.optimizer.groups  # DDP divides by the processes
    yield loss.detach() + share * (loss - loss.detach())
    return [found]


def work(config: Pretrain) -> Work:
    """Count both views."""
    return Work.at(config.views.size, online=2)
