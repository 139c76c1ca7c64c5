"""Networks and loss of any method as one module, which is what DistributedDataParallel wraps."""

import torch
from torch import Tensor, nn

from triplet.errors import KitError
from triplet.pretrain.config import Pretrain
from triplet.pretrain.gpu_augment import send
from triplet.pretrain.layout import Layout, MicroBatch
from triplet.pretrain.methods import METHODS, PretrainMethod
from triplet.pretrain.methods.common import Batch
from triplet.pretrain.views import InputResolutions, draw_resolutions, normalize
from triplet.training.distributed import Processes


class Objective(nn.Module):
    """The networks of the config's method, and a forward pass that ends in its loss.

    Args:
        config: of the run.
        images: in the data set.
        processes: that train as one.
    """

    def __init__(self, config: Pretrain, images: int, processes: Processes) -> None:
        super().__init__()
        self.config, self.processes = config, processes
        self.networks = self.method.build(config, images)
        self.mixed = config.precision == "bfloat16"

    @property
    def method(self) -> PretrainMethod:
        """What the config names; not kept, so that an objective can be copied, which a module cannot."""
        return METHODS[self.config.method]

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the values that ``forward`` gives beside the loss that is stepped."""
        return ("loss", *self.method.TRAITS.measures)

    def forward(
        self, pixels: Tensor, each: MicroBatch, resolutions: InputResolutions | None = None
    ) -> tuple[Tensor, Tensor]:
        """One pass of this process.

        Args:
            pixels: (n, views, 3, h, w) uint8.
            each: says which images these are.
            resolutions: instead of those that the method draws for this iteration, if it draws any.

        Returns:
            The scalar loss, and the float32 values of ``measures``, detached.
        """
        config = self.config
        dtype = next(self.networks.parameters()).dtype
        views = [
            normalize(view, dtype).contiguous(memory_format=torch.channels_last)
            for view in pixels.unbind(1)
        ]
        if resolutions is None and self.method.TRAITS.draws_resolutions:
            resolutions = draw_resolutions(config.views, config.seed, each.iteration)
        indices = torch.tensor([index for _, index in each.items], dtype=torch.int64)
        batch = Batch(
            config=config,
            iteration=each.iteration,
            indices=send(indices, pixels.device),
            first=each.first,
            gather=self.processes.all_gather,
            processes=self.processes.size,
            resolutions=resolutions,
        )
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.mixed):
            loss, measured = self.method.step(self.networks, views, batch)
        return loss, torch.stack([loss.detach(), *measured]).float()


def make_objective(config: Pretrain, images: int, layout: Layout, processes: Processes) -> Objective:
    """See Objective; on the CPU.

    Raises:
        KitError: a method that looks at a micro-batch as a whole, whose share does not fit a GPU.
    """
    objective = Objective(config, images, processes)
    if objective.method.TRAITS.needs_whole_batch and layout.splits > 1:
        raise KitError(
            f"{config.method} looks at its {config.micro_batch} images at once, so "
            f"{layout.images * layout.splits} must fit a GPU: take more GPUs, or leave images_per_gpu out"
        )
    return objective
