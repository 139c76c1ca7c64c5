"""What a run says of itself: a line of JSON and TensorBoard scalars for each step, k-NN now and then."""

import contextlib
import json
import resource
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from triplet import files
from triplet.errors import KitError
from triplet.images import Images
from triplet.knn import accuracy, knn_predict
from triplet.pretrain.config import Loss, Pretrain
from triplet.pretrain.data import decode
from triplet.pretrain.distributed import Processes
from triplet.pretrain.loss import distances
from triplet.pretrain.networks import Networks
from triplet.pretrain.views import centre_view, normalize
from triplet.progress import duration
from triplet.signals import Stop
from triplet.training.loading import load

MEASURES = ("loss", "positive_cosine", "negative_cosine", "feature_std", "feature_rank")


@torch.no_grad()
def measure(loss: Tensor, predictions: Tensor, targets: Tensor, config: Loss) -> Tensor:
    """(5,) values of one pass, on its device and without waiting for it: see ``MEASURES``.

    positive_cosine: mean of each prediction's with its own target. negative_cosine: mean with the hard
    negatives that the loss takes. feature_std: of normalised target features, times sqrt(d): 1 when they
    spread evenly over the sphere, 0 after a collapse to a point. feature_rank: their participation ratio
    ``(sum of eigenvalues)^2 / sum of squared eigenvalues`` of the covariance, between 1 (collapsed to a
    line) and d.
    """
    positive, deputy = distances(predictions, targets, config.nearest, config.skip, config.group)
    z = F.normalize(targets.float(), dim=1)
    centred = z - z.mean(0)
    covariance = centred.T @ centred
    spread = z.std(0).mean() * z.shape[1] ** 0.5
    rank = covariance.diagonal().sum().square() / covariance.square().sum().clamp(min=1e-30)
    return torch.stack([loss.detach().float(), -positive.mean() / 2, -deputy.mean() / 2, spread, rank])


class Log:
    """``metrics.jsonl`` and ``tensorboard/`` of a run; says nothing unless this is the first process.

    Args:
        folder: of the run.
        start: optimiser steps done; later lines of an earlier session are cut off.
        iterations: micro-batches in a step.
        first: whether to write at all.
    """

    def __init__(self, folder: Path, start: int, iterations: int, *, first: bool) -> None:
        self.last: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()
        self._first = first
        if not first:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "metrics.jsonl"
        self.last = files.cut_lines(path, "iteration", start * iterations)
        self._lines = self._stack.enter_context(path.open("a"))
        self._board = self._stack.enter_context(
            SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Log one optimiser step, whole at once so that a reader never sees half a line."""
        self.last = values
        if not self._first:
            return
        self._lines.write(json.dumps(values) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)


class Pace:
    """How fast a run goes, and how long it will take.

    Args:
        batch: images in an optimiser step, over all processes.
        steps: of the whole run.
        start: of them done already.
    """

    SETTLED, KNOWN = 10, 20
    """Steps of a session after which the time is taken, and then told: the first ones compile, tune and
    fill caches."""

    def __init__(self, batch: int, steps: int, start: int) -> None:
        self.batch, self.steps, self.start = batch, steps, start
        self._began = self._last = time.monotonic()
        self._done, self._settled = 0, 0.0

    def step(self, waited: float) -> dict[str, float]:
        """What the log says of a step that ends now, ``waited`` seconds of which went by without data."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._done += 1
        if self._done == self.SETTLED:
            self._settled = now
        return {
            "step_time": round(seconds, 4),
            "data_time": round(waited, 4),
            "images_per_second": round(self.batch / max(seconds, 1e-9), 2),
        }

    def pause(self) -> None:
        """What happened since the step's end is no part of the next one."""
        self._last = time.monotonic()

    def forecast(self, done: int) -> str | None:
        """Once, after the first steps of a session: how long the run will take."""
        if self._done != self.KNOWN or done == self.steps:
            return None
        step = (self._last - self._settled) / (self.KNOWN - self.SETTLED)
        left, whole = duration(step * (self.steps - done)), duration(step * self.steps)
        return f"{self.batch / step:.1f} images/s: about {left} to go, {whole} in all"

    def average(self) -> float | None:
        """Images per second of this session, None if it did nothing."""
        seconds = time.monotonic() - self._began
        return round(self._done * self.batch / seconds, 2) if self._done else None


def memory(device: torch.device) -> int:
    """Most bytes that this process has held so far: on its GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _Centres(Dataset[Tensor]):
    """(n, 3, size, size) uint8 of n images: the shorter side to 256/224 of the size, then the centre."""

    def __init__(self, images: Images, size: int) -> None:
        self.images, self.size = images, size

    def __getitem__(self, indices: list[int]) -> Tensor:
        return torch.stack([self._centre(index) for index in indices])

    def _centre(self, index: int) -> Tensor:
        try:
            image = decode(self.images.read(index))
        except Exception:  # counted where it is trained on; here it is a grey square
            image = Image.new("RGB", (self.size, self.size), (124, 116, 104))
        pixels = centre_view(image, round(self.size * 256 / 224), self.size)
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


class Knn:
    """k-NN accuracy of the backbone's pooled features on a fixed sample of the training images.

    Every process extracts a share of the features; the networks are left as they were.

    Raises:
        KitError: the images have no labels, or too few of them are there.
    """

    def __init__(self, config: Pretrain, images: Images, processes: Processes) -> None:
        if images.labels is None:
            raise KitError(
                "monitor.every asks for k-NN and these images have no classes: put each class in a folder "
                "of its own, list 'path class', or set monitor.every=0"
            )
        rng = np.random.default_rng((config.seed, 0xC1A55))
        chosen = rng.permutation(len(images))[: config.monitor.images]
        if len(chosen) < 2 * processes.size:
            raise KitError(f"k-NN of {len(chosen)} images needs {2 * processes.size}; set monitor.every=0")
        self.config, self.images, self.processes = config, images, processes
        self.labels = torch.from_numpy(images.labels[chosen]).to(processes.device)
        self.mine = chosen[processes.rank :: processes.size].tolist()

    @torch.no_grad()
    def __call__(self, networks: Networks, stop: Stop) -> float:
        """Percent of the second half classified right by the first; ``stop`` as of ``loading.load``."""
        backbone, device = networks.online.backbone, self.processes.device
        batches = [self.mine[i : i + 128] for i in range(0, len(self.mine), 128)]
        centres = _Centres(self.images, self.config.views.size)
        dtype, mixed = next(backbone.parameters()).dtype, self.config.precision == "bfloat16"
        found = []
        backbone.eval()
        try:
            with contextlib.closing(
                load(centres, batches, workers=self.config.loaders, stop=stop)
            ) as loaded:
                for pixels in loaded:
                    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                        found.append(backbone(normalize(pixels.to(device), dtype)).mean((2, 3)).float())
        finally:
            backbone.train()
        parts = self.processes.gather(torch.cat(found).cpu())
        features = torch.empty(len(self.labels), parts[0].shape[1], device=device)
        for rank, part in enumerate(parts):
            features[rank :: self.processes.size] = part.to(device)
        half, settings = len(features) // 2, self.config.monitor
        predicted = knn_predict(
            features[:half], self.labels[:half], features[half:],
            neighbours=settings.neighbours, temperature=settings.temperature,
        )  # fmt: skip
        return accuracy(predicted, self.labels[half:])
