"""The linear stage: a linear classifier on the frozen backbone, as published or by the fast protocol."""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.linear import sweep
from benchmarks.linear.backbone import Classifier, Head, load_backbone
from benchmarks.linear.config import Linear
from benchmarks.linear.stage import ImageNetOptions, Task, run_stage
from benchmarks.linear.training import fit
from triplet.config import load


def linear(config: Path, options: ImageNetOptions, overrides: Sequence[str] = ()) -> None:
    """Evaluate by a config of configs/linear/ with ``training`` or ``sweep``.

    Raises:
        KitError: bad settings, weights or data.
        Interrupted: a signal stopped the stage; the same command resumes.
    """
    settings = load(config, Linear, overrides)

    def work(task: Task) -> None:
        if settings.sweep:
            sweep.evaluate(settings, settings.sweep, task)
        elif training := settings.training:
            backbone, found = load_backbone(task.inputs["weights"])
            torch.manual_seed(settings.seed)
            head = Head(backbone.channels, len(task.train.classes), training.epochs)
            model = Classifier(backbone, head, frozen=True, mixed=settings.precision == "bfloat16")
            fit(model, settings, training, task)
            task.job.results["weights"] = found.format
        task.job.results["protocol"] = "fast" if settings.sweep else "published"

    run_stage("linear", config, settings, options, work)
