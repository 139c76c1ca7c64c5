"""The convert stage: turn a checkpoint into Detectron2's weight file, and prove that it loads
completely."""

from pathlib import Path

from benchmarks.detection import log_capture, proof
from benchmarks.detection import model as detection
from triplet import paths, records
from triplet.defaults import MSRA, detection_config, weights_of
from triplet.errors import KitError
from triplet.progress import say
from triplet.published.methods import load_methods
from triplet.weights import detectron2_format
from triplet.weights.read import Backbone, read_backbone

from detectron2.config import CfgNode

TOLERANCE = 1e-4
"""Relative tolerance of the features; the two implementations round differently."""


def convert(
    run: str, config: Path | None = None, weights: Path | None = None, *, force: bool = False
) -> None:
    """Convert the run's pretrained backbone, or any weights that ``triplet.weights`` reads.

    Args:
        run: run for the result; also the run of the pretraining, unless weights are given.
        config: detection config whose model must load the weights; by default the method's.
        weights: file to convert; by default the run's own pretraining, or the method's pulled weights.
        force: whether to start over.

    Raises:
        KitError: nothing to convert, an unusable file, or a model that does not load it completely.
    """
    chosen = weights is None or config is None
    weights = weights or weights_of(run)
    config = detection_config(run, config, weights)
    if chosen:
        say(f"convert: {paths.portable(weights)} for {config}")
    cfg = detection.load_config(config)
    cfg.MODEL.DEVICE = "cpu"  # a GPU's TF32 convolutions differ by more than a wrong file might
    target = {
        "model": cfg.MODEL.META_ARCHITECTURE,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        **proof.pixel_path(cfg),
    }

    records.perform(
        "convert",
        paths.stage_folder(run, "convert"),
        config=target,
        inputs={"weights": weights},
        work=lambda job: _convert(run, weights, config, cfg, job),
        force=force,
    )


def _convert(run: str, weights: Path, config: Path, cfg: CfgNode, job: records.Job) -> None:
    """Write Detectron2's file, prove that the model of ``cfg`` loads it, and fill in the job."""
    backbone = _read(run, weights, config, cfg)
    path = job.folder / "detectron2.pkl"
    detectron2_format.write(path, backbone.state)
    with log_capture.log_to(job.folder / "log.txt"):
        model = detection.build(cfg)
        count = proof.load_and_check(model, path)
        difference = proof.feature_difference(model, backbone, cfg.INPUT.FORMAT)
    if not difference < TOLERANCE:
        path.unlink()
        raise KitError(
            f"{weights} under {config}: features differ by {difference:.2g} (tolerance {TOLERANCE}) "
            f"though every tensor arrived; {_advice(config, backbone.caffe2)}"
        )
    job.outputs["weights"] = path
    job.results.update(
        format=backbone.format,
        tensors=count,
        ignored=len(backbone.ignored),
        widened=backbone.widened,
        untrained=backbone.untrained or _is_untrained(run),
        feature_difference=difference,
    )
    if backbone.choice:
        say(f"convert: {weights.name}: {backbone.choice}")
    if backbone.widened:
        say(f"convert: {backbone.widened} tensors were half precision and are float32 now")
    say(f"convert: {count} tensors, all equal in Detectron2's model; features agree to {difference:.1e}")


def _read(run: str, weights: Path, config: Path, cfg: CfgNode) -> Backbone:
    """Read the backbone.

    Raises:
        KitError: the architecture differs from the config's; or the weights are untrained although the
            method's are pretrained, or the reverse.
    """
    backbone = read_backbone(weights)
    if backbone.depth != 50:
        raise KitError(f"{weights}: a ResNet-{backbone.depth}; the detectors here take ResNet-50")
    width = cfg.MODEL.RESNETS.STEM_OUT_CHANNELS
    if backbone.width != width:
        raise KitError(
            f"{weights}: base width {backbone.width}, but {config} builds {width} "
            "(MODEL.RESNETS.STEM_OUT_CHANNELS)"
        )
    if not (backbone.untrained or _is_untrained(run)) and backbone.default_statistics:
        raise KitError(f"{weights}: every BN statistic is still its default: not pretrained")
    if _is_untrained(run) and not backbone.default_statistics:
        raise KitError(f"{weights}: BN has seen images, but the method {run} is of initial weights")
    return backbone


def _is_untrained(run: str) -> bool:
    """Return whether the run's method of the table has untrained weights."""
    method = load_methods().get(Path(run).name)
    return method is not None and method.untrained


def _advice(config: Path, caffe2: bool) -> str:
    """Say how to fix a wrong colour order: name the config's sibling for the other one."""
    stem = config.stem.removesuffix(MSRA)
    sibling = config.with_name(f"{stem}{MSRA if caffe2 else ''}{config.suffix}")
    if sibling != config and sibling.exists():
        images = "BGR images (MSRA's normalisation)" if caffe2 else "RGB images (ImageNet's normalisation)"
        use = f"--config {sibling} --force"
        return f"the file is for {images}: use {use}"
    return "check INPUT.FORMAT, MODEL.PIXEL_MEAN, PIXEL_STD and RESNETS.STRIDE_IN_1X1"
