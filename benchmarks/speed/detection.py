"""Comparison of the kit's detection step with Detectron2's own trainer, on the same images."""

import itertools
from functools import partial
from typing import Any

import torch

from benchmarks.detection import model, synthetic, trainer
from benchmarks.speed.timing import Budget, Case, Variant, interleave
from triplet.paths import CONFIGS
from triplet.training.distributed import Processes

from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage


def detection(budget: Budget, images: int) -> Case:
    """Measure one optimiser step: on a GPU of the authors' R50-C4, on the CPU of the demo's quarter of it.

    ``detectron2`` is SimpleTrainer, ``detectron2 amp`` AMPTrainer (float16, GPUs only). All but ``float32``
    use TF32. All start from the same weights and take the same synthetic images in turn; loading is not
    counted.

    Args:
        budget: device and duration of the measurement.
        images: number of images in a step.
    """
    cuda = budget.device.type == "cuda"
    path = CONFIGS / "detection" / ("coco_r50_c4_2x_authors.yaml" if cuda else "demo.yaml")
    cfg = model.load_config(path, [f"SOLVER.IMS_PER_BATCH={images}", "SOLVER.BASE_LR=1e-4"])
    made = [synthetic.images(cfg, images, seed) for seed in range(4)]
    alone = Processes(0, 1, budget.device)

    def stock(kind: type[SimpleTrainer]) -> Any:
        torch.manual_seed(0)
        network = model.build(cfg)
        return kind(network, itertools.cycle(made), build_optimizer(cfg, network))

    def ours(precision: str) -> Any:
        torch.manual_seed(0)
        network = trainer.build(cfg, alone, precision)
        optimizer = build_optimizer(cfg, network)
        return trainer.GradAccumTrainer(network, itertools.cycle(made), optimizer, alone, images, precision)

    steppers = {"detectron2": stock(SimpleTrainer), "float32": ours("float32")}
    if cuda:
        halves = {precision: ours(precision) for precision in ("tf32", "float16", "bfloat16")}
        steppers |= {"detectron2 amp": stock(AMPTrainer), **halves}

    def run(name: str, stepper: Any) -> None:
        model.allow_tf32(name != "float32")
        with EventStorage() as stepper.storage:
            stepper.run_step()

    variants = [
        Variant(name, partial(run, name, stepper), images=images, ours="detectron2" not in name)
        for name, stepper in steppers.items()
    ]
    sizes = {"config": path.name, "images": images}
    return Case(
        "detection", f"{path.stem}, {images} images", budget.device, sizes, interleave(variants, budget)
    )
