"""Known facts of any finetuning, in which ``causes`` looks for the causes of a shortfall."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# The input that weights expect: format, first mean, first deviation, stride in the 1x1 convolutions.
PixelFormat = tuple[str | None, float | None, float | None, bool | None]
TORCH: PixelFormat = ("RGB", 123.675, 58.395, False)
MSRA: PixelFormat = ("BGR", 103.53, 1.0, True)
MSRA_OF_CAFFE2: PixelFormat = ("BGR", 102.9801, 1.0, True)
"""Input of MSRA's weights as Detectron and maskrcnn-benchmark use them."""


@dataclass
class Facts:
    """Facts of a run; an unknown fact is None."""

    other: str = ""
    """Name of the detector if it is not Mask R-CNN R50-C4 with COCO's categories."""
    kind: str | None = None
    """Published curve nearest to the detector: c4 or fpn."""
    masks: bool | None = None
    """Whether the detector predicts masks."""
    iterations: int | None = None
    """Iterations that the log shows."""
    planned: int | None = None
    batch: int | None = None
    rate: float | None = None
    """Base learning rate."""
    steps: tuple[int, ...] | None = None
    """Iterations after which the config lowers the rate."""
    last_rate: float | None = None
    scheduler: str | None = None
    decay: float | None = None
    """Weight decay."""
    norm: str | None = None
    freeze_at: int | None = None
    """Number of frozen stages, counted from the stem: Detectron2's FREEZE_AT."""
    extra_norm: bool | None = None
    """Whether the C4 head has a norm after res5."""
    gpus: int | None = None
    reference_gpus: int | None = None
    """Detectron2's REFERENCE_WORLD_SIZE, relative to which it rescales batch, rate and schedule."""
    rescaled: bool = False
    """Whether batch, rate and schedule are those after that."""
    pool: int | None = None
    """Number of images that share BN statistics, if the log shows it."""
    precise_bn: bool | None = None
    """Whether the config enables precise BN."""
    precise_ran: bool | None = None
    """Whether the log shows that precise BN ran; None without a log that would show it."""
    pixels: PixelFormat | None = None
    """Format, first mean, first deviation, stride in the 1x1 convolutions; each may be unknown."""
    sizes: tuple[int, ...] | None = None
    """Shorter sides of the training images."""
    longest: int | None = None
    """Most pixels of the longer side of the training images."""
    test_size: int | None = None
    """Shorter side of the test images."""
    test_longest: int | None = None
    detections: int | None = None
    """Most detections per image that are evaluated."""
    test: str | None = None
    """Name of the test set."""
    classes: int | None = None
    """Number of classes that the detector predicts."""
    threshold: float | None = None
    """Score below which detections are dropped before they are evaluated."""
    train: str | None = None
    """Name of the training set."""
    images: int | None = None
    """Number of training images, from the log."""
    mixed: bool | None = None
    """Whether the training used mixed precision."""
    weights: str | None = None
    """Path or name of the weights; empty for none."""
    folded: bool | None = None
    """Whether the file's weights have BN folded into the convolutions."""
    published_weights: bool = False
    """Whether the file is the published one, by its hash."""
    other_weights: str = ""
    """Why the file's weights are not the published ones; empty otherwise."""
    unloadable: str = ""
    """Why Detectron2 leaves backbone tensors random with the file; empty otherwise."""
    unloaded: list[str] = field(default_factory=list)
    """Backbone tensors that stayed random according to the log."""
    checked: bool = False
    """Whether the log shows that weights were loaded."""
    diverged: str = ""
    """How the training diverged."""
    converged: bool | None = None
    """Whether the log shows a loss that stayed finite and fell; None without a log that would show it."""
    reached: tuple[float, float | None] | None = None
    """Box and mask AP in percent at the end of the log."""
    notes: list[str] = field(default_factory=list)
    """Notes on facts that are missing from the files, or on parts of the files that were skipped."""

    @property
    def length(self) -> float | None:
        """Iterations of 16 images that were trained, or that were planned if there is no log."""
        iterations = self.planned if self.iterations is None else self.iterations
        return None if iterations is None or self.batch is None else iterations * self.batch / 16

    @property
    def supervised(self) -> bool | None:
        """Whether the weights' name says that they were trained on ImageNet's labels."""
        if self.weights is None:
            return None
        names = ("imagenetpretrained", "torchvision", "msra", "download.pytorch.org", "://resnet")
        return any(name in self.weights.lower() for name in names) or None


