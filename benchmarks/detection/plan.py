"""Before a finetuning: what fits these GPUs and hours, how long it takes, and what AP to expect."""

import contextlib
import gc
import itertools
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.detection import budget, model, proof, quiet, synthetic, trainer
from benchmarks.detection.budget import Memory
from triplet import paths, records
from triplet.errors import KitError, out_of_memory
from triplet.progress import Bar, amount, duration, say
from triplet.published import configs, curves
from triplet.runs import of_this_machine
from triplet.signals import Stop, graceful
from triplet.training.distributed import Processes, join, perform
from triplet.training.memory import kept_for_backward

from detectron2.config import CfgNode
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage

WARM, TIMED = 3, 12
"""Iterations of a calibration; the first ones choose kernels and start the loader."""
VOC_IMAGES = 5_011 + 11_540
"""Of VOC 2007's and 2012's trainval."""


@dataclass(frozen=True)
class Plan:
    """How a config is trained."""

    processes: int
    images: int
    """Of a process in a pass."""
    precision: str
    seconds: float | None = None
    """Of an iteration, as measured; None if it was not."""
    peak: float | None = None
    """Bytes on the fullest GPU, likewise."""
    known: str = "measured"
    """How the peak is."""


@dataclass(frozen=True)
class Wish:
    """What the user asks for; None: what is best."""

    hours: float | None = None
    schedule: str | None = None
    """See budget.part."""
    images: int | None = None
    precision: str | None = None
    kept: int | None = None
    """Images in a pass where that is settled though nobody asked: by what has begun."""


def settle(cfg: CfgNode, processes: Processes, wish: Wish, kept: dict | None) -> tuple[CfgNode, Wish]:
    """Decide what needs no measuring.

    Once a finetuning has begun, its schedule, its precision and the images that BN sees stay, whatever
    would be measured then.

    Args:
        cfg: with its whole schedule.
        processes: all of them; each must call this.
        wish: what the user asks for.
        kept: config of the finetuning's record, None before it has begun.

    Returns:
        The config with the schedule as far as it is known, and the wish with what else is.

    Raises:
        KitError: no such schedule, or one or processes that do not fit.
    """
    if wish.schedule and wish.hours:
        raise KitError("--hours and --schedule both say how long to train: give one of them")
    share = budget.per_process(cfg, processes.size)
    budget.bn_images(cfg, 1, 1)
    images = None
    if kept and wish.images is None and _pools_alike(cfg, kept["detectron2"]):
        images = budget.images_of_pool(cfg, processes.size, kept.get("bn_images", 0))
    _divides(share, wish.images or images or share)
    if wish.schedule:
        cfg = budget.compress(cfg, budget.part(wish.schedule, cfg))
    elif kept and wish.hours:
        cfg = budget.with_schedule(cfg, kept["detectron2"]["SOLVER"])
    precision = (
        wish.precision
        or (kept or {}).get("precision")
        or processes.broadcast_object(trainer.best_precision())
    )
    return cfg, replace(wish, kept=images, precision=precision)


def _pools_alike(cfg: CfgNode, kept: dict) -> bool:
    """Whether batch and norm are those of what has begun; else that is refused, and named, soon after."""
    theirs = kept["SOLVER"]["IMS_PER_BATCH"], kept["MODEL"]["RESNETS"]["NORM"]
    return theirs == (cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.RESNETS.NORM)


