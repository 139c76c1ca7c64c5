"""The knn stage: classify test images by their nearest training images."""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.linear.config import KnnConfig
from benchmarks.linear.features import extract
from benchmarks.linear.stage import ImageNetOptions, Task, run_stage
from triplet.config import load
from triplet.knn import nearest, vote
from triplet.progress import Bar, say
from triplet.signals import graceful

QUERIES = 1024
"""Number of queries at a time."""


def knn(config: Path, options: ImageNetOptions, overrides: Sequence[str] = ()) -> None:
    """Classify by the features of the centres, with an exact search.

    Raises:
        KitError: bad settings, weights or data.
        Interrupted: a signal stopped the stage; finished features are kept.
    """
    settings = load(config, KnnConfig, overrides)
    run_stage("knn", config, settings, options, lambda task: _classify(settings, task))


def _classify(settings: KnnConfig, task: Task) -> None:
    processes, device = task.processes, task.processes.device
    features = extract(settings, task, {"train": task.train, "test": task.test})
    bank, queries = features["train"].on(device), features["test"].on(device)
    labels, answers = (torch.from_numpy(data.labels).to(device) for data in (task.train, task.test))
    mine = torch.arange(processes.rank, len(queries), processes.size, device=device)
    right = dict.fromkeys(settings.neighbours, 0.0)
    with graceful() as stop, Bar("knn", len(mine), quiet=not processes.is_main_process) as bar:
        for places in mine.split(QUERIES):
            if stop:
                raise stop.interrupted(
                    f"the features are kept, {bar.done} of {len(mine)} images are classified"
                )
            cosines, found = nearest(bank, queries[places], max(settings.neighbours))
            for k in settings.neighbours:
                predicted = vote(
                    cosines[:, :k], labels[found[:, :k]], len(task.train.classes), settings.temperature
                )
                right[k] += 100.0 * float((predicted == answers[places]).sum())
            bar.step(count=len(places))
    shares = processes.gather(right)
    for k in settings.neighbours:
        task.job.results[f"top1_{k}"] = sum(share[k] for share in shares) / len(queries)
    task.job.results |= {
        "images": len(bank),
        "test_images": len(queries),
        "classes": len(task.train.classes),
    }
    if processes.is_main_process:
        found_all = ", ".join(f"{task.job.results[f'top1_{k}']:.2f} (k = {k})" for k in settings.neighbours)
        say(f"knn: top-1 {found_all}")
