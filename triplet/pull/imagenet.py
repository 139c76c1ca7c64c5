"""ImageNet's development kit, and its validation images in class folders."""

from pathlib import Path

import scipy.io

from triplet.errors import KitError

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def validation_classes(devkit: Path) -> list[str]:
    """The class of each validation image, in order, as a WordNet id such as ``n01440764``.

    Args:
        devkit: the unpacked ``ILSVRC2012_devkit_t12``.

    Raises:
        KitError: it is not what the devkit's readme.txt describes.
    """
    try:
        synsets = scipy.io.loadmat(devkit / "data" / "meta.mat", squeeze_me=True)["synsets"]
        leaves = {
            int(entry["ILSVRC2012_ID"]): str(entry["WNID"])
            for entry in synsets
            if not entry["num_children"]
        }
        return [leaves[int(line)] for line in (devkit / "data" / GROUND_TRUTH).read_text().split()]
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise KitError(f"{devkit} is no development kit of ILSVRC 2012: {error!r:.120}") from None


def sort_validation(images: Path, devkit: Path) -> None:
    """Move ``ILSVRC2012_val_00000001.JPEG`` ... into class folders; those that lie there already stay.

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