def choose(
    run: str, settings: dict, whole: CfgNode, cfg: CfgNode, processes: Processes, wish: Wish, begun: bool,
    done: int,
) -> tuple[CfgNode, Plan]:  # fmt: skip
    """Decide the rest, measuring where there is a GPU or hours to keep to, and say what that means.

    What was measured is kept in the run's ``plan`` record.

    Args:
        run: whose plan it is.
        settings: the config before any compression, as plain values, for the record.
        whole: the same, with its data and weights.
        cfg: as ``settle`` returns it.
        processes: all of them; each must call this.
        wish: likewise.
        begun: whether the finetuning has.
        done: iterations that it has behind it.

    Returns:
        The config with its final schedule, and the plan.

    Raises:
        KitError: a schedule that does not fit the hours, or images that do not fit the GPU.
    """
    precision, images = wish.precision or trainer.best_precision(), wish.images or wish.kept
    if wish.hours or processes.device.type == "cuda":
        folder = paths.stage_folder(run, "plan")
        asked = {"images": wish.images, "precision": precision, "schedule": wish.schedule}
        config = {"detectron2": settings, **asked, "processes": processes.size, "gpu": _gpu()}

        def work(job: records.Job) -> None:
            log = job.folder / "log.txt" if processes.is_main_process else Path(os.devnull)
            job.results.update(asdict(measure(cfg, processes, precision, images, log=log, kept=wish.kept)))

        perform(
            processes, "plan", folder, work=work, config=config, inputs={}, derived=True, force=not begun
        )
        record = records.read(folder) if processes.is_main_process else None
        chosen = Plan(**processes.broadcast_object(record.results if record else None))
        chosen = replace(chosen, images=images or chosen.images)
        _forget(processes)
    else:
        chosen = Plan(processes.size, images or budget.per_process(cfg, processes.size), precision)
    if wish.hours and not begun:
        cfg = budget.compress(cfg, budget.part_in(wish.hours, chosen.seconds or 0, cfg))
    if processes.is_main_process:
        own = [each for each in of_this_machine() if each.run != run]
        for line in describe(cfg, whole, chosen, Path(run).name, trainer.data_size(cfg), own, done):
            say(f"finetune: {line}")
    return cfg, chosen


def ahead(
    config: Path, row: str, gpus: int, memory: float | None, seconds: float | None, wish: Wish
) -> None:
    """``triplet plan``: the same before there is any data, for this machine or another.

    Args:
        config: Detectron2's YAML.
        row: of the table.
        gpus: how many.
        memory: of each, in GB; measured on this machine's GPU unless given.
        seconds: of an iteration, where the user knows it.
        wish: what the user asks for.

    Raises:
        KitError: no such schedule, or one that does not fit.
    """
    cfg = model.load_config(config)
    share = budget.per_process(cfg, gpus)
    budget.bn_images(cfg, 1, 1)
    if wish.schedule:
        cfg = budget.compress(cfg, budget.part(wish.schedule, cfg))
    whole, precision = cfg, wish.precision or ("bfloat16" if memory else trainer.best_precision())
    alone = cfg.clone()
    alone.SOLVER.IMS_PER_BATCH, alone.DATASETS.TRAIN = share, ()
    if memory is None and torch.cuda.is_available():
        with join() as processes:
            found = measure(alone, processes, precision, wish.images, log=Path(os.devnull))
        chosen = replace(found, processes=gpus, seconds=seconds or found.seconds)
        say(f"plan: measured on one {_gpu()} with synthetic images; loading and other GPUs may slow it")
    else:
        images, peak = wish.images or share, None
        if memory is not None:
            say("plan: counting the tensors that backward keeps, on the CPU; some half a minute")
            need = counted(alone, precision)
            images = wish.images or budget.images_in_a_pass(share, need, memory * 1e9)
            peak = need.peak(images)
        elif wish.images is None:
            say("plan: what fits the GPU is not known here; give its memory as --memory GB (make: MEMORY=)")
        _divides(share, images)
        kind = curves.detector(cfg)
        if seconds is None and kind:
            seconds = curves.published().speed[kind].seconds * 8 / gpus
            say("plan: seconds are those of V100s in Detectron2's model zoo; give yours as --seconds")
        chosen = Plan(gpus, images, precision, seconds, peak, "counted")
    if wish.hours:
        if not chosen.seconds:
            raise KitError("--hours needs the seconds of an iteration on your GPUs: give --seconds")
        cfg = budget.compress(cfg, budget.part_in(wish.hours, chosen.seconds, cfg))
    for line in describe(cfg, whole, chosen, row, _size(cfg), of_this_machine()):
        say(f"plan: {line}")


def counted(cfg: CfgNode, precision: str) -> Memory:
    """What a process takes, counted by training on one image of the largest size on the CPU.

    Activations in half precision are counted as half; a gigabyte is added for CUDA, and a fifth to each
    image for what passes between kept tensors.
    """
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    with quiet.log_to(Path(os.devnull)):
        network = model.build(cfg)
        parameters = sum(p.numel() * p.element_size() for p in network.parameters())
        with (
            EventStorage(),
            kept_for_backward(network, lambda tensor: tensor.untyped_storage().nbytes()) as kept,
        ):
            network.train()(synthetic.images(cfg, 1, seed=0, largest=True))
    half = 0.5 if trainer.PRECISIONS[precision] else 1.0
    image = 1.2 * half * sum(kept.values())
    return Memory(one=1e9 + 3.5 * parameters + image, more=image)