def of_config(facts: Facts, values: Mapping[str, Any]) -> None:
    """Fill in the facts of a config of Detectron2, flat by dotted name; any key may be missing."""
    get = values.get
    facts.planned = _whole(get("SOLVER.MAX_ITER")) or None
    facts.batch = _whole(get("SOLVER.IMS_PER_BATCH")) or None
    facts.rate, facts.decay = _number(get("SOLVER.BASE_LR")), _number(get("SOLVER.WEIGHT_DECAY"))
    facts.scheduler, facts.norm = _text(get("SOLVER.LR_SCHEDULER_NAME")), _text(get("MODEL.RESNETS.NORM"))
    facts.freeze_at = _whole(get("MODEL.BACKBONE.FREEZE_AT"))
    facts.reference_gpus = _whole(get("SOLVER.REFERENCE_WORLD_SIZE"))
    facts.precise_bn, facts.mixed = _flag(get("TEST.PRECISE_BN.ENABLED")), _flag(get("SOLVER.AMP.ENABLED"))
    facts.pixels = (
        _text(get("INPUT.FORMAT")),
        _number(_first(get("MODEL.PIXEL_MEAN"))),
        _number(_first(get("MODEL.PIXEL_STD"))),
        _flag(get("MODEL.RESNETS.STRIDE_IN_1X1")),
    )
    facts.sizes = _sizes(get("INPUT.MIN_SIZE_TRAIN"))
    facts.longest = _whole(get("INPUT.MAX_SIZE_TRAIN"))
    facts.test_size, facts.test_longest = (
        _whole(get("INPUT.MIN_SIZE_TEST")),
        _whole(get("INPUT.MAX_SIZE_TEST")),
    )
    facts.detections, facts.steps = _whole(get("TEST.DETECTIONS_PER_IMAGE")), _sizes(get("SOLVER.STEPS"))
    facts.weights = _text(get("MODEL.WEIGHTS"))
    facts.train, facts.test = _names(get("DATASETS.TRAIN")), _names(get("DATASETS.TEST"))
    _detector(facts, values)


def _detector(facts: Facts, values: Mapping[str, Any]) -> None:
    """Return the detector that a config builds, as far as the config says."""
    get = values.get
    architecture, backbone = _text(get("MODEL.META_ARCHITECTURE")), _text(get("MODEL.BACKBONE.NAME"))
    head = _text(get("MODEL.ROI_HEADS.NAME"))
    retina = architecture == "RetinaNet"
    facts.masks = False if retina else _flag(get("MODEL.MASK_ON"))
    facts.threshold = _number(get(f"MODEL.{'RETINANET' if retina else 'ROI_HEADS'}.SCORE_THRESH_TEST"))
    c4 = (head or "").startswith("Res5ROIHeads")
    if c4 and not retina:
        facts.kind, facts.extra_norm = "c4", "ExtraNorm" in str(head)
    elif retina or "fpn" in (backbone or "").lower():
        facts.kind = "fpn"
    if not architecture:
        return
    depth = _whole(get("MODEL.RESNETS.DEPTH"))
    facts.classes = _whole(get("MODEL.ROI_HEADS.NUM_CLASSES"))
    data = (facts.train or "").lower()
    wrong = [
        f"with {facts.classes} classes" if facts.classes not in (80, None) and "coco" not in data else "",
        f"with {depth} layers" if depth not in (50, None) else "",
        "with a narrow stem" if _whole(get("MODEL.RESNETS.STEM_OUT_CHANNELS")) not in (64, None) else "",
    ]
    if any(wrong) or architecture != "GeneralizedRCNN" or not c4 or "voc" in data:
        facts.other = " ".join(filter(None, [architecture, backbone, *wrong, f"on {data}" if data else ""]))


def rescale(facts: Facts) -> None:
    """Rescale batch, rate and schedule by the number of GPUs, as Detectron2's ``auto_scale_workers`` does
    before a training, unless that is done or the number is unknown."""
    if facts.rescaled or not facts.reference_gpus or not facts.gpus:
        return
    facts.rescaled, by = True, facts.gpus / facts.reference_gpus
    facts.batch = round(facts.batch * by) or None if facts.batch else None
    facts.rate = facts.rate * by if facts.rate else facts.rate
    facts.planned = round(facts.planned / by) or None if facts.planned else None
    facts.steps = tuple(round(step / by) for step in facts.steps) if facts.steps else facts.steps


def _number(value: Any) -> float | None:
    """Return a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e15 else None  # NaN compares false


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number >= 0 else None


def _text(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _names(value: Any) -> str | None:
    """Return the names of data sets, joined."""
    values = value if isinstance(value, list | tuple) else []
    return ", ".join(each[:100] for each in values[:5] if isinstance(each, str)) or _text(value)


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else None


def _sizes(value: Any) -> tuple[int, ...] | None:
    values = value if isinstance(value, list | tuple) else [value]
    sizes = [size for each in values[:100] if (size := _whole(each))]
    return tuple(sizes) or None
