"""The predict stage: detect objects in your images, and write pictures and files for other tools."""

import contextlib
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Generator, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from benchmarks.detection import inference, log_capture, model, predictions, sources, visualize
from triplet import files, paths, records
from triplet.config import did_you_mean
from triplet.errors import KitError
from triplet.progress import Bar, say
from triplet.signals import Stop, graceful
from triplet.training.loading import load

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.data.detection_utils import read_image
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BoxMode

DONE = "done.jsonl"
"""File with a line for each finished image, needed only until the prediction is complete."""
UNREADABLE = "unreadable.txt"
NAMED = 10
"""Most unreadable images to name on the screen."""
LONGEST_NAME, CUT = 255, 120
"""Bytes of a file's name: the most that file systems allow, and the part to keep of a longer one."""
WIDEST = 1280
"""Largest width of a picture in pixels."""


@dataclass(frozen=True)
class PredictOptions:
    """Options for the detections to show and write."""

    score: float
    """Lowest score."""
    show: tuple[str, ...]
    """Names of the classes to show; empty for all."""
    most: int | None
    """Most detections per image; those with the highest scores are kept; None for all."""
    every: int
    """Use every n-th frame of a video."""


def predict(
    run: str,
    wanted: Sequence[str],
    options: PredictOptions,
    *,
    weights: Path | None = None,
    config: Path | None = None,
    name: str | None = None,
    force: bool = False,
) -> None:
    """Detect objects in images; the result goes to ``checkpoints/<run>/predict/<name>/``.

    Unreadable images are named, counted and skipped.

    Args:
        run: a run whose finetune stage is done; with ``weights``, any run for the result.
        wanted: files, folders, patterns and videos.
        options: see PredictOptions.
        weights: any model file of Detectron2's instead of the run's own.
        config: config of those weights; by default that of a finetuning whose record lies beside them.
        name: name of the result; by default that of the images' folder or of the single file.
        force: whether to start over.

    Raises:
        KitError: no model, no readable image, or a class that the model does not have.
        Interrupted: a signal stopped the prediction; the same call resumes after the last finished image.
    """
    if not wanted:
        raise KitError("name the images: --images FOLDER")
    trained = inference.find_model(run, weights, config)
    weights, config = trained.weights, trained.config
    seen = records.identities({"config": config})
    cfg = model.load_config(config)
    categories = _categories(trained, model.categories(cfg)[1])
    classes = [each["name"] for each in categories]
    for unknown in sorted(set(options.show) - set(classes)):
        raise KitError(f"the model has no class {unknown!r}; {did_you_mean(unknown, classes)}")
    folder, found = sources.find(wanted)
    name = name or _plain(found[0].path.name if len(found) == 1 else folder.name) or "images"
    listing = records.Artifact.listed(paths.portable(folder), [(each.name, each.bytes) for each in found])
    task = _Task(cfg, weights, categories, found, options)
    records.perform(
        "predict",
        paths.inside(paths.stage_folder(run, "predict"), name, "--name", "photos"),
        work=task.work,
        config={
            "images": listing.model_dump(),
            "categories": classes,
            "score": options.score,
            "show": sorted(options.show),
            "most": options.most,
            "every": options.every,
        },
        inputs={"model": weights, "config": config},
        seen=seen,
        force=force,
        upkeep=records.Upkeep(scratch=(DONE, f"pictures/**/{files.LEFT_BEHIND}")),
    )


def _plain(name: str) -> str:
    """Return the name of a file or folder in a form valid for the kit's folders."""
    return "".join(each if each.isprintable() else "_" for each in paths.printable(name))


def known_categories(count: int) -> list[dict[str, Any]]:
    """Return COCO's or VOC's classes if their number fits a model without names; else numbers as names."""
    coco = [{"id": each["id"], "name": each["name"]} for each in COCO_CATEGORIES if each["isthing"]]
    voc = [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES, 1)]
    numbered = [{"id": number, "name": f"class {number}"} for number in range(1, count + 1)]
    return {len(coco): coco, len(voc): voc}.get(count, numbered)