def _size(cfg: CfgNode) -> int | None:
    """Images of the data that a config names, where it is known without having them."""
    names = [name.rpartition("/")[2] for name in cfg.DATASETS.TRAIN or ["coco_2017_train"]]
    if model.categories(cfg)[1] == 80 and names == ["coco_2017_train"]:
        return curves.IMAGES
    return VOC_IMAGES if names == ["voc_2007_trainval", "voc_2012_trainval"] else None


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _divides(share: int, images: int) -> None:
    if share % images:
        raise KitError(
            f"{share} images for each process do not divide into passes of {images}; "
            f"--images-per-gpu may be {', '.join(map(str, budget.divisors(share)))}"
        )


def measure(
    cfg: CfgNode, processes: Processes, precision: str, images: int | None, *, log: Path,
    kept: int | None = None,
) -> Plan:  # fmt: skip
    """Train for some iterations at a learning rate of 0.

    Args:
        cfg: names the data (DATASETS.TRAIN) where loading is to count, and then the weights; else the
            images are synthetic, the weights random.
        processes: all of them; each must call this.
        precision: one of trainer.PRECISIONS.
        images: of a process in a pass; by default the most that fit its GPU.
        log: of Detectron2.
        kept: images that what has begun cannot do without.

    Raises:
        KitError: not even one image fits a GPU.
        Interrupted: stopped by a signal.
    """
    share = budget.per_process(cfg, processes.size)
    _divides(share, images or share)
    gpu = processes.device.type == "cuda"
    measuring = gpu and images is None and share > 1
    times: list[float] = []
    with (
        graceful() as stop,
        contextlib.ExitStack() as loaded,
        Bar("calibrate", WARM + TIMED, quiet=not processes.is_main_process) as bar,
    ):
        try:
            if measuring:
                limit = processes.free or 0.0

                def peak(count: int) -> float:
                    with quiet.log_to(log):
                        return max(processes.gather(_peak(cfg, processes, precision, count)))

                images = budget.images_in_a_pass(share, Memory.through(peak(1), peak(2)), limit)
                while images > 2 and peak(images) > budget.MARGIN * limit:
                    images = max(n for n in budget.divisors(share) if n < images)
            images = images or share
            _forget(processes)
            with quiet.log_to(log):
                loader = loaded.enter_context(contextlib.closing(_batches(cfg, processes, stop)))
                steps = _steps(cfg, processes, precision, loader, images)
                steps.stop = stop

                def each(done: int) -> None:
                    if done in (WARM, WARM + TIMED):
                        times.append(_now(processes))
                    if steps.stopping:
                        raise stop.interrupted("nothing was trained yet")
                    bar.step()

                _run(steps, WARM + TIMED, each)
                seconds = (times[1] - times[0]) / TIMED
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise KitError(budget.full(images or share, kept=bool(kept))) from None
        except FloatingPointError as error:
            raise KitError(
                f"calibrating in {precision}: {' '.join(str(error).split())[:120]}; add --precision float32"
            ) from None
    full = max(processes.gather(torch.cuda.max_memory_reserved())) if gpu else None
    return Plan(processes.size, images, precision, round(max(processes.gather(seconds)), 4), full)


def _steps(cfg: CfgNode, processes: Processes, precision: str, loader: Any, images: int) -> trainer.Steps:
    network = trainer.build(cfg, processes, precision)
    if cfg.DATASETS.TRAIN:
        proof.load_and_check(trainer.bare(network), Path(cfg.MODEL.WEIGHTS))
    optimizer = build_optimizer(cfg, network)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    steps = trainer.Steps(network, loader, optimizer, processes, images, precision)
    # Else the first steps may overflow, and are left out.
    steps.scaler = torch.amp.GradScaler(
        processes.device.type, init_scale=1.0, enabled=precision == "float16"
    )
    return steps


def _run(steps: trainer.Steps, count: int, each: Callable[[int], None] = lambda done: None) -> None:
    """Take steps, and after each call ``each`` with their number."""
    with EventStorage() as steps.storage:
        for steps.iter in range(count):
            steps.run_step()
            each(steps.iter + 1)


