"""VOC2007 for classification: labelled images, pooled features of five layers, low-shot draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms import functional as TF

from triplet import untrusted
from triplet.annotations.image_files import missing
from triplet.annotations.voc import read_list
from triplet.commands import typed
from triplet.errors import KitError
from triplet.images import decode
from triplet.models.resnet import ResNet
from triplet.pretrain.views import Pixels, normalize

# Kernel, stride and padding of the average pooling after the stem and each stage, for images of 224 px:
# OpenSelfSup's MultiPooling. A ResNet-50's features have 9216, 9216, 8192, 9216 and 8192 values.
POOLS = ((10, 10, 4), (16, 8, 0), (13, 5, 0), (8, 3, 0), (6, 1, 0))
SIZE = 224


@dataclass(frozen=True)
class Split:
    """One of VOC2007's image sets."""

    names: list[str]
    targets: NDArray[Any]
    """(n, classes) labels: 1 present, 0 absent, -1 present and difficult."""
    classes: list[str]


def read_split(folder: Path, split: str) -> Split:
    """Read the images of ``ImageSets/Main/<split>.txt`` and their classes from ``<class>_<split>.txt``.

    Raises:
        KitError: a list is missing or does not fit, or an image is missing.
    """
    main = folder / "ImageSets" / "Main"
    lists = sorted(path for path in main.glob(f"*_{split}.txt") if path.name.count("_") == 1)
    if not lists or not (main / f"{split}.txt").exists():
        raise KitError(
            f"{folder} has no ImageSets/Main/{split}.txt with a list for each class; run: "
            f"{typed('pull', 'voc')}"
        )
    names = sorted(read_list(main / f"{split}.txt"))
    places = {name: place for place, name in enumerate(names)}
    targets = np.zeros((len(names), len(lists)), dtype=np.int64)
    for number, path in enumerate(lists):
        words = untrusted.read_text(path, untrusted.NAMES, "list of labels").split()
        labels = set(words[1::2])
        if len(words) != 2 * len(names) or sorted(words[::2]) != names or not labels <= {"-1", "0", "1"}:
            raise KitError(f"{path} does not list 1, 0 or -1 for each image of {split}.txt")
        for name, word in zip(words[::2], words[1::2], strict=True):
            targets[places[name], number] = {"1": 1, "0": -1, "-1": 0}[word]
    images = folder / "JPEGImages"
    if absent := missing(images, [f"{name}.jpg" for name in names]):
        raise KitError(f"{images}: {len(absent)} of {len(names)} images are missing, {absent[0]} first")
    return Split(names, targets, [path.name.partition("_")[0] for path in lists])


class VOC07Images(Dataset[tuple[Pixels, int]]):
    """Data set that maps i to image i of a split as (224, 224, 3) uint8, and i."""

    def __init__(self, folder: Path, split: Split) -> None:
        self.folder, self.split = folder, split

    def __len__(self) -> int:
        return len(self.split.names)

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        path = self.folder / "JPEGImages" / f"{self.split.names[index]}.jpg"
        try:
            image = decode(untrusted.read_bytes(path, untrusted.IMAGE, "image"))
        except KitError as error:  # unsupported pixels
            raise KitError(f"{path} {error}") from None
        except Exception as error:  # Pillow's plug-ins may raise anything
            raise KitError(f"{path} cannot be read ({error!r:.60}); fetch it again") from None
        return square(image), index


def square(image: Image.Image) -> Pixels:
    """Resize the shorter side to 256 px, then to 224 x 224 whatever its shape, as extract_info/voc07.py
    does."""
    return np.asarray(TF.resize(TF.resize(image, 256), [SIZE, SIZE]))


def pooled_layers(backbone: ResNet, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Compute for each layer the (n, d) float64 features of (n, 3, 224, 224) uint8, normalised as
    svm_helper does."""
    x = backbone.relu(backbone.bn1(backbone.conv1(normalize(pixels))))
    found = []
    for layer in range(1, max(layers) + 1):
        if layer > 1:
            x = getattr(backbone, f"layer{layer - 1}")(backbone.maxpool(x) if layer == 2 else x)
        if layer in layers:
            kernel, stride, padding = POOLS[layer - 1]
            flat = F.avg_pool2d(x, kernel, stride, padding).flatten(1).double()
            found.append((layer, flat / (flat.norm(dim=1, keepdim=True) + 1e-5)))
    return [dict(found)[layer] for layer in layers]


def low_shot(targets: NDArray[Any], number: int, shots: int, sample: int, seed: int) -> NDArray[Any]:
    """Draw the places of ``shots`` images with a class and of shots x (classes - 1) without it, by the
    seed.

    OpenSelfSup draws its five samples without a seed, so these samples differ.

    Raises:
        KitError: the class has fewer images.
    """
    rng = np.random.default_rng((seed, sample, shots, number))
    chosen = []
    for target, count in ((1, shots), (0, shots * (targets.shape[1] - 1))):
        places = np.flatnonzero(targets[:, number] == target)
        if len(places) < count:
            raise KitError(
                f"class {number} has {len(places)} images with target {target}, expected {count} for "
                f"{shots} shots; lower shots"
            )
        chosen.append(rng.choice(places, count, replace=False))
    return np.sort(np.concatenate(chosen))
