"""The networks and the loss of any method as one module, for DistributedDataParallel to wrap."""

import contextlib

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from triplet.errors import KitError
from triplet.pretrain.config import Pretrain
from triplet.pretrain.gpu_augment import send
from triplet.pretrain.layout import Layout, MicroBatch
from triplet.pretrain.methods import METHODS, PretrainMethod
from triplet.pretrain.methods.common import Batch, Step
from triplet.pretrain.views import InputResolutions, draw_resolutions, normalize
from triplet.training.distributed import Processes


class Objective(nn.Module):
    """The networks of the config's method, with a forward pass that returns a term of its loss.

    Args:
        config: the run's config.
        images: number of images in the data set.
        processes: the processes that train together.
    """

    def __init__(self, config: Pretrain, images: int, processes: Processes) -> None:
        super().__init__()
        self.config, self.processes = config, processes
        self.networks = self.method.build(config, images)
        self.mixed = config.precision == "bfloat16"

    @property
    def method(self) -> PretrainMethod:
        """The module of the config's method. It is looked up each time because an object with a module as
        attribute could not be copied."""
        return METHODS[self.config.method]

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the values that ``backward`` returns, in order."""
        return ("loss", *self.method.TRAITS.measures)

    def forward(self, step: Step) -> Tensor:
        """Compute the next term of the loss, a scalar with its gradient."""
        with self._autocast():
            return next(step)

    def _autocast(self) -> torch.autocast:
        device = next(self.networks.parameters()).device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.mixed)

    def measured(self, step: Step) -> Tensor:
        """Return the (len(measures) - 1,) detached measures of a step that has yielded all its terms."""
        with self._autocast():
            try:
                next(step)
            except StopIteration as end:
                return torch.stack([*end.value])
        raise AssertionError(f"{self.config.method} yields more terms than its traits say")

    def begin(self, pixels: Tensor, each: MicroBatch, resolutions: InputResolutions | None = None) -> Step:
        """Return the step of this process; nothing is computed yet.

        Args:
            pixels: (n, views, 3, h, w) uint8.
            each: the part of a micro-batch that these images are.
            resolutions: used instead of those that the method draws for this iteration, if it draws any.
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
        return self.method.step(self.networks, views, batch)


def backward(
    objective: Objective,
    step: Step,
    divide: int = 1,
    model: nn.Module | None = None,
    *,
    reduce: bool = True,
) -> Tensor:
    """Run the forward and backward passes of a step, one term of the loss after the other.

    The gradient of a sum is the sum of the gradients, and each backward pass frees its term's tensors.

    Args:
        objective: its networks get the gradients.
        step: the return value of its ``begin``.
        divide: number of micro-batches in an optimiser step, by which the loss is divided.
        model: DistributedDataParallel around the objective, if there are several processes.
        reduce: whether the last term's backward pass averages the gradients over the processes.

    Returns:
        The values of ``measures``, detached, in the networks' precision, at least float32.
    """
    terms, total = objective.method.TRAITS.terms, None
    for number in range(terms):
        silent = isinstance(model, DistributedDataParallel) and not (reduce and number == terms - 1)
        with model.no_sync() if silent else contextlib.nullcontext():  # type: ignore[union-attr, operator]
            loss = (model or objective)(step)
            if torch.is_grad_enabled():
                (loss / divide).backward()
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return torch.cat([total[None], objective.measured(step)])


def make_objective(config: Pretrain, images: int, layout: Layout, processes: Processes) -> Objective:
    """Build the objective of a config on the CPU.

    Raises:
        KitError: the method needs the micro-batch as a whole, and a process's share does not fit a GPU.
    """
    objective = Objective(config, images, processes)
    if objective.method.TRAITS.needs_whole_batch and layout.splits > 1:
        raise KitError(
            f"{config.method} looks at its {config.micro_batch} images at once, so "
            f"{layout.images * layout.splits} must fit a GPU: take more GPUs, or leave images_per_gpu out"
        )
    return objective
