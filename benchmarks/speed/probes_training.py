"""Probes of training: steps, views, memory, detection."""

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import reference, results
from benchmarks.speed.end_to_end import end_to_end
from benchmarks.speed.photos import draw_photos
from benchmarks.speed.probes import Context, Senseless
from benchmarks.speed.recipes import SMOKE, recipes
from benchmarks.speed.steps import Contestant, Kit, Setup, host_batches, sizes_of, variant
from benchmarks.speed.timing import Budget, Timing, Variant, interleave
from triplet.environment import usable_cores
from triplet.pretrain.config import Pretrain
from triplet.pretrain.estimate import estimate
from triplet.pretrain.layout import make_layout
from triplet.pretrain.objective import backward
from triplet.pretrain.views import InputResolutions
from triplet.training.compilation import compile_networks

GIB = 2**30
KERNELS = {
    "transposes": r"nchwtonhwc|nhwctonchw|transpose|permute",
    "batch norm": r"batch_?norm|bn_[bf]w",
    "convolutions": r"conv|gemm|xmma|cutlass|wgrad|dgrad|nvjet|mm\b",
    "copies": r"memcpy|memset|copy|catarray|aten::cat",
}
"""Kind of kernel -> pattern of its name; the first match counts."""


def _setup(context: Context, passes: int = 8, groups: int = 1) -> Setup:
    """Set up steps of 196 images with the full ResNet-50, or tiny ones."""
    tiny = context.tiny or not context.cuda
    passes = 1 if tiny else passes
    accumulate = 1 if tiny else min(4, passes)
    batch, model = (12, (*SMOKE, "model.depth=18", "precision=float32")) if tiny else (196, ())
    released, fast = recipes(batch, groups=groups, accumulate=accumulate, model=model)
    return Setup(released, fast.model_copy(update={"compile": False}), passes, compile=False)


def _repetition(context: Context, each: Contestant, sizes: Sequence[InputResolutions]) -> Variant:
    return variant(each, sizes, host_batches(each.config, context.device)[each.wants])


def _measure(context: Context, repetition: Variant) -> Timing:
    budget = Budget(context.device, context.measuring, rounds=1 if context.tiny else 3)
    (timing,) = interleave([repetition], budget)
    return timing


def _mean_sizes(config: Pretrain, passes: int) -> list[InputResolutions]:
    """Return one set of resolutions of about the fast recipe's mean FLOP: compiling all takes minutes."""
    online, target = (
        min(each.largest, side) for each, side in ((config.views.online, 160), (config.views.target, 192))
    )
    return [InputResolutions(online, online, target, target)] * passes


def _tell(context: Context, name: str, timing: Timing) -> str:
    """Save a step's numbers under a name, and summarise them in a few words."""
    speed, share = timing.rate(timing.variant.images), results.mfu(timing, context.device)
    numbers = dict(
        images_per_second=speed,
        flop_per_second=timing.rate(timing.variant.flop),
        mfu=share,
        first_seconds=timing.first,
        seconds=timing.seconds,
        peak_bytes=timing.peak,
    )
    context.tell(**{name: numbers})
    return f"{name} {speed:.1f} images/s" + (f", MFU {share:.1%}" if share else "")


def eager(context: Context) -> None:
    """Time the kit's step uncompiled, and profile it by kind of kernel on a GPU."""
    setup = _setup(context)
    kit = Kit(setup.fast, context.device, "eager")
    repetition = _repetition(context, kit, _mean_sizes(kit.config, setup.passes))
    said = _tell(context, "eager", _measure(context, repetition))
    context.tell(summary=said)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if context.cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        context.synchronize()
        began = time.perf_counter()
        repetition.run()
        context.synchronize()
        wall = time.perf_counter() - began
    times: dict[str, float] = {}
    for event in profile.key_averages():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        if on_gpu == context.cuda:
            spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            times[event.key] = times.get(event.key, 0.0) + spent / 1e6
    kinds = kernel_kinds(times)
    busy = sum(times.values()) / wall if context.cuda else None
    context.tell(profile_seconds=kinds, busy_share=busy, wall_seconds=wall)
    milliseconds = ", ".join(f"{kind} {1e3 * seconds:.0f}" for kind, seconds in kinds.items())
    context.tell(
        summary=f"{said}; ms of {1e3 * wall:.0f}: {milliseconds}" + (f"; busy {busy:.0%}" if busy else "")
    )


def kernel_kinds(times: Mapping[str, float]) -> dict[str, float]:
    """Sum seconds by kernel name into seconds by kind of kernel."""
    found = dict.fromkeys([*KERNELS, "other"], 0.0)
    for name, seconds in times.items():
        kind = next((k for k, pattern in KERNELS.items() if re.search(pattern, name.lower())), "other")
        found[kind] += seconds
    return found


def _refuse_without_cuda(context: Context) -> None:
    if not context.cuda:
        raise Senseless("says nothing without CUDA: other kernels, and no allocator that counts")


def compiled(context: Context) -> None:
    """Time the kit's step as the fast recipe compiles it, with its memory beside the estimate."""
    _refuse_without_cuda(context)
    setup = _setup(context)
    kit = Kit(setup.fast, context.device, "compiled")
    compile_networks(kit.networks.children(), dynamic=not kit.cudnn_benchmark)
    expected = estimate(kit.config, make_layout(kit.config, 1)).memory
    context.tell(estimated_bytes=expected)
    timing = _measure(context, _repetition(context, kit, _mean_sizes(kit.config, setup.passes)))
    said = _tell(context, "compiled", timing)
    context.tell(
        summary=f"{said}, first {timing.first:.0f} s, peak {timing.peak / GIB:.1f} GiB "
        f"(estimated {expected / GIB:.1f})"
    )


