"""Probes of correctness: the device compared with the CPU in float64, and recolouring."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed import reference
from benchmarks.speed.probes import Context
from benchmarks.speed.recipes import recipes
from triplet.models.networks import Networks
from triplet.pretrain import gpu_augment, trainer
from triplet.pretrain.config import Pretrain, Views
from triplet.pretrain.layout import MicroBatch
from triplet.pretrain.objective import Objective, backward
from triplet.pretrain.views import AugmentationParams, InputResolutions, sample_augmentation, view_rng
from triplet.training.batch_norm import pool_batch_norm
from triplet.training.distributed import Processes
from triplet.training.optim import ema_update


def correctness(context: Context) -> None:
    """Measure the relative errors of recolouring, loss and gradients, LARS and EMA, and BN."""
    torch.backends.cudnn.allow_tf32 = False
    pixels, draws = _views(8 if context.tiny else 64, 32 if context.tiny else 224)
    there = gpu_augment.gpu_augment(pixels.to(context.device), draws).cpu()
    different = int((there != gpu_augment.by_torch(pixels, draws)).sum())
    context.tell(
        recolouring_different_pixels=different, triton=context.cuda and bool(gpu_augment._kernels())
    )
    for name, values in {**_gradients(context), **_updates(context), **_batch_norm(context)}.items():
        context.tell(**{name: values})
    found = context.found
    errors = ", ".join(f"{k} {v:.1e}" for k, v in found.items() if isinstance(v, float))
    context.tell(summary=f"recolouring: {different} pixels differ; {errors}")


def recolouring(context: Context) -> None:
    """Recolour 392 views by Triton's kernels and by torch's operators."""
    pixels, draws = _views(*((4, 32) if context.tiny else (392, 224) if context.cuda else (16, 224)))
    pixels = pixels.to(context.device)
    blurred = sum(d.blur_radius is not None for d in draws) / len(draws)
    contrast = sum("contrast" in dict(d.jitter) for d in draws) / len(draws)
    moved = pixels.nbytes * (2 + contrast + blurred * 4 * gpu_augment.BLUR_PASSES)
    ways: dict[str, Any] = {"torch": gpu_augment.by_torch}
    if context.cuda:
        ways["kit"] = gpu_augment.gpu_augment
    for name, augment in ways.items():
        seconds = context.time(lambda augment=augment: augment(pixels, draws), rounds=5)  # type: ignore[misc]
        context.tell(**{f"{name}_seconds": seconds, f"{name}_bytes_per_second": moved / seconds})
    context.tell(views=len(draws), bytes_of_the_kernels=moved)
    told = (
        f"{name} {1e3 * context.found[f'{name}_seconds']:.2f} ms "
        f"({context.found[f'{name}_bytes_per_second'] / 1e9:.0f} GB/s of the kernels' bytes)"
        for name in reversed(ways)
    )
    context.tell(summary=f"{len(draws)} views: {', '.join(told)}")


def _views(count: int, side: int) -> tuple[Tensor, list[AugmentationParams]]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    draws = [
        sample_augmentation(Views(), (side, side), i % 2, view_rng(0, 0, i // 2, i % 2))
        for i in range(count)
    ]
    return torch.from_numpy(pixels), draws


def _error(found: Tensor, expected: Tensor) -> float:
    """Return the error of a tensor relative to the norm of what is expected."""
    difference = found.detach().double().cpu() - expected.detach().double().cpu()
    return float(difference.norm() / expected.double().norm().cpu())


def _gradients(context: Context) -> dict[str, float]:
    """Compare a step's loss and gradients in float32 and bfloat16 with float64 on the CPU."""
    tiny = ("model.width=8", "model.hidden=32", "model.outputs=16")
    _, config = recipes(12, model=("compile=false", "views.backend=pil", *(tiny if context.tiny else ())))
    side, cpu = 32 if context.tiny else 96, torch.device("cpu")
    pixels = torch.randint(256, (12, 2, 3, side, side), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    first = _objective(config, "float32", cpu)
    expected, gradients = _step(copy.deepcopy(first).double(), pixels.to(torch.uint8), side)
    found = {}
    for precision in ("float32", "bfloat16"):
        objective = _objective(config, precision, context.device)
        objective.load_state_dict(first.state_dict())
        loss, own = _step(objective, pixels.to(context.device, torch.uint8), side)
        found[f"loss_{precision}"] = abs(loss - expected) / abs(expected)
        found[f"gradient_{precision}"] = _error(own, gradients)
    return found


def _objective(config: Pretrain, precision: str, device: torch.device) -> Objective:
    config = config.model_copy(update={"precision": precision})
    objective = Objective(config, 1000, Processes(0, 1, device)).train().to(device)
    nn.utils.convert_conv2d_weight_memory_format(objective, torch.channels_last)
    return objective


def _step(objective: Objective, pixels: Tensor, side: int) -> tuple[float, Tensor]:
    """Return the loss, and all gradients concatenated."""
    each = MicroBatch(0, tuple((0, index) for index in range(len(pixels))))
    loss = backward(objective, objective.begin(pixels, each, InputResolutions(side, side, side, side)))[0]
    gradients = [p.grad.flatten() for p in objective.networks.parameters() if p.grad is not None]
    return float(loss), torch.cat(gradients)


def _updates(context: Context) -> dict[str, float]:
    """Compare three updates by LARS and EMA with the released code's in float64 on the CPU."""
    config, _ = recipes(12, model=("model.width=8", "model.hidden=32", "model.outputs=16"))
    theirs = Networks(**config.model.model_dump())
    mine = copy.deepcopy(theirs).to(context.device)
    theirs.double()
    optimizer, expected = trainer.make_optimizer(mine, config), reference.make_optimizer(theirs, config)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            if one.requires_grad:
                gradient = torch.randn(one.shape, generator=generator)
                one.grad, other.grad = gradient.to(context.device), gradient.double()
        optimizer.step()
        expected.step()
        ema_update(mine.target, mine.online, 0.9)
        reference.ema_update(theirs.target, theirs.online, 0.9)
    pairs = {"lars": (mine.online, theirs.online), "ema": (mine.target, theirs.target)}
    return {
        name: _error(*(torch.cat([p.flatten() for p in each.parameters()]) for each in pair))
        for name, pair in pairs.items()
    }


def _batch_norm(context: Context) -> dict[str, float]:
    """Compare output and gradients of the pooled BN in a group of one process with float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    values, gradient = (torch.randn(32, 16, 7, 7, generator=generator) + 3 for _ in "xg")
    plain = nn.BatchNorm2d(16)
    nn.init.normal_(plain.weight, generator=generator)
    pooled, found = copy.deepcopy(plain).to(context.device), {}
    plain.double()
    torch.distributed.init_process_group(
        "nccl" if context.cuda else "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        pool_batch_norm(pooled, Processes(0, 2, context.device), 2)  # two that share a group of one
        x = values.double().requires_grad_()
        plain(x).backward(gradient.double())
        expected = x.grad
        assert expected is not None
        for dtype in (torch.float32, torch.bfloat16):
            x = values.to(context.device, dtype, copy=True).requires_grad_()
            y = pooled(x)
            y.backward(gradient.to(context.device, y.dtype))
            assert x.grad is not None
            found[f"batch_norm_{str(dtype).rpartition('.')[2]}"] = _error(x.grad, expected)
    finally:
        torch.distributed.destroy_process_group()
    return found
