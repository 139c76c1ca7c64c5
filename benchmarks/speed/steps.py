"""Comparison of whole training steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from benchmarks.speed import reference, third_party
from benchmarks.speed.convolutions import convolutions
from benchmarks.speed.flops import step_flop
from benchmarks.speed.timing import Budget, Case, Timing, Variant, interleave
from triplet.errors import KitError
from triplet.models.networks import Networks
from triplet.pretrain import trainer
from triplet.pretrain.config import Pretrain, ResolutionRange
from triplet.pretrain.layout import MicroBatch, Order
from triplet.pretrain.objective import Objective, backward
from triplet.pretrain.views import InputResolutions, draw_resolutions, normalize
from triplet.progress import say
from triplet.training.compilation import compile_networks
from triplet.training.distributed import Processes

EPOCHS_OF = 1000
"""Micro-batches in an epoch, for the schedules; nothing here depends on it."""


class Contestant(Protocol):
    """One way to train: passes over micro-batches, then an update."""

    name: str
    config: Pretrain
    wants: str
    """Index into ``host_batches``."""
    cudnn_benchmark: bool

    @property
    def networks(self) -> nn.Module:
        """All networks."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Holder of the momentum."""

    def micro_batch(self, views: Tensor, sizes: InputResolutions, /) -> object:
        """Run the forward and backward passes of a batch on the host."""

    def update(self) -> None:
        """Run the optimiser and the EMA."""


class Kit:
    """The kit's step, put together as ``triplet.pretrain.trainer.pretrain`` does for one process."""

    wants = "uint8"

    def __init__(self, config: Pretrain, device: torch.device, name: str = "kit") -> None:
        self.name, self.config, self.device = name, config, device
        self.cudnn_benchmark = config.views.few_resolutions  # as the trainer has it
        images = EPOCHS_OF * config.micro_batch
        self.objective = Objective(config, images, Processes(0, 1, device)).train().to(device)
        self.networks = self.objective.networks
        nn.utils.convert_conv2d_weight_memory_format(self.objective, torch.channels_last)
        if config.compile:
            compile_networks(self.networks.children(), dynamic=not self.cudnn_benchmark)
        self.optimizer = trainer.make_optimizer(self.networks, config)
        self.order = Order(images, config)
        self.each = MicroBatch(0, tuple((0, index) for index in range(config.micro_batch)))
        self.seen: list[Tensor] = []

    def micro_batch(self, pairs: Tensor, sizes: InputResolutions) -> None:
        """Run the forward and backward passes of (n, 2, 3, h, w) uint8 views on the host."""
        step = self.objective.begin(pairs.to(self.device, non_blocking=True), self.each, sizes)
        self.seen.append(backward(self.objective, step, self.config.optimizer.accumulate))

    def update(self) -> None:
        """Finish a step like the trainer: advance, then read the measurements."""
        trainer.advance(self.networks, self.optimizer, self.config, self.order, self.order.steps // 2)
        torch.stack(self.seen).mean(0).tolist()
        self.seen.clear()


@dataclass(frozen=True)
class Setup:
    """Options of the comparison."""

    released: Pretrain
    """The authors' recipe, whose steps draw from all resolutions."""
    fast: Pretrain
    """The kit's recipe for modern GPUs, whose steps draw from few resolutions."""
    passes: int
    """Micro-batches in a repetition, each with its own resolutions. These are the same in every repetition,
    so that cuDNN's tuning and torch's compilation, done once in a run, are not counted."""
    compile: bool
    """Whether to measure torch.compile as well."""


def contestants(setup: Setup, device: torch.device) -> tuple[list[Contestant], list[str]]:
    """Build all contestants, the kit first; return them with a line for each that could not be built
    here."""
    cuda = device.type == "cuda"
    released_sizes = setup.released.model_copy(update={"precision": "bfloat16" if cuda else "float32"})
    found: list[Contestant] = [Kit(released_sizes, device)]
    without: list[str] = []
    if cuda:
        fast = setup.fast.model_copy(update={"compile": False})
        found.append(Kit(fast, device, "kit, fast sizes"))
        if setup.compile:
            compiled = fast.model_copy(update={"compile": True})
            try:
                found.append(Kit(compiled, device, "kit, fast sizes, compiled"))
            except KitError as error:  # no compiler
                without.append(str(error))
    found.append(reference.ReleasedStep(setup.released, device))
    built, missing = third_party.installed(setup.released, device)
    return [*found, *built], [*without, *missing]


def sizes_of(setup: Setup, config: Pretrain) -> list[InputResolutions]:
    """Return the resolutions of the passes of a repetition: the released draws, moved to the nearest that
    the config knows."""

    def nearest(sides: ResolutionRange, side: int) -> int:
        return min(
            range(sides.smallest, sides.largest + 1, sides.step), key=lambda known: abs(known - side)
        )

    drawn = [draw_resolutions(setup.released.views, setup.released.seed, i) for i in range(setup.passes)]
    online, target = config.views.online, config.views.target
    return [
        InputResolutions(
            nearest(online, s.online_1),
            nearest(online, s.online_2),
            nearest(target, s.target_1),
            nearest(target, s.target_2),
        )
        for s in drawn
    ]


def host_batches(config: Pretrain, device: torch.device) -> dict[str, Tensor]:
    """Return one batch as loaders leave it on the host: the kit's in uint8, the others' normalised."""
    size, n = config.views.size, config.micro_batch
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 2, size, size, 3), generator=generator, dtype=torch.uint8)
    pairs = pixels.permute(0, 1, 4, 2, 3)
    views = normalize(pairs).contiguous()
    if device.type != "cuda":
        return {"uint8": pairs, "float32": views, "pinned float32": views}
    return {"uint8": pairs.pin_memory(), "float32": views, "pinned float32": views.pin_memory()}