def _peak(cfg: CfgNode, processes: Processes, precision: str, images: int) -> float:
    """Bytes that training on so many of the largest images takes on this GPU; infinite: more than it has.

    Each process measures alone (BN over its own images takes as much as over all), so that none waits in a
    collective for one that is out of memory.
    """
    _forget(processes)
    own = model.with_norm(cfg, "BN")
    alone = Processes(0, 1, processes.device)
    repeated = itertools.repeat(synthetic.images(cfg, images, seed=0, largest=True))
    try:
        _run(_steps(own, alone, precision, repeated, images), 2)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return math.inf
    return torch.cuda.max_memory_reserved()


def _forget(processes: Processes) -> None:
    """Give back what earlier models took."""
    gc.collect()
    if processes.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _batches(cfg: CfgNode, processes: Processes, stop: Stop) -> Generator[list[dict[str, Any]], None, None]:
    """Batches of the config's data, or synthetic ones where it names none."""
    if cfg.DATASETS.TRAIN:
        yield from trainer.batches(cfg, processes, stop)
    share = budget.per_process(cfg, processes.size)
    made = [synthetic.images(cfg, share, seed=8 * processes.rank + number) for number in range(4)]
    yield from itertools.cycle(made)


def _now(processes: Processes) -> float:
    if processes.device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def describe(
    cfg: CfgNode, whole: CfgNode, chosen: Plan, row: str, images: int | None, own: Sequence[curves.Own],
    done: int = 0,
) -> Iterator[str]:  # fmt: skip
    """What a plan means, a line each.

    Args:
        cfg: with its final schedule.
        whole: before hours compressed it.
        chosen: how it is trained.
        row: of the table, for the AP to expect.
        images: of the data set; None: not known.
        own: this machine's runs.
        done: iterations that lie behind it.
    """
    solver, batch = cfg.SOLVER, cfg.SOLVER.IMS_PER_BATCH
    passes = batch // chosen.processes // chosen.images
    parts = f"{chosen.processes} x {chosen.images}" + (f" x {passes} passes" if passes > 1 else "")
    pool = budget.bn_images(cfg, chosen.processes, chosen.images)
    full = batch if cfg.MODEL.RESNETS.NORM == "SyncBN" else pool
    bn = (
        "BN frozen"
        if not pool
        else f"BN over {pool}" + (f", where the recipe has {full}" if pool < full else "")
    )
    yield f"{batch} images an iteration = {parts}, {chosen.precision}; {bn}"
    decay = (
        "cosine to 0"
        if "Cosine" in solver.LR_SCHEDULER_NAME
        else f"steps at {', '.join(map(str, solver.STEPS))}"
    )
    epochs = f" = {solver.MAX_ITER * batch / images:.2f} epochs of {images} images" if images else ""
    yield (
        f"{solver.MAX_ITER} iterations{epochs}, "
        f"learning rate {solver.BASE_LR:g}, warm-up {solver.WARMUP_ITERS}, {decay}"
    )
    if chosen.seconds:
        lasts = budget.lasts(chosen.seconds, cfg, done)
        end = datetime.now().astimezone() + timedelta(seconds=lasts)
        memory = f", {amount(chosen.peak)} {chosen.known} on the fullest GPU" if chosen.peak else ""
        left = f" for the {solver.MAX_ITER - done} left" if done else ""
        yield (
            f"{chosen.seconds:.3g} s an iteration{memory}: {duration(lasts)}{left}, "
            f"until {end:%a %d %b %H:%M}"
        )
        if cfg.SOLVER.MAX_ITER < whole.SOLVER.MAX_ITER:
            iterations = whole.SOLVER.MAX_ITER
            takes = duration(budget.lasts(chosen.seconds, whole))
            part = f"{solver.MAX_ITER / iterations:.1%}"
            yield f"all {iterations} iterations would take {takes}; the schedule is compressed to {part}"
    kind = curves.detector(cfg) if images == curves.IMAGES else None
    found = kind and curves.expected(row, kind, solver.MAX_ITER * batch / 16, own)
    if found:
        yield f"to expect of {row}: box AP {found.box}, mask AP {found.mask}; from {found.basis}"
        config, changes = configs.nearest(model.plain(cfg), kind or "")
        if 0 < pool < curves.BATCH:
            changes.append(f"BN over {curves.BATCH} images -> {pool}")
        if changes:
            yield f"that is for {config}; not known is what this costs: {', '.join(changes)}"
    else:
        yield f"to expect of {row}: nothing is published for this detector, data and row"
