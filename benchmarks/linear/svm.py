"""The svm stage: classify VOC07 with linear support vector machines, from all images and from a few."""

import contextlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.linear import svm_fit
from benchmarks.linear.backbone import load_backbone
from benchmarks.linear.config import NEUTRAL, Svm
from benchmarks.linear.data import collate
from benchmarks.linear.voc import Split, VOC07Images, low_shot, pooled_layers, read_split
from triplet import files, paths, records
from triplet.config import load
from triplet.defaults import weights_of
from triplet.environment import usable_cores
from triplet.errors import KitError, message_of
from triplet.progress import Bar, say
from triplet.records import Job
from triplet.signals import graceful
from triplet.training.distributed import Processes
from triplet.training.loading import stream

BATCH = 64
SPLITS = ("trainval", "test")
Done = dict[tuple[Any, ...], dict[str, Any]]


def svm(
    run: str,
    config: Path,
    data: Path,
    overrides: Sequence[str] = (),
    *,
    weights: Path | None = None,
    force: bool = False,
) -> None:
    """Evaluate as OpenSelfSup's benchmarks/svm_tools into ``checkpoints/<run>/svm/<config's name>``.

    Args:
        run: folder below checkpoints/ whose pretraining is evaluated.
        config: see ``Svm``.
        data: a VOC2007 folder with JPEGImages and ImageSets.
        overrides: settings as ``key.sub=value``.
        weights: weights file; by default the run's own pretraining, or the method's pulled weights.
        force: whether to start over.

    Raises:
        KitError: bad settings, weights or data.
        Interrupted: a signal stopped the stage; finished parts are kept.
    """
    settings = load(config, Svm, overrides)
    path = weights or weights_of(run)
    splits = [read_split(data, split) for split in SPLITS]
    if splits[0].classes != splits[1].classes:
        raise KitError(f"{data}: trainval lists {len(splits[0].classes)} classes, test others")
    folder = paths.stage_folder(run, "svm") / config.stem
    fits = list(_fits(settings, splits, folder))  # refuses too few images before anything is recorded
    records.perform(
        "svm",
        folder,
        config=settings.model_dump(mode="json", exclude=NEUTRAL),
        inputs={"images": data / "JPEGImages", "lists": data / "ImageSets", "weights": path},
        work=lambda job: _work(settings, path, data, splits, fits, job),
        force=force,
        upkeep=records.Upkeep(scratch=("*_feat?.npy",)),  # half a gigabyte each
        seed=settings.seed,
    )