def released(context: Context) -> None:
    """Time the released code's step at four draws of its resolutions, beside the kit's by FLOP."""
    setup = _setup(context, passes=4)
    step = reference.ReleasedStep(setup.released, context.device)
    said = _tell(
        context, "released", _measure(context, _repetition(context, step, sizes_of(setup, step.config)))
    )
    speed = context.found["released"]["flop_per_second"]
    kit = {
        name: context.earlier.get(name, {}).get(name, {}).get("flop_per_second")
        for name in ("eager", "compiled")
    }
    ratios = {name: other / speed for name, other in kit.items() if other}
    context.tell(ratios=ratios)
    context.tell(
        summary=", ".join([said, *(f"{name} {ratio:.2f} x per FLOP" for name, ratio in ratios.items())])
    )


def views(context: Context) -> None:
    """Time OpenCV's views by all cores but one, alone and feeding the step."""
    setup = _setup(context, passes=4)
    kit = Kit(setup.fast, context.device, "eager")
    workers = 1 if context.tiny else max(1, usable_cores() - 1)
    budget = Budget(context.device, 0.0 if context.tiny else 12.0, rounds=2)
    with tempfile.TemporaryDirectory() as folder:
        photos = draw_photos(Path(folder), 2 * setup.fast.micro_batch)
        found = end_to_end(kit, "opencv", photos, workers, budget)
    context.tell(**found)
    context.tell(
        summary=f"{workers} workers: alone {found['loader_images_per_second']:.0f} images/s, with the step "
        f"{found['images_per_second']:.0f}, waiting {found['waiting_share']['median']:.0%}"
    )


def memory(context: Context) -> None:
    """Measure the peak memory of 392 images with both directions at once, and of 784 with one at a time."""
    _refuse_without_cuda(context)
    told = []
    for name, groups, together in (("392, both directions", 2, True), ("784, one at a time", 4, False)):
        config = _setup(context, passes=1, groups=groups).fast
        double = config.model_copy(
            update={
                "optimizer": config.optimizer.model_copy(
                    update={"groups": 2 * groups if together else groups}
                )
            }
        )
        # Both at once keep what twice the images keep one at a time.
        expected = estimate(double, make_layout(double, 1)).memory
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        peak = _peak(context, config, together=together)
        context.tell(
            **{name: {"images": config.micro_batch, "peak_bytes": peak, "estimated_bytes": expected}}
        )
        told.append(f"{name}: {peak / GIB:.1f} GiB (estimated {expected / GIB:.1f})")
    context.tell(summary="; ".join(told))


def _peak(context: Context, config: Pretrain, *, together: bool) -> int:
    kit, side = Kit(config, context.device), config.views.online.largest
    pairs = host_batches(config, context.device)[kit.wants].to(context.device)
    for _ in range(2):
        step = kit.objective.begin(pairs, kit.each, InputResolutions(side, side, side, side))
        if together:
            terms = [kit.objective(step) for _ in range(kit.objective.method.TRAITS.terms)]
            torch.stack(terms).sum().backward()
            del terms, step
        else:
            backward(kit.objective, step)
        kit.optimizer.step()
        kit.optimizer.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated()


def detection(context: Context) -> None:
    """Time a detection step of 16 images, Detectron2's, its AMP and the kit's, with memory beside the
    estimate."""
    from benchmarks.speed.detection import detection as compare

    images = 16 if context.cuda and not context.tiny else 1
    budget = Budget(context.device, context.measuring, rounds=1 if context.tiny else 3)
    case = results.as_json(compare(budget, images))
    context.tell(case=case)
    said = [f"{name} {each['seconds']['median']:.3f} s" for name, each in case["variants"].items()]
    context.tell(summary=f"{images} images: {', '.join(said)}")
    if not context.cuda or context.tiny:
        return
    from benchmarks.detection import calibration, model
    from benchmarks.detection import trainer as detection_trainer
    from triplet.paths import CONFIGS

    precision = detection_trainer.best_precision()
    cfg = model.load_config(CONFIGS / "detection" / case["sizes"]["config"])
    predicted = calibration.count_memory(cfg, precision)
    total, peak = (
        predicted.one + (images - 1) * predicted.more,
        case["variants"][precision]["peak_memory_bytes"],
    )
    context.tell(predicted_bytes=total, peak_bytes=peak)
    said.append(
        f"{precision} peak {peak / 1e9:.1f} GB (predicted for the largest images {total / 1e9:.1f})"
    )
    context.tell(summary=f"{images} images: {', '.join(said)}")


def variants(context: Context) -> None:
    """Try other ways to compile: one graph for all resolutions, and 1x1 convolutions as matrix products."""
    _refuse_without_cuda(context)
    setup, told = _setup(context), []
    ways: dict[str, dict[str, Any]] = {
        "dynamic": {"dynamic": True},
        "conv_1x1_as_mm": {"dynamic": False, "mode": "max-autotune-no-cudagraphs"},
    }
    for name, options in ways.items():
        torch._dynamo.reset()
        config = setup.released if name == "dynamic" else setup.fast
        kit = Kit(config, context.device, name)
        torch._inductor.config.conv_1x1_as_mm = name == "conv_1x1_as_mm"
        compile_networks(kit.networks.children(), **options)
        sizes = sizes_of(setup, config) if name == "dynamic" else _mean_sizes(config, setup.passes)
        timing = _measure(context, _repetition(context, kit, sizes))
        told.append(f"{_tell(context, name, timing)}, first {timing.first:.0f} s")
        context.tell(summary="; ".join(told))