def _categories(trained: inference.TrainedModel, count: int) -> list[dict[str, Any]]:
    """Return a model's ``count`` categories in COCO's form; say so if their names are guessed."""
    if len(trained.classes) == count:
        told = zip(trained.category_ids, trained.classes, strict=True)
        return [{"id": number, "name": name} for number, name in told]
    guessed = known_categories(count)
    say(
        f"predict: {trained.weights.name} names no classes: its {count} are taken for "
        f"{guessed[0]['name']}, {', '.join(['...'] * (count > 2) + [guessed[-1]['name']] * (count > 1))}"
    )
    return guessed


@dataclass(frozen=True)
class _Task:
    """A prediction: its model, its images, and its options."""

    cfg: CfgNode
    weights: Path
    categories: Sequence[dict[str, Any]]
    found: Sequence[sources.ImageSource]
    options: PredictOptions

    @functools.cached_property
    def pictures(self) -> dict[str, str]:
        """The picture's name for each image file; video frames have names of their own."""
        return picture_names([each.name for each in self.found if not each.is_video])

    def work(self, job: records.Job) -> None:
        """Detect in the images that are not done yet, and write all results."""
        done = {line["name"]: line for _, line in files.json_lines(job.folder / DONE, "name")}
        files.write_text(
            job.folder / DONE, "".join(json.dumps(line) + "\n" for line in done.values())
        )  # drop a truncated last line
        if done:
            say(f"predict: going on after {len(done)} images that are done")
        with graceful() as stop:
            self._detect(done, job, stop)
        self._write(done, job)

    def _detect(self, done: dict[str, dict[str, Any]], job: records.Job, stop: Stop) -> None:
        cfg = self.cfg.clone()
        cfg.DATASETS.TRAIN = ("keypoints_coco_2017_val",)  # the mapper takes the keypoint names from it
        for heads in (cfg.MODEL.ROI_HEADS, cfg.MODEL.RETINANET):
            heads.SCORE_THRESH_TEST = min(heads.SCORE_THRESH_TEST, self.options.score)
        log = job.folder / "log.txt"
        with log_capture.log_to(log):
            network = inference.load_network(cfg, self.weights)
            mapper = DatasetMapper(cfg, is_train=False)
        job.check_inputs()
        frames = sum(
            sources.count_frames(each.path, self.options.every) if each.is_video else 1
            for each in self.found
        )
        with (
            Bar("predict", frames, len(done)) as bar,
            log_capture.log_to(log),
            (job.folder / DONE).open("a", encoding="utf-8") as lines,
            contextlib.closing(self._images(mapper, done, stop)) as images,
        ):
            for line in self._lines(network, images, job.folder / "pictures", stop):
                lines.write(json.dumps(line) + "\n")
                lines.flush()
                done[line["name"]] = line
                bar.total = max(bar.total, len(done))
                bar.step()
        if stop:
            raise stop.interrupted(f"{bar.done} of {bar.total} images are done")

    def _images(
        self, mapper: DatasetMapper, done: Iterable[str], stop: Stop
    ) -> Generator[tuple[sources.ImageSource, str, dict[str, Any] | KitError], None, None]:
        """Yield the images that are not done yet: files first, then videos, each sorted by name."""
        left = [each for each in self.found if not each.is_video and each.name not in done]
        loaded = load(
            sources.ImageFiles(left, mapper),
            range(len(left)),
            workers=self.cfg.DATALOADER.NUM_WORKERS,
            stop=stop,
        )
        with contextlib.closing(loaded):
            yield from ((source, source.name, image) for source, image in zip(left, loaded, strict=False))
        for source in self.found:
            if source.is_video and source.name not in done:
                yield from self._frames(source, mapper, done)

    def _frames(
        self, source: sources.ImageSource, mapper: DatasetMapper, done: Iterable[str]
    ) -> Iterator[tuple[sources.ImageSource, str, dict[str, Any] | KitError]]:
        def name(number: int) -> str:
            return f"{source.name}/frame_{number:06d}.jpg"  # CVAT's name for a frame of a video

        start = 0
        while name(start) in done:
            start += self.options.every
        try:
            for image in sources.frames(source.path, self.options.every, start, mapper):
                if name(image["frame"]) not in done:
                    yield source, name(image["frame"]), image
        except KitError as error:
            yield source, source.name, error

    def _lines(
        self,
        network: nn.Module,
        images: Iterable[tuple[sources.ImageSource, str, dict[str, Any] | KitError]],
        folder: Path,
        stop: Stop,
    ) -> Iterator[dict[str, Any]]:
        """Detect in one image after the other and draw it; yield the results to keep of each."""
        named, read = itertools.tee(images)
        found = inference.detect(network, (image for *_, image in read), stop)
        for (source, name, _), (image, parts) in zip(named, found, strict=False):
            if isinstance(image, KitError):
                yield {"name": name, "unreadable": str(image)}
                continue
            kept = self._kept(
                each for instances in parts for each in instances_to_coco_json(instances, name)
            )
            pixels = image["rgb"] if "rgb" in image else read_image(str(source.path), "RGB")
            self._draw(pixels, kept, folder / self.pictures.get(name, name))
            yield {"name": name, "width": image["width"], "height": image["height"], "detections": kept}

    def _kept(self, detections: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the detections that the options select, by descending score."""
        show = {i for i, each in enumerate(self.categories) if each["name"] in self.options.show}
        kept = [
            each
            for each in detections
            if each["score"] >= self.options.score and (not show or each["category_id"] in show)
        ]
        return sorted(kept, key=lambda each: -each["score"])[: self.options.most]

    def _draw(self, pixels: np.ndarray, kept: Sequence[dict[str, Any]], path: Path) -> None:
        objects = [{**each, "bbox_mode": BoxMode.XYWH_ABS} for each in kept]
        names = [each["name"] for each in self.categories]
        drawn = visualize.panel(pixels, objects, names, min(WIDEST, pixels.shape[1]))
        with files.atomic(path) as temporary:
            Image.fromarray(drawn.permute(1, 2, 0).numpy()).save(temporary, "JPEG", quality=85)

    def _write(self, done: dict[str, dict[str, Any]], job: records.Job) -> None:
        """Write the detections in every format, and fill in the job."""
        unreadable = sorted(name for name, line in done.items() if "unreadable" in line)
        read = [done[name] for name in sorted(done.keys() - {*unreadable})]
        if not read:
            (job.folder / DONE).unlink()  # nothing is done: a mended image starts anew
            reason = done[unreadable[0]]["unreadable"] if unreadable else "no frame"
            raise KitError(
                f"none of {len(done)} images can be read: {', '.join(unreadable[:1])} ({reason})"
            )
        images = [
            {"id": number, "file_name": line["name"], "width": line["width"], "height": line["height"]}
            for number, line in enumerate(read, 1)
        ]
        detections = [
            {**each, "image_id": image["id"], "category_id": self.categories[each["category_id"]]["id"]}
            for image, line in zip(images, read, strict=True)
            for each in line["detections"]
        ]
        videos = tuple(f"{each.name}/" for each in self.found if each.is_video)
        job.outputs.update(predictions.write_all(job.folder, images, detections, self.categories, videos))
        job.outputs["pictures"] = job.folder / "pictures"
        job.results.update(images=len(images), detections=len(detections), unreadable=len(unreadable))
        say(
            f"predict: {len(detections)} objects in {len(images)} images; pictures, and files for COCO's "
            f"tools, CVAT and Label Studio, are in {paths.portable(job.folder)}"
        )
        if unreadable:
            files.write_text(job.folder / UNREADABLE, "".join(f"{name}\n" for name in unreadable))
            job.outputs["unreadable"] = job.folder / UNREADABLE
            for name in unreadable[:NAMED]:
                say(f"predict: {name} cannot be read and is left out: {done[name]['unreadable']}")
            say(f"predict: {len(unreadable)} of {len(done)} images cannot be read, listed in {UNREADABLE}")


def picture_names(names: Sequence[str]) -> dict[str, str]:
    """Return unique names for the JPEG pictures of images."""
    pictures = {name: name for name in names if name.lower().endswith((".jpg", ".jpeg"))}
    taken = {*pictures}
    for name in names:
        if name not in pictures:
            pictures[name] = _jpeg(name, taken)
            taken.add(pictures[name])
    return pictures


def _jpeg(name: str, taken: Set[str]) -> str:
    short = f"{name}.jpg"
    if short in taken or len(os.fsencode(PurePath(short).name)) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
        place = PurePath(name)
        cut = os.fsdecode(os.fsencode(place.name)[:CUT])
        short = str(place.with_name(f"{cut}-{digest}.jpg"))
    return short