def _work(
    settings: Svm, weights: Path, data: Path, splits: list[Split], fits: list[svm_fit.Fit], job: Job
) -> None:
    alone = Processes(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    alone.use_cores(settings.loaders)
    _extract(settings, weights, data, splits, job.folder, alone.device)
    workers = settings.workers or usable_cores()
    done = _fit_all(fits, job.folder / "fits.jsonl", workers)
    for layer in settings.layers:
        job.results[f"feat{layer}"] = summary(settings, layer, len(splits[0].classes), done)
    best = max(settings.layers, key=lambda layer: job.results[f"feat{layer}"]["mAP"])
    job.results |= {"best_layer": f"feat{best}", "images": len(splits[0].names)}
    job.results |= {"test_images": len(splits[1].names), "classes": len(splits[0].classes)}
    job.outputs["fits"] = job.folder / "fits.jsonl"
    found = job.results[f"feat{best}"]
    shots = ", ".join(f"{k}: {each['mean']:.2f}" for k, each in found["low_shot"].items())
    say(f"svm: mAP {found['mAP']:.2f} by feat{best}" + (f"; low-shot {shots}" if shots else ""))


def _path(folder: Path, split: str, layer: int) -> Path:
    return folder / f"{split}_feat{layer}.npy"


@torch.no_grad()
def _extract(
    settings: Svm, weights: Path, data: Path, splits: list[Split], folder: Path, device: torch.device
) -> None:
    """Write the missing features of both splits."""
    backbone, _ = load_backbone(weights)
    backbone.to(device).eval()
    mixed, layers = settings.precision == "bfloat16", settings.layers
    for name, split in zip(SPLITS, splits, strict=True):
        if all(_path(folder, name, layer).exists() for layer in layers):
            continue
        rows: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
        places = list(range(len(split.names)))
        batches = [places[first : first + BATCH] for first in range(0, len(places), BATCH)]
        with (
            graceful() as stop,
            Bar(f"svm: features of {name}", len(places)) as bar,
            contextlib.closing(
                stream(VOC07Images(data, split), batches, collate, settings.loaders, device, stop)
            ) as loaded,
        ):
            for pixels, _ in loaded:
                if stop:
                    raise stop.interrupted(f"{bar.done} of {len(places)} features are lost")
                with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                    found = pooled_layers(backbone, pixels, layers)
                for layer, each in zip(layers, found, strict=True):
                    rows[layer].append(each.cpu().numpy())
                bar.step(count=len(pixels))
        for layer in layers:
            with files.atomic(_path(folder, name, layer)) as temporary, temporary.open("wb") as file:
                np.save(file, np.concatenate(rows[layer]))


def _fits(settings: Svm, splits: list[Split], folder: Path) -> Iterator[svm_fit.Fit]:
    """Yield all classifiers to fit: each class with each cost, and on each low-shot draw.

    Raises:
        KitError: a class has too few images.
    """
    train, test = splits
    for name, count in zip(train.classes, (train.targets == 1).sum(axis=0), strict=True):
        if count < settings.folds:
            raise KitError(
                f"{count} training images show class {name}, and {settings.folds} folds need as many; "
                "set folds to fewer"
            )
    for layer in settings.layers:
        features = _path(folder, "trainval", layer), _path(folder, "test", layer)
        for number in range(len(train.classes)):
            targets, answers = train.targets[:, number], test.targets[:, number]
            # Difficult images are negatives in training, and are ignored in the test.
            labels = np.where(targets == 1, 1, -1)
            for cost in settings.costs:
                yield svm_fit.Fit(
                    (layer, number, cost),
                    *features,
                    np.arange(len(labels)),
                    labels,
                    answers,
                    (cost,),
                    settings.folds,
                    settings.seed,
                )
            for shots in settings.shots:
                for sample in range(settings.samples):
                    rows = low_shot(train.targets, number, shots, sample, settings.seed)
                    yield svm_fit.Fit(
                        (layer, number, "shots", shots, sample),
                        *features,
                        rows,
                        labels[rows],
                        answers,
                        settings.costs,
                        0,
                        settings.seed,
                    )


def _fit_all(fits: list[svm_fit.Fit], log: Path, workers: int) -> Done:
    """Run the tasks that the log lacks, in processes; return the result of each by its key."""
    done = _read(log, fits)
    left = [fit for fit in fits if fit.key not in done]
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads mid-work
    with (
        graceful() as stop,
        ProcessPoolExecutor(min(workers, len(left) or 1), context, svm_fit.prepare) as pool,
        log.open("a") as file,
        Bar("svm: fits", len(fits), len(fits) - len(left)) as bar,
    ):
        try:
            running = {pool.submit(svm_fit.run, fit): fit for fit in left}
            while running and not stop:
                for each in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    fit = running.pop(each)
                    found = each.result()
                    done[tuple(found["key"])] = found
                    file.write(json.dumps(found) + "\n")
                    file.flush()
                    bar.step()
        except BrokenProcessPool:
            if not stop:
                raise KitError(
                    "a fitting process was killed, perhaps for want of memory: set workers to fewer; the "
                    "same command goes on"
                ) from None
        except ValueError as error:  # raised by scikit-learn's checks of its input
            pool.shutdown(wait=False, cancel_futures=True)
            raise KitError(f"fit {fit.key} cannot be made: {message_of(error)}") from None
        if stop:
            for child in multiprocessing.active_children():
                child.kill()
            raise stop.interrupted(f"{bar.done} of {len(fits)} fits")
    return done


def _read(log: Path, fits: list[svm_fit.Fit]) -> Done:
    """Return an earlier session's results for these fits; the log keeps only those lines."""
    keys = {json.dumps(fit.key): fit.key for fit in fits}
    found: Done = {}
    for _, values in files.json_lines(log, "key"):
        key = keys.get(json.dumps(values["key"]))
        if key and all(_are_numbers(values.get(name)) for name in ("test", "folds")):
            found[key] = values
    files.write_text(log, "".join(json.dumps(values) + "\n" for values in found.values()))
    return found


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(files.is_number, values))


def summary(settings: Svm, layer: int, classes: int, done: Done) -> dict[str, Any]:
    """Return a layer's results in percent, as svm_tools' aggregate_low_shot_svm_stats.py does.

    ``mAP`` uses for each class the cost that the cross-validation chose. ``low_shot`` has results by number
    of shots, over the samples, at the cost that is best on the test images.
    """
    chosen, precisions = [], []
    for number in range(classes):
        of_class = [done[layer, number, cost] for cost in settings.costs]
        best = int(np.argmax([each["folds"][0] for each in of_class]))
        chosen.append(settings.costs[best])
        precisions.append(of_class[best]["test"][0])
    shots = {}
    for k in settings.shots if settings.samples else ():
        table = 100 * np.array(
            [
                np.mean(
                    [done[layer, number, "shots", k, sample]["test"] for number in range(classes)], axis=0
                )
                for sample in range(settings.samples)
            ]
        )
        cost = int(table.mean(0).argmax())
        of_samples = table[:, cost]
        shots[str(k)] = {
            "mean": float(of_samples.mean()),
            "std": float(of_samples.std()),
            "min": float(of_samples.min()),
            "max": float(of_samples.max()),
            "cost": settings.costs[cost],
        }
    return {"mAP": 100 * float(np.mean(precisions)), "costs": chosen, "low_shot": shots}
