"""Checks of the training: divergence, a rate that does not fit its batch, other data, other image sizes."""

import re
from collections.abc import Iterator

from triplet.published import effects
from triplet.published.causes.cause import POSSIBLE, SEEN, Cause, Result, amount, excluded
from triplet.published.causes.network import NOTHING_LEARNED
from triplet.published.configs import recipes
from triplet.published.curves import IMAGES
from triplet.published.facts import Facts
from triplet.published.methods import load_methods
from triplet.published.reference import Reference

SMALL = 1.5
"""Largest shortfall in AP that may be explained by noise, or by a rate tuned for the published result."""
DECAY = 1e-4
"""Weight decay of Detectron2's and mmdetection's R-CNNs."""
WHOLE_SETS = ("coco_2017_train", "coco_2014_train, coco_2014_valminusminival")
"""Names of the training sets of the published runs."""
PART = re.compile(r"val|test|mini|subset|part|small|tiny|percent|pct|%|frac|2014|voc", re.I)
"""Words in the name of a training set that is not all of train2017."""


def divergence(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for a loss that became infinite or NaN, or never fell."""
    _, _, source = effects.size("divergence")
    lost = (max(0.0, reference.box - result[0]),) * 2
    if facts.diverged:
        yield Cause("divergence", SEEN, f"{facts.diverged}; {source}", lost)
    elif facts.converged:
        yield excluded("divergence", "the log's loss stayed finite and fell")
    else:
        nothing = result[0] < NOTHING_LEARNED
        yield Cause(
            "divergence",
            POSSIBLE,
            f"only a log shows whether the loss stayed finite and fell: {source}",
            hinted=nothing,
        )


def rate(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for a learning rate that does not fit the batch."""
    name = "learning rate"
    both, _, source = effects.size("lr-too-high")
    if facts.rate is None or facts.batch is None or (reference.of_table and facts.scheduler is None):
        text = f"too high for a smaller batch: {source}"
        yield Cause(name, POSSIBLE, text, both, sizes=effects.sizes("lr-too-high"))
        return
    right = reference.rate(facts) * facts.batch / 16
    times = facts.rate / right
    text = f"{facts.rate:g} for {facts.batch} images; the recipe's, scaled with the batch, is {right:.3g}"
    if times >= 1.5:
        cost, _, source = effects.size("lr-too-high", severe=times >= 4)
        yield Cause(name, SEEN, f"{text}, which is {times:.1f} times less; {source}", cost)
    elif times > 0.6:
        yield excluded(name, text)
    else:
        yield Cause(name, POSSIBLE, text)


def recipe(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for a run that used the other one of the table's two recipes."""
    known = recipes().get(facts.scheduler or "")
    if known is None or not reference.of_table:
        return
    theirs = load_methods()[reference.method].recipe
    if known[0] != theirs:
        text = f"{facts.scheduler} belongs to the recipe {known[0]}, the published AP to {theirs}"
        yield Cause("another recipe", SEEN, f"{text}; no published size")


def decay(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for a weight decay far from that of all published runs."""
    if facts.decay is not None and not DECAY / 4 < facts.decay < 4 * DECAY:
        text = f"{facts.decay:g}, where the published runs have {DECAY:g}; no published size"
        yield Cause("weight decay", SEEN, text)


def tuned_rate(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check whether rate and weight decay were tuned for the published result."""
    if max(each or 0.0 for each in amount(reference, result)) > SMALL:
        return
    box, mask, source = effects.size("rate-tuned")
    text = f"the paper of the target may have searched rate and weight decay; {source}"
    yield Cause("rate tuned for the target", POSSIBLE, text, box, mask)


def rescaled(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check whether Detectron2 rescaled batch, rate and schedule by the number of GPUs."""
    name = "rescaled by the number of GPUs"
    _, _, source = effects.size("rescaled")
    if facts.reference_gpus is None:
        yield Cause(name, POSSIBLE, source)
    elif not facts.reference_gpus or facts.gpus == facts.reference_gpus:
        yield excluded(name, f"REFERENCE_WORLD_SIZE is {facts.reference_gpus}")
    elif facts.gpus is None:
        text = f"REFERENCE_WORLD_SIZE is {facts.reference_gpus}; on how many GPUs it ran is unknown"
        yield Cause(name, POSSIBLE, f"{text}; {source}")
    else:
        by = facts.gpus / facts.reference_gpus
        text = (
            f"REFERENCE_WORLD_SIZE is {facts.reference_gpus} and it ran on {facts.gpus}: batch and rate are"
        )
        yield Cause(
            name, SEEN, f"{text} {by:g} times the config's, iterations {1 / by if by else 0:g}; {source}"
        )


def data(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for a training set that is only a part of the published one, or a different one."""
    name = "training data"
    _, _, source = effects.size("data")
    if facts.images is not None and facts.images < 0.97 * IMAGES:
        yield Cause(name, SEEN, f"{facts.images} images, where the published runs had {IMAGES}; {source}")
    elif facts.classes not in (80, None):
        yield Cause(name, SEEN, f"the head has {facts.classes} classes, and COCO has 80; {source}")
    elif facts.images is not None:
        yield excluded(name, f"{facts.images} images")
    elif facts.train is None:
        yield Cause(name, POSSIBLE, source)
    elif facts.train in WHOLE_SETS:
        yield excluded(name, facts.train)
    elif "train" in facts.train and "2017" in facts.train and not PART.search(facts.train):
        text = f"whether {facts.train} is all of train2017, its name does not say; {source}"
        yield Cause(name, POSSIBLE, text)
    else:
        yield Cause(name, SEEN, f"{facts.train or 'none'} is not all of train2017; {source}")


def image_sizes(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for training images of a single size, or of small ones."""
    name = "image sizes"
    cost, _, source = effects.size("images")
    if facts.sizes is None:
        yield Cause(name, POSSIBLE, source, cost)
    elif max(facts.sizes) < 700:
        yield Cause(
            name, SEEN, f"shorter sides up to {max(facts.sizes)}, where the recipe has 640 to 800; {source}"
        )
    elif facts.longest is not None and 0 < facts.longest < 1000:
        yield Cause(
            name,
            SEEN,
            f"longer sides up to {facts.longest}, where the recipe has 1200 or 1333; {source}",
        )
    elif len(set(facts.sizes)) == 1:
        verdict = SEEN if reference.method else POSSIBLE  # outside the table it is common practice
        yield Cause(
            name,
            verdict,
            f"shorter sides of {facts.sizes[0]} only, where the recipe has 640 to 800; {source}",
            cost,
        )
    else:
        yield excluded(name, f"shorter sides of {min(facts.sizes)} to {max(facts.sizes)}")


def mixed_precision(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for training in float16."""
    cost, masks, source = effects.size("mixed-precision")
    if facts.mixed is False:
        yield excluded("mixed precision", "float32")
    else:
        verdict = SEEN if facts.mixed else POSSIBLE
        yield Cause("mixed precision", verdict, source, cost, masks)


def noise(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Return noise between runs as a cause: two trainings of the same recipe differ."""
    if max(each or 0.0 for each in amount(reference, result)) <= SMALL:
        box, mask, source = effects.size("noise")
        yield Cause("noise", POSSIBLE, source, box, mask)
