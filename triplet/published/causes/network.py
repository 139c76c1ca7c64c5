"""Checks of the network: its weights, its normalisation, its frozen stages, its input and its
evaluation."""

from collections.abc import Iterator
from statistics import fmean

from triplet.config import Range
from triplet.published import curves, effects
from triplet.published.causes.cause import POSSIBLE, SEEN, Cause, Result, excluded
from triplet.published.causes.length import count
from triplet.published.facts import MSRA, MSRA_OF_CAFFE2, TORCH, Facts, PixelFormat
from triplet.published.reference import Reference

ANY = "moco-v2"
"""Method whose ratio of box to mask AP stands for all: methods differ less than the two detectors do."""
NOTHING_LEARNED = 2.0
"""Box AP below which hardly anything was learned, or the evaluation is wrong; 900 iterations give 5."""
LEAST_RATIO = 0.7
"""Smallest plausible ratio of mask AP to box AP; the lowest published one is 0.83."""
VAL_SETS = ("coco_2017_val", "coco_2014_minival")
"""Names of the 5000 images on which the published runs were evaluated."""
FROZEN = ("FrozenBN", "")
"""Detectron2's names of norms that do not train."""

ANOTHER = {
    "byol_r50-e3b0c442.pth": "the zoo's former BYOL (batch 4096), withdrawn for bugs (mmselfsup issue 89)",
    "moco_r50_v2-58f10cfe.pth": "the zoo's MoCo v2 of August 2020, which the present one replaced",
    "moco_v2_200ep_pretrain.pth.tar": "MoCo's own release, where the table has OpenSelfSup's",
    "moco_v1_200ep_pretrain.pth.tar": "MoCo's own release, where the table has OpenSelfSup's",
}
"""Files named after a method that are not the weights of that method in the table."""


