"""Sorting of ImageNet's validation images into class folders, by the development kit or Kaggle's table."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import scipy.io

from triplet import files, untrusted
from triplet.errors import KitError

SOLUTION = "LOC_val_solution.csv"
"""Kaggle's table: a line ``ImageId,PredictionString`` for each validation image."""
MAPPING = "LOC_synset_mapping.txt"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def validation_classes(devkit: Path) -> list[str]:
    """Return the class of each validation image in order, as a WordNet id such as ``n01440764``.

    Args:
        devkit: the unpacked ``ILSVRC2012_devkit_t12``.

    Raises:
        KitError: the folder differs from the description in the devkit's readme.txt.
    """
    try:
        table = untrusted.read_bytes(devkit / "data" / "meta.mat", untrusted.NAMES, "table of classes")
        synsets = scipy.io.loadmat(io.BytesIO(table), squeeze_me=True)["synsets"]
        leaves = {
            int(entry["ILSVRC2012_ID"]): str(entry["WNID"])
            for entry in synsets
            if not entry["num_children"]
        }
        truth = untrusted.read_text(devkit / "data" / GROUND_TRUTH, untrusted.NAMES, "list of classes")
        return [leaves[int(line)] for line in truth.split()]
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, MemoryError) as error:
        raise KitError(f"{devkit} is not a development kit of ILSVRC 2012: {error!r:.120}") from None


def sort_validation(images: Path, devkit: Path) -> None:
    """Move ``ILSVRC2012_val_00000001.JPEG`` ... into class folders; images already there stay.

    Raises:
        KitError: an image is missing.
    """
    for number, name in enumerate(validation_classes(devkit), 1):
        image = f"ILSVRC2012_val_{number:08d}.JPEG"
        target = images / name / image
        if (images / image).exists():
            target.parent.mkdir(exist_ok=True)
            (images / image).replace(target)
        elif not target.exists():
            raise KitError(f"{images / image} is missing; the development kit lists it")


@dataclass(frozen=True)
class Kaggle:
    """ImageNet as unpacked from Kaggle's imagenet-object-localization-challenge: without development kit,
    and with a flat val."""

    images: Path
    """Folder that holds train, in class folders, and val."""
    solution: Path

    @classmethod
    def find(cls, path: Path) -> "Kaggle | None":
        """Find the layout at an unpacked folder or at one of the folders inside."""
        inside = [path / place for place in ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC", ".")]
        images = next(
            (each for each in inside if (each / "train").is_dir() and (each / "val").is_dir()), None
        )
        around = (path, *path.absolute().parents[:3], *(images.parents[:3] if images else ()), path / "val")
        solution = next((each / SOLUTION for each in around if (each / SOLUTION).is_file()), None)
        if images and not solution and any(images.glob("val/ILSVRC2012_val_*")):
            raise KitError(
                f"{images} is Kaggle's ImageNet without {SOLUTION}, which has the classes of val; fetch it "
                f"from Kaggle too, and put it into {path}"
            )
        return cls(images, solution) if images and solution else None

    def files(self) -> Iterator[tuple[Path, str, int]]:
        """Yield each file, its path below ``train``, ``val`` and ``devkit``, and its size in bytes.

        Raises:
            KitError: the table has another form, or lacks a validation image.
        """
        known = self.classes()
        for name, size in files.walk(self.images / "train"):
            yield self.images / "train" / name, f"train/{name}", size
        for name, size in files.walk(self.images / "val"):
            if name == SOLUTION:
                continue
            if "/" not in name and Path(name).stem not in known:
                raise KitError(f"{self.solution} does not name {name}, which is in {self.images / 'val'}")
            place = name if "/" in name else f"{known[Path(name).stem]}/{name}"
            yield self.images / "val" / name, f"val/{place}", size
        for path in (self.solution, self.solution.with_name(MAPPING)):
            if path.is_file():
                yield path, f"devkit/{path.name}", path.stat().st_size

    def classes(self) -> dict[str, str]:
        """Return the class of each validation image, as a WordNet id, by the image's name without
        suffix."""
        try:
            text = untrusted.read_text(self.solution, untrusted.NAMES, "table of classes")
            rows = csv.DictReader(io.StringIO(text, newline=""))
            named = [row for row in rows if (row["ImageId"] or "").strip()]
            pairs = sorted({(row["ImageId"].strip(), row["PredictionString"].split()[0]) for row in named})
        except (OSError, ValueError, LookupError, AttributeError, csv.Error) as error:
            raise KitError(
                f"{self.solution} is not Kaggle's table of ImageId,PredictionString: {error!r:.120}"
            ) from None
        found = dict(pairs)
        if twice := next((image for image, name in pairs if found[image] != name), None):
            raise KitError(f"{self.solution} gives {twice} two classes; fetch it again")
        if odd := next((name for name in found.values() if not re.fullmatch(r"n[0-9]{8}", name)), None):
            raise KitError(f"{self.solution}: found {odd!r:.40}, expected a class such as n01440764")
        return found
