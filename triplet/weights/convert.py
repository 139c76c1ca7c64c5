"""The convert stage: a checkpoint becomes Detectron2's weight file, and is shown to arrive whole."""

from pathlib import Path

from benchmarks.detection import model as detection
from benchmarks.detection import quiet
from triplet import records
from triplet.errors import KitError
from triplet.methods import load_methods
from triplet.progress import say
from triplet.weights import detectron2_format, proof
from triplet.weights.read import read_backbone

TOLERANCE = 1e-4
"""Of the features; the two sides round differently."""


def convert(run: str, config: Path, weights: Path | None = None, *, force: bool = False) -> None:
    """Convert the run's pretrained backbone, or any weights that ``triplet.weights`` reads.

    Args:
        run: where the result goes; also where the pretraining is, unless weights are given.
        config: the detection config in whose model the weights must arrive.
        weights: a file to start from instead of the run's own pretraining.
        force: start over.

    Raises:
        KitError: nothing to convert, an unusable file, or a model in which it does not arrive.
    """
    if weights is None:
        weights = records.output(records.require(run, "pretrain"), "checkpoint")
    cfg = detection.load_config(config)
    cfg.MODEL.DEVICE = "cpu"  # a GPU's TF32 convolutions differ by more than a wrong file might
    target = {
        "model": cfg.MODEL.META_ARCHITECTURE,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "width": cfg.MODEL.RESNETS.STEM_OUT_CHANNELS,
        "stride_in_1x1": cfg.MODEL.RESNETS.STRIDE_IN_1X1,
        "format": cfg.INPUT.FORMAT,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": list(cfg.MODEL.PIXEL_STD),
    }

    def work(job: records.Job) -> None:
        backbone = read_backbone(weights)
        if backbone.depth != 50:
            raise KitError(f"{weights}: a ResNet-{backbone.depth}; the detectors here take ResNet-50")
        if backbone.width != target["width"]:
            raise KitError(
                f"{weights}: base width {backbone.width}, but {config} builds {target['width']} "
                "(MODEL.RESNETS.STEM_OUT_CHANNELS)"
            )
        method = load_methods().get(Path(run).name)
        untrained = backbone.untrained or (method is not None and method.untrained)
        if not untrained and backbone.default_statistics:
            raise KitError(f"{weights}: every BN statistic is still its default: not pretrained")
        path = job.folder / "detectron2.pkl"
        detectron2_format.write(path, backbone.state)
        with quiet.log_to(job.folder / "log.txt"):
            model = detection.build(cfg)
            count = proof.load_and_check(model, path)
            difference = proof.feature_difference(model, backbone, cfg.INPUT.FORMAT)
        if not difference < TOLERANCE:
            path.unlink()
            raise KitError(
                f"{weights} under {config}: features differ by {difference:.2g} (tolerance {TOLERANCE}) "
                "though every tensor arrived; check INPUT.FORMAT, MODEL.PIXEL_MEAN, PIXEL_STD and "
                "RESNETS.STRIDE_IN_1X1"
            )
        job.outputs["weights"] = path
        job.results.update(
            format=backbone.format, tensors=count, ignored=len(backbone.ignored),
            untrained=untrained, feature_difference=difference,
        )  # fmt: skip
        say(
            f"convert: {count} tensors, all equal in Detectron2's model; features agree to {difference:.1e}"
        )

    records.perform(
        "convert",
        records.stage_folder(run, "convert"),
        config=target,
        inputs={"weights": weights},
        work=work,
        force=force,
    )