def weights(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for a backbone that stayed random, wholly or in part."""
    name = "weights not loaded"
    if reference.method == "random":
        yield excluded(name, "the method itself has random weights")
        return
    length = facts.length or reference.iterations
    box, mask = reference.random(length)
    at = f"random weights give {box} / {mask} after {count(length)} iterations"
    due = reference.expected(length)[0]
    cost: Range = (max(0.0, due.low - box.high), max(0.0, due.high - box.low))
    if facts.unloaded:
        more = f" and {len(facts.unloaded) - 1} more" if facts.unloaded[1:] else ""
        text = f"the log says that {facts.unloaded[0]}{more} stayed random; {at}"
        yield Cause(name, SEEN, text, (0.0, cost[1]))
    elif facts.unloadable and not facts.checked:
        yield Cause(name, SEEN, f"{facts.unloadable}; {at}", (0.0, cost[1]))
    elif facts.checked:
        yield excluded(name, "the log names no backbone tensor that stayed random")
    elif facts.length is None and result[0] < box.low:
        yield Cause(name, POSSIBLE, f"{at}, which is more, so this cannot be the only cause", cost)
    elif result[0] > box.high + 1:
        yield excluded(name, f"{at}, which is less")
    else:
        yield Cause(name, POSSIBLE, f"{at}; the kit's convert and finetune prove the loading", cost)


def other_weights(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for a file of the right format other than the one behind the published result."""
    name = "other weights"
    cost, masks, source = effects.size("other-weights")
    if reference.method == "random":
        return
    file = (facts.weights or "").replace("\\", "/").rpartition("/")[2]
    if facts.other_weights or file in ANOTHER:
        text = facts.other_weights or f"{file} is {ANOTHER[file]}"
        yield Cause(name, SEEN, f"{text}; {source}", cost, masks)
    elif reference.self_supervised and facts.supervised:
        yield Cause(
            name, SEEN, f"the config names supervised weights ({facts.weights}); {source}", cost, masks
        )
    elif facts.published_weights:
        yield excluded(name, "the file is the published one")
    elif facts.supervised and not reference.method:
        yield excluded(name, f"by its name an official file: {facts.weights}")
    else:
        text = "another file of the method, or weights pretrained anew; --weights FILE shows what is in it"
        yield Cause(name, POSSIBLE, f"{text}; {source}", cost, masks, effects.sizes("other-weights"))


def folded(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for trained BN over weights whose BN is folded into the convolutions."""
    name = "BN folded into the weights"
    cost, masks, source = effects.size("bn-folded")
    msra = "msra" in (facts.weights or "").lower()
    if reference.of_table and reference.method == "supervised":
        yield excluded(name, "the method's own weights are such")
    elif facts.norm in FROZEN:
        yield excluded(name, "BN is frozen")
    elif facts.folded or (msra and facts.norm):
        yield Cause(name, SEEN, f"{facts.norm or 'BN'} on such weights; {source}", cost, masks)
    elif facts.folded is False or (facts.weights and facts.supervised):
        yield excluded(name, "the weights have BN of their own")
    else:
        yield Cause(name, POSSIBLE, source, cost, masks)


def batch_norm(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for BN that is frozen or pools too few images."""
    name = "BN statistics"
    cost, masks, source = effects.size("bn-batch")
    if facts.norm is None:
        yield Cause(name, POSSIBLE, f"over few images: {source}", cost, masks)
    elif facts.norm in FROZEN:
        yield _frozen(name, facts, reference)
    elif facts.norm in ("GN", "LN"):
        yield Cause(name, SEEN, f"{facts.norm}, where the weights have BN; no published size")
    else:
        share = facts.batch and facts.gpus and facts.batch // facts.gpus
        pool = facts.pool or (facts.batch if "SyncBN" in facts.norm else share)  # nnSyncBN is torch's
        if not pool:
            yield Cause(name, POSSIBLE, f"{facts.norm} over one GPU's images: {source}", cost, masks)
        elif pool >= curves.POOL:
            yield excluded(name, f"over {pool} images")
        else:
            yield Cause(name, SEEN, f"over {pool} images instead of 16; {source}", cost, masks)
    if facts.norm == "SyncBN" and facts.supervised and not reference.method:
        cost, masks, source = effects.size("bn-synchronised")
        yield Cause("SyncBN", SEEN, source, cost, masks)


def _frozen(name: str, facts: Facts, reference: Reference) -> Cause:
    if not reference.method and facts.supervised:
        return excluded(name, "frozen, as Detectron2 has it with supervised weights")
    (low, high), masks, source = _known("bn-frozen")
    if reference.method != "supervised":
        (_, high), _, more = _known("bn-frozen-self-supervised")
        source = f"{source}; {more}"
    if not reference.method:
        text = f"BN is frozen; whether the target's was, and with which weights, is unknown; {source}"
        each = effects.sizes("bn-frozen", "bn-frozen-self-supervised")
        return Cause(name, POSSIBLE, text, (low, high), masks, each, hinted=True)
    text = f"BN is frozen, where the recipe trains it over 16 images; {source}"
    return Cause(name, SEEN, text, (low, high), masks)


def precise_bn(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for BN statistics that were not recomputed before the evaluation."""
    _, _, source = effects.size("precise-bn")
    if facts.norm in FROZEN:
        yield excluded("PreciseBN", "BN is frozen")
        return
    if "mmdetection" in facts.other:
        yield excluded("PreciseBN", "mmdetection has none")
        return
    if facts.precise_ran:
        # The kit, whose files tell how many images share BN, evaluates the one model that it has saved.
        if facts.gpus == 1 or facts.pool:
            yield excluded("PreciseBN", "it ran")
        else:
            where = f"on {facts.gpus} GPUs" if facts.gpus else "on an unknown number of GPUs"
            yield Cause("PreciseBN", POSSIBLE, f"it ran {where}, whose statistics may differ; {source}")
        return
    cut = bool(facts.iterations and facts.planned and facts.iterations < facts.planned)
    absent = facts.precise_ran is False or facts.precise_bn is False or cut
    known = "it did not run" if absent else "a run that is stopped early leaves it out"
    text = f"{known}: BN then evaluates with running averages; {source}"
    yield Cause("PreciseBN", SEEN if absent else POSSIBLE, text)


def frozen_stages(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for a frozen stem and first stage."""
    name = "frozen stages"
    cost, masks, source = effects.size("frozen-stages")
    if facts.freeze_at is None:
        yield Cause(name, POSSIBLE, source, cost, masks)
    elif facts.freeze_at < 1 or (not reference.method and facts.supervised):
        yield excluded(name, f"FREEZE_AT is {facts.freeze_at}")
    elif not reference.method:
        yield Cause(name, POSSIBLE, f"FREEZE_AT is {facts.freeze_at}; {source}", cost, masks, hinted=True)
    else:
        text = f"FREEZE_AT is {facts.freeze_at}, the recipe's is 0; {source}"
        yield Cause(name, SEEN, text, (0.0, cost[1]) if cost else None, masks)


def extra_norm(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for Detectron2's stock C4 head, which has no norm after res5."""
    name = "norm after res5"
    _, _, source = effects.size("extra-norm")
    if reference.kind != "c4":
        return
    if not reference.method:  # whether the target's recipe has it is unknown
        if facts.extra_norm is False and facts.norm not in (*FROZEN, None) and not facts.supervised:
            text = f"stock Res5ROIHeads, where MoCo's recipe has a norm if BN trains; {source}"
            yield Cause(name, POSSIBLE, text)
        return
    if facts.extra_norm:
        yield excluded(name, "Res5ROIHeadsExtraNorm")
    else:
        known = "stock Res5ROIHeads; " if facts.extra_norm is False else ""
        yield Cause(name, SEEN if known else POSSIBLE, f"{known}{source}")


def pixels(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for a colour order, mean, deviation or stride that does not belong to the weights."""
    name = "colour order, mean, stride"
    (low, _), _, bgr = _known("bgr")
    (_, high), _, wrong = _known("wrong-input")
    known = facts.pixels
    if known is None or all(each is None for each in known):
        yield Cause(name, POSSIBLE, f"not those of the weights; {bgr}; {wrong}", (low, high))
        return
    right: tuple[PixelFormat, ...] = (
        (TORCH,) if reference.self_supervised else (TORCH, MSRA, MSRA_OF_CAFFE2)
    )
    if reference.of_table and reference.method == "supervised":
        right = (MSRA, TORCH)
    elif facts.supervised and "msra" in (facts.weights or "").lower():
        right = (MSRA, MSRA_OF_CAFFE2)
    shown = "format {}, first mean {}, first deviation {}, stride in the 1x1 convolutions {}"
    words = [("unknown" if each is None else each) for each in known]
    words = [f"{each:g}" if isinstance(each, float) else str(each) for each in words]
    if any(_alike(known, each) for each in right):
        if None in known:
            yield Cause(name, POSSIBLE, f"{shown.format(*words)}; {bgr}; {wrong}", (low, high))
        else:
            yield excluded(name, shown.format(*words))
        return
    wanted = shown.format(*(f"{each:g}" if isinstance(each, float) else each for each in right[0]))
    text = f"{shown.format(*words)}; the weights want {wanted}; {bgr}; {wrong}"
    yield Cause(name, SEEN, text, (low, high))


def _alike(known: PixelFormat, right: PixelFormat) -> bool:
    """Return whether the known facts of the input agree with what the weights expect."""
    return all(found is None or _same(found, due) for found, due in zip(known, right, strict=True))


def _same(found: str | float, due: str | float | None) -> bool:
    if isinstance(found, str) or isinstance(due, str) or due is None:
        return found == due
    return abs(found - due) < 0.01


def evaluation(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for an evaluation that differs from the published one."""
    name = "evaluation"
    _, _, source = effects.size("evaluation")
    found = []
    if facts.threshold is not None and facts.threshold > 0.05:
        found.append(f"SCORE_THRESH_TEST is {facts.threshold:g}, 0.05 by default")
    if facts.test_size is not None and facts.test_size not in (0, 800):
        found.append(f"test images have shorter sides of {facts.test_size}, where published runs have 800")
    if facts.test_longest is not None and 0 < facts.test_longest < 1333:
        found.append(
            f"test images have longer sides of {facts.test_longest} at most, where published ones have 1333"
        )
    if facts.detections is not None and 0 < facts.detections < 100:
        found.append(f"{facts.detections} detections per image, where COCO counts 100")
    if facts.test and facts.test not in VAL_SETS:
        found.append(f"on {facts.test}, which is not val2017")
    if found:
        yield Cause(name, SEEN, f"{'; '.join(found)}; {source}")
    elif result[0] < NOTHING_LEARNED:
        text = "numbers near 0 often come from other annotations, category ids or image sizes"
        yield Cause(name, POSSIBLE, f"{text}; {source}", hinted=True)
    elif facts.threshold is None or facts.test_size is None:
        yield Cause(name, POSSIBLE, source)
    else:
        yield excluded(name, f"shorter sides of {facts.test_size}, scores from {facts.threshold:g} on")


def masks(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for masks that fall short where the boxes do not, and for a detector without masks."""
    if facts.masks is False and reference.mask:
        box, _, source = _known("mask-head")
        yield Cause(
            "mask head", SEEN, f"MASK_ON is False, and the published run trained masks too; {source}", box
        )
    learned = result[0] > NOTHING_LEARNED
    if learned and result[1] is not None and reference.mask and result[1] < LEAST_RATIO * result[0]:
        text = (
            f"mask AP is {result[1] / result[0]:.0%} of box AP, where published runs have 80 to 100 %: the "
            "masks are wrong, through INPUT.MASK_FORMAT, the annotations' polygons or the head's weights"
        )
        yield Cause("masks alone", SEEN, f"{text}; no published size")


def another_detector(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check by the ratio of box to mask AP for a published number that another detector reached."""
    if reference.of_table or not (reference.mask and result[1]) or facts.kind is None:
        return
    kinds = (facts.kind, "fpn" if facts.kind == "c4" else "c4")
    own, foreign = (fmean(box / mask for box, mask in curves.full_ap(ANY, kind)) for kind in kinds)
    due, got = reference.box / reference.mask, result[0] / result[1]
    if abs(due - foreign) < abs(due - own) / 2 and abs(got - own) < abs(got - foreign) / 2:
        box, mask, source = effects.size("detector")
        this, that = (kind.upper() for kind in kinds)
        text = (
            f"is the target that of {that}? Its ratio of box to mask AP is {due:.3f}, "
            f"{that}'s {foreign:.3f}; the result's is {got:.3f}, {this}'s {own:.3f}"
        )
        yield Cause("another detector", SEEN, f"{text}; {source}", box, mask)


def _known(cause: str) -> tuple[Range, Range | None, str]:
    """Return the size of a cause for which configs/causes.yaml always has one."""
    box, mask, source = effects.size(cause)
    assert box
    return box, mask, source
