"""Measurement of the features' k-NN accuracy every few epochs of a pretraining."""

import contextlib

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from triplet.errors import KitError
from triplet.images import Images, decode
from triplet.knn import accuracy, knn_predict
from triplet.models.networks import Networks
from triplet.pretrain.config import Pretrain
from triplet.pretrain.views import centre_view, normalize
from triplet.signals import Stop
from triplet.training.distributed import Processes
from triplet.training.loading import load


class _MonitorCrops(Dataset[Tensor]):
    """Load n images as (n, 3, size, size) uint8: resize the shorter side to 256/224 of the size, then crop
    the centre."""

    def __init__(self, images: Images, size: int) -> None:
        self.images, self.size = images, size

    def __getitem__(self, indices: list[int]) -> Tensor:
        return torch.stack([self._crop(index) for index in indices])

    def _crop(self, index: int) -> Tensor:
        try:
            image = decode(self.images.read(index))
        except Exception:  # training counts unreadable images; here one becomes a grey square
            image = Image.new("RGB", (self.size, self.size), (124, 116, 104))
        pixels = centre_view(image, round(self.size * 256 / 224), self.size)
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


class KnnMonitor:
    """Measure the k-NN accuracy of the backbone's pooled features on a fixed sample of the training images.

    Every process extracts a share of the features; the networks stay unchanged.

    Raises:
        KitError: the images have no labels, or there are too few of them.
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
        """Return the percentage of the second half that the first half classifies correctly; ``stop`` as in
        ``loading.load``."""
        backbone, device = networks.online.backbone, self.processes.device
        batches = [self.mine[i : i + 128] for i in range(0, len(self.mine), 128)]
        crops = _MonitorCrops(self.images, self.config.views.size)
        dtype, mixed = next(backbone.parameters()).dtype, self.config.precision == "bfloat16"
        found = []
        backbone.eval()
        try:
            with contextlib.closing(load(crops, batches, workers=self.config.loaders, stop=stop)) as loaded:
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
            features[:half],
            self.labels[:half],
            features[half:],
            neighbours=settings.neighbours,
            temperature=settings.temperature,
        )
        return accuracy(predicted, self.labels[half:])
