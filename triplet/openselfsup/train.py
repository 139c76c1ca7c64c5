"""Pretraining with OpenSelfSup's own loop, in the kit's stage."""

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from triplet import records
from triplet.errors import KitError
from triplet.images import Images
from triplet.openselfsup import settings, shims
from triplet.pretrain import stage
from triplet.progress import Bar, say
from triplet.signals import graceful
from triplet.training import checkpoint
from triplet.training.distributed import Processes, join
from triplet.training.loading import from_worker
from triplet.training.metrics import MetricLogger, ThroughputMeter
from triplet.weights.initial import AUTHORS
from triplet.weights.read import read_backbone, read_state


def pretrain(options: stage.PretrainOptions) -> None:
    """Run the pretrain stage with OpenSelfSup; the overrides are settings of its own config.

    Raises:
        KitError: OpenSelfSup is missing, settings or data are bad, or the number of processes differs from
            the config.
    """
    configs = shims.locate()
    with join() as processes, group(processes):
        with quiet():
            shims.apply(processes.device)
        resolved = settings.resolve(options.config, configs, options.overrides)
        if resolved.gpus != processes.size:
            raise KitError(
                f"{options.config} is for {resolved.gpus} processes of {resolved.data.imgs_per_gpu} images "
                f"each: found {processes.size}; start it with GPUS={resolved.gpus}, or train another "
                f"batch: gpus={processes.size}"
            )
        config = settings.plain(resolved)
        processes.assert_same("config", config)
        processes.use_cores(resolved.data.workers_per_gpu)

        def work(images: Images, job: records.Job) -> None:
            train(resolved, options.source, len(images), job, processes, options.weights)

        stage.perform(options, config, work, processes, seed=resolved.seed)