def variant(each: Contestant, sizes: Sequence[InputResolutions], batch: Tensor) -> Variant:
    """Return a variant whose repetition runs every pass, with an update after each ``accumulate`` of
    them."""
    config = each.config

    def run() -> None:
        for number, size in enumerate(sizes, 1):
            each.micro_batch(batch, size)
            if number % config.optimizer.accumulate == 0:
                each.update()

    return Variant(
        each.name,
        run,
        images=len(sizes) * config.micro_batch,
        flop=config.micro_batch * sum(step_flop(config.model, size) for size in sizes),
        ours=isinstance(each, Kit),
        cudnn_benchmark=each.cudnn_benchmark,
        resident=lambda: resident(each),
    )


def resident(each: Contestant) -> int:
    """Return the bytes of weights, statistics, gradients and momentum."""
    tensors = [*each.networks.parameters(), *each.networks.buffers()]
    tensors += [p.grad for p in each.networks.parameters() if p.grad is not None]
    for state in each.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in tensors)


def step(
    setup: Setup, budget: Budget, keep: Callable[[Case], None] = lambda case: None
) -> tuple[Case, list[Kit]]:
    """Measure from a batch on the host to updated weights; also return the kit's warmed-up contestants.

    Args:
        setup: the steps to compare.
        budget: device and duration of the measurement.
        keep: called after each round with the case so far.
    """
    torch.manual_seed(0)
    found, missing = contestants(setup, budget.device)
    for line in missing:
        say(f"step: {line}")
    batches = host_batches(setup.released, budget.device)
    variants = [variant(each, sizes_of(setup, each.config), batches[each.wants]) for each in found]
    config = setup.released
    if budget.device.type == "cpu":
        networks = found[0].networks
        assert isinstance(networks, Networks)  # of Triplet, which both recipes train
        variants.append(convolutions(networks, config.micro_batch, sizes_of(setup, config)))
    sizes = {
        **config.model.model_dump(),
        "batch": config.micro_batch,
        "accumulate": config.optimizer.accumulate,
        "passes": setup.passes,
        "resolutions": [vars(size) for size in sizes_of(setup, config)],
    }
    width = "" if config.model.width == 64 else f" at width {config.model.width}"
    name = f"training step, ResNet-{config.model.depth}{width}, {config.micro_batch} images"
    case = Case("step", name, budget.device, sizes, [], missing)

    def after_round(timings: list[Timing]) -> None:
        case.timings = timings
        keep(case)

    interleave(variants, replace(budget, after_round=after_round), missing)
    measured = {timing.variant.name for timing in case.timings}
    return case, [each for each in found if isinstance(each, Kit) and each.name in measured]
