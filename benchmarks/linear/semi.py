"""The semi stage: finetune the whole network on one or ten percent of the training images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.linear.backbone import Classifier, Head, load_backbone
from benchmarks.linear.config import Semi
from benchmarks.linear.data import Labelled
from benchmarks.linear.stage import ImageNetOptions, Task, run_stage
from benchmarks.linear.training import fit
from triplet import untrusted
from triplet.config import load
from triplet.errors import KitError

WHERE = (
    "SimCLR's imagenet_subsets/1percent.txt and 10percent.txt (github.com/google-research/simclr), or "
    "train_labeled_*percent.txt that OpenSelfSup's docs/INSTALL.md links to"
)


def semi(
    config: Path,
    options: ImageNetOptions,
    overrides: Sequence[str] = (),
    *,
    listed: Path | None,
    draw: bool,
) -> None:
    """Finetune and test by a config of configs/linear/.

    Args:
        config: file with the settings of OpenSelfSup's semi_classification.
        options: the run and the images.
        overrides: settings as ``key.sub=value``.
        listed: list of the training images, see ``from_list``.
        draw: whether to draw a share of each class by the seed instead, as in no published result.

    Raises:
        KitError: neither ``listed`` nor ``draw``; or bad settings, weights or data.
        Interrupted: a signal stopped the stage, after saving.
    """
    settings = load(config, Semi, overrides)
    if (listed is None) != draw:
        found = "both" if draw else "neither"
        raise KitError(f"name the list (--list FILE; {WHERE}), or --draw one by the seed: found {found}")

    def work(task: Task) -> None:
        chosen = from_list(task.train, listed) if listed else drawn(task.train, settings)
        backbone, found = load_backbone(task.inputs["weights"])
        training = settings.training
        torch.manual_seed(settings.seed)
        head = Head(backbone.channels, len(chosen.classes), training.epochs)
        model = Classifier(backbone, head, frozen=False, mixed=settings.precision == "bfloat16")
        fit(model, settings, training, replace(task, train=chosen))
        task.job.results |= {"weights": found.format, "percent": settings.percent, "drawn": draw}

    more = {"list": listed} if listed else {}
    run_stage("semi", config, settings, options, work, more)


def from_list(train: Labelled, path: Path) -> Labelled:
    """Return the training images that a list names.

    Args:
        train: all training images.
        path: file with lines ``n01440764_10026.JPEG`` (SimCLR's) or ``n01440764/n01440764_10026.JPEG 0``
            (OpenSelfSup's); only the file's name counts, and its class is that of the training image.

    Raises:
        KitError: an image is missing or occurs twice.
    """
    names = [Path(train.images.name(int(index))).name for index in train.indices]
    places = {name: place for place, name in enumerate(names)}
    if len(places) != len(names):
        raise KitError(
            f"{len(names) - len(places)} training images share a name: a list cannot tell them apart"
        )
    try:
        text = untrusted.read_text(path, untrusted.LISTING, "list of images")
        wanted = [Path(line.split()[0]).name for line in text.splitlines() if line.strip()]
    except (OSError, KitError) as error:
        raise KitError(f"no list of images at {path} ({error}); {WHERE}") from None
    if missing := [name for name in wanted if name not in places]:
        raise KitError(
            f"{path} names {len(missing)} of {len(wanted)} images that are not in the training set, "
            f"{missing[0]} first; is it ImageNet's?"
        )
    if len(set(wanted)) != len(wanted) or not wanted:
        raise KitError(f"{path} lists {len(wanted)} images, {len(set(wanted))} different")
    return train.only([places[name] for name in wanted])


def drawn(train: Labelled, config: Semi) -> Labelled:
    """Draw the same share of each class, at least one image, by the seed alone."""
    order = np.random.default_rng((config.seed, 0x5E31)).permutation(len(train))
    ordered, places = train.labels[order], list[int]()
    for label in range(len(train.classes)):
        of_class = order[ordered == label]
        places += of_class[: max(1, round(len(of_class) * config.percent / 100))].tolist()
    return train.only(sorted(places))
