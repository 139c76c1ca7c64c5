"""Features of a frozen backbone, computed once and kept in memory-mapped shards."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.linear.backbone import load_backbone, pooled
from benchmarks.linear.config import Common
from benchmarks.linear.data import CenterCrops, Crops, Labelled, collate
from benchmarks.linear.stage import Task
from triplet import files, paths
from triplet.errors import KitError
from triplet.progress import Bar
from triplet.records import Job
from triplet.signals import graceful
from triplet.training.distributed import Processes, perform
from triplet.training.loading import stream

ROWS = 65_536
"""Number of rows in a shard, 0.3 GB of a ResNet-50's features."""
BATCH = 256


class Features:
    """The (n, channels) float16 features of one view of a set, in order."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self.shards: list[NDArray[Any]] = [np.load(path, mmap_mode="r") for path in shards]
        self.length = len(self.shards[0])

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    @property
    def bytes(self) -> int:
        """Size of all rows in bytes."""
        return sum(shard.nbytes for shard in self.shards)

    def rows(self, places: NDArray[Any]) -> Tensor:
        """Return (k, channels) float16 on the CPU, read from the disk or its cache."""
        found = np.empty((len(places), self.shards[0].shape[1]), dtype=np.float16)
        shard, row = np.divmod(places, self.length)
        for number in np.unique(shard):
            here = shard == number
            found[here] = self.shards[number][row[here]]
        return torch.from_numpy(found)

    def on(self, device: torch.device) -> Tensor:
        """Return all rows on a device."""
        whole = torch.empty((len(self), self.shards[0].shape[1]), dtype=torch.float16, device=device)
        for number, shard in enumerate(self.shards):
            whole[number * self.length :][: len(shard)] = torch.from_numpy(np.array(shard)).to(device)
        return whole


def extract(
    config: Common, task: Task, sets: Mapping[str, Labelled], *, crops: int = 0
) -> dict[str, Features]:
    """Compute the features of every image of the sets, for its centre or for ``crops`` random crops.

    They are stored in ``checkpoints/<run>/features/centres`` or ``crops``, with a record; existing features
    are used, and those of other weights, images or settings are replaced. Processes share the shards; a
    stopped run keeps the complete ones.

    Args:
        config: settings of the images; its seed determines the crops.
        task: the run and its weights; each of its processes calls this, on one file system.
        sets: sets of images by name.
        crops: number of crops per image; 0 for the centre.

    Returns:
        Features by ``<set>`` for centres, or by ``<set>-<crop>`` from 0 for crops.

    Raises:
        KitError: an unreadable image, several machines, or another process at work there.
        Interrupted: a signal stopped the call.
    """
    processes, inputs = task.processes, task.inputs
    if processes.nodes > 1:
        raise KitError(f"features are kept on one machine: found {processes.nodes} nodes, leave NODES out")
    folder = paths.stage_folder(task.run, "features") / ("crops" if crops else "centres")
    views: dict[str, tuple[Dataset[Any], list[Any]]] = {}
    for name, data in sets.items():
        places = range(len(data))
        if not crops:
            views[name] = CenterCrops(data, config.images), list(places)
        for crop in range(crops):
            views[f"{name}-{crop}"] = Crops(data, config.images, config.seed), [(crop, p) for p in places]
    shards = [
        (folder / f"{name}-{first // ROWS:05d}.npy", dataset, items[first : first + ROWS])
        for name, (dataset, items) in views.items()
        for first in range(0, len(items), ROWS)
    ]

    relevant = {"images", "precision", *(["seed"] if crops else [])}

    def work(job: Job) -> None:
        _write(shards[processes.rank :: processes.size], inputs["weights"], config, processes)
        processes.gather(None)  # a barrier: all shards exist
        job.outputs.update({path.stem: path for path, *_ in shards})

    perform(
        processes,
        "features",
        folder,
        work,
        config={**config.model_dump(mode="json", include=relevant), "crops": crops},
        inputs=inputs,
        derived=True,
        seed=config.seed if crops else None,
    )
    processes.gather(None)  # a barrier: the record is written
    return {name: Features(sorted(folder.glob(f"{name}-?????.npy"))) for name in views}


@torch.no_grad()
def _write(
    shards: Sequence[tuple[Path, Dataset[Any], list[Any]]],
    weights: Path,
    config: Common,
    processes: Processes,
) -> None:
    """Write the missing shards."""
    left = [shard for shard in shards if not shard[0].exists()]
    backbone, _ = load_backbone(weights)
    backbone.to(processes.device, memory_format=torch.channels_last).eval()
    torch.backends.cudnn.benchmark = True  # all images have the same size
    mixed, total = config.precision == "bfloat16", sum(len(items) for *_, items in shards)
    done = total - sum(len(items) for *_, items in left)
    with graceful() as stop, Bar("features", total, done, quiet=not processes.is_main_process) as bar:
        for path, dataset, items in left:
            batches = [items[first : first + BATCH] for first in range(0, len(items), BATCH)]
            found = np.empty((len(items), backbone.channels), dtype=np.float16)
            filled = 0
            with contextlib.closing(
                stream(dataset, batches, collate, config.loaders, processes.device, stop)
            ) as loaded:
                for pixels, _ in loaded:
                    if stop:
                        raise stop.interrupted(f"{bar.done - filled} of {total} features are kept")
                    found[filled : filled + len(pixels)] = (
                        pooled(backbone, pixels, mixed=mixed).cpu().numpy()
                    )
                    filled += len(pixels)
                    bar.step(count=len(pixels))
            if not np.isfinite(found).all():
                raise KitError(
                    f"features of {weights} are not finite in float16: use a config with training"
                )
            with files.atomic(path) as temporary, temporary.open("wb") as file:
                np.save(file, found)