@contextmanager
def group(processes: Processes) -> Iterator[None]:
    """Provide the process group in which OpenSelfSup gathers and shares BN statistics, if necessary of one
    process."""
    if processes.size > 1:
        yield
        return
    backend = "nccl" if processes.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of packages that are four years newer than OpenSelfSup."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def iterations(config: Any, images: int) -> int:
    """Return the micro-batches of an epoch. Their sampler gives each process the same number of images,
    some twice.

    Raises:
        KitError: too few images, or for the Triplet loss too few in the last one.
    """
    own, batch = -(-images // config.gpus), config.data.imgs_per_gpu
    whole, rest = divmod(own, batch)
    dropped = config.data.get("drop_last", False)
    if config.model.type == "Triplet" and not dropped and 0 < rest < 11:
        raise KitError(
            f"the last batch of an epoch has {rest} images and the loss needs 11; add data.drop_last=true"
        )
    if config.model.type == "MOCO" and config.model.queue_len % (batch * config.gpus):
        raise KitError(
            f"model.queue_len={config.model.queue_len} is not a multiple of the batch; change one"
        )
    found = whole if dropped or not rest else whole + 1
    if not found:
        raise KitError(f"found {images} images, fewer than a batch of {batch * config.gpus}; give more")
    return int(found)


def train(
    config: Any, source: Path, images: int, job: records.Job, processes: Processes, weights: Path | None
) -> None:
    """Train from the last checkpoint in the job's folder, or from the start, to the end.

    Write ``checkpoint.pth`` (mmcv's layout, without optimiser), ``metrics.jsonl`` and ``tensorboard/``. A
    resumed run continues with the rest of the epoch's images; the draws of its views differ.

    Args:
        config: see ``settings.resolve``; modified.
        source: the images.
        images: number of images.
        job: the stage's record, to fill in.
        processes: the processes that train together.
        weights: see ``load_weights``.

    Raises:
        KitError: a loss that is not finite, an unreadable image, a checkpoint that cannot be written.
        Interrupted: a signal stopped the training, after saving.
    """
    with quiet():
        import openselfsup
        from mmcv import ConfigDict
        from openselfsup.apis import train_model
        from openselfsup.datasets import build_dataset

        from triplet.openselfsup.checkpoint_hook import OpenSelfSupHook
    per_epoch, accumulate = iterations(config, images), config.optimizer_config.get("update_interval", 1)
    steps = per_epoch * config.total_epochs // accumulate
    batch = config.data.imgs_per_gpu * config.gpus * accumulate
    _configure(config, source, images, job.folder)
    model, origin = _start_model(config, job, weights)
    start = resume(config, job, steps, processes)
    if processes.is_main_process:
        _announce(config, images, batch, steps, origin)
    final = job.folder / "checkpoint.pth"
    pace = ThroughputMeter(batch, steps, start)
    with (
        graceful() as stop,
        MetricLogger(job.folder, start, accumulate, is_main_process=processes.is_main_process) as log,
        Bar("pretrain", steps, start, quiet=not processes.is_main_process) as bar,
        quiet(),
    ):
        parts = {"processes": processes, "log": log, "pace": pace, "bar": bar, "stop": stop}
        every = config.checkpoint_config.interval
        saves = dict(
            type=OpenSelfSupHook, job=job, final=final, accumulate=accumulate, every=every, **parts
        )
        config.custom_hooks = [ConfigDict(hook) for hook in (*config.get("custom_hooks", []), saves)]
        try:
            train_model(model, [build_dataset(config.data.train)], config, distributed=True)
        except KitError as error:  # a loader's arrives with its traceback in the message
            raise from_worker(error) from None
    if processes.is_main_process:
        counts = {"images": images, "batch": batch, "epochs": config.total_epochs, "steps": steps}
        job.outputs.update(checkpoint=final, metrics=job.folder / "metrics.jsonl")
        job.results.update(engine="openselfsup", openselfsup=openselfsup.__version__, **counts)
        job.results.update(final=log.last, weights=origin)
        job.images_per_second = pace.average()


def _announce(config: Any, images: int, batch: int, steps: int, origin: str) -> None:
    """Print what is trained, and how its batches are composed."""
    import openselfsup

    passes = batch // (config.gpus * config.data.imgs_per_gpu)
    say(
        f"pretrain: OpenSelfSup {openselfsup.__version__}, {config.model.type}: {batch} images a step = "
        f"{config.gpus} processes x {passes} passes x {config.data.imgs_per_gpu} images; "
        f"{config.total_epochs} epochs of {images} images = {steps} optimiser steps; weights: {origin}"
    )


def _configure(config: Any, source: Path, images: int, folder: Path) -> None:
    """Let a config of theirs read the kit's images, and leave records, checkpoints and logs to the kit."""
    config.data.train.data_source = dict(type="KitImages", source=str(source))
    if "memory_bank" in config.model:
        config.model.memory_bank.length = images
    config.update(work_dir=str(folder), checkpoint_config=None, resume_from=None, load_from=None)
    config.log_config.hooks = []
    config.log_level = "ERROR"
    theirs: Any = importlib.import_module("openselfsup.apis.train")
    theirs.print_log = lambda *_, **__: None  # a line for each tensor
    # Theirs writes a file that is named by the level.
    theirs.get_root_logger = lambda *_: logging.getLogger("triplet.openselfsup")


def _start_model(config: Any, job: records.Job, weights: Path | None) -> tuple[Any, str]:
    """Return the model with its initial weights, and their origin."""
    model = _build_model(config)
    origin = load_weights(weights, model) if weights else "drawn from the seed"
    job.check_inputs()
    return model, origin


def _build_model(config: Any) -> Any:
    """Register the kit's classes with the engine, seed as its tools/train.py does, and draw the model."""
    with quiet():
        from mmcv.utils import import_modules_from_strings
        from openselfsup.apis import set_random_seed
        from openselfsup.models import build_model

        import_modules_from_strings(**config.custom_imports)
    set_random_seed(config.seed)
    torch.backends.cudnn.benchmark = config.get("cudnn_benchmark", False)
    model = build_model(config.model)
    shims.keep_memory_bank(model)
    return model


def resume(config: Any, job: records.Job, steps: int, processes: Processes) -> int:
    """Make mmcv resume from the newest intact checkpoint; return the optimiser steps done, 0 without one.

    Raises:
        KitError: a process does not see the checkpoint from which another one resumes.
    """
    # mmcv reads the file itself.
    start, folder = 0, job.folder
    if processes.is_main_process:
        start = checkpoint.newest(folder, lambda *_: None, steps, job.plan)
    start = processes.broadcast_object(start)
    path = folder / f"step_{start:07d}.pth"
    seen = processes.gather(path.exists() or not start)
    if not all(seen):
        raise KitError(
            f"process {seen.index(False)} does not see {path}: with this engine nodes share one file system"
        )
    config.resume_from = str(path) if start else None
    return int(start)


@torch.no_grad()
def load_weights(path: Path, model: nn.Module) -> str:
    """Load a file into a model of OpenSelfSup; return a phrase on the content of the file.

    A file with all of the model's tensors (OpenSelfSup's own, or for Triplet and BYOL the kit's checkpoint)
    fills the whole model. Any other file that ``read_backbone`` reads fills the backbone and its copy, if
    it has one.

    Raises:
        KitError: the file is something else, or has another architecture.
    """
    backbone = read_backbone(path)
    tensors, _ = read_state(path)
    named = tensors if backbone.format != "kit" else to_openselfsup(tensors)
    expected = model.state_dict()
    if all(key in named and named[key].shape == value.shape for key, value in expected.items()):
        model.load_state_dict({key: named[key] for key in expected})
        return f"{backbone.format} networks, all of them"
    own: Any = model.backbone
    found = own.state_dict()
    if backbone.caffe2 or any(backbone.state[k].shape != v.shape for k, v in found.items()):
        raise KitError(
            f"{path} is a ResNet-{backbone.depth} of width {backbone.width}"
            f"{' for BGR images' if backbone.caffe2 else ''}, the config's is another; give other weights"
        )
    own.load_state_dict(backbone.state)
    for copy in ("target_net", "encoder_k"):
        if hasattr(model, copy):
            getattr(model, copy)[0].load_state_dict(backbone.state)
    return f"{backbone.format} backbone; the rest from the seed"


def to_openselfsup(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the kit's Triplet or BYOL networks to OpenSelfSup's names: the inverse of
    ``weights.initial``."""
    named = {
        theirs + key.removeprefix(ours): value
        for key, value in state.items()
        for theirs, ours in AUTHORS.items()
        if key.startswith(ours)
    }
    online = "online_net.0."
    return named | {
        "backbone." + key.removeprefix(online): value
        for key, value in named.items()
        if key.startswith(online)
    }
