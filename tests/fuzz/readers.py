"""Every reader of foreign bytes, with an honest file for it and the ways in which that is changed.

A reader prepares its honest files once, in a folder of its own, and makes cases: ``case(folder, scratch,
random)`` writes changed files to ``scratch`` and reads them as the kit does.
"""

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.fuzz import detection, mutate, weights
from tests.fuzz.child import command
from triplet import paths, untrusted
from triplet.paths import CONFIGS

Case = Callable[[Path, Path, Random], object]


@dataclass(frozen=True)
class Reader:
    """What is read, how honest files of it are made, and a case."""

    about: str
    case: Case
    prepare: Callable[[Path], object] | None = None
    """Several readers may have the same, which is then called once."""


def _config(pattern: str, read: Callable[[Path, Random], object]) -> Case:
    """A changed copy of one of the kit's own configs."""

    def case(folder: Path, scratch: Path, random: Random) -> object:
        path = random.choice(sorted(CONFIGS.glob(pattern)))
        values = mutate.tree(random, yaml.safe_load(path.read_text()))
        changed = scratch / path.name
        changed.write_bytes(mutate.as_yaml(random, values))
        return read(changed, random)

    return case


OVERRIDES = (
    "optimizer.accumulate=999999999999",
    "loss.group=" + "9" * 300,
    "model.hidden=1000000000",
    "schedule.epochs=" + "9" * 5000,
    "a." * 3000 + "b=1",
    "views.scale=[" * 500 + "=1",
    "seed=0x" + "f" * 5000,
    "schedule.steps[99999999]=1",
    "loss=" + "[" * 5000,
    "[=1",
    "model.depth=${oc.env:HOME}",
    "seed=1",
)


def _pretrain(path: Path, random: Random) -> object:
    from triplet.config import load
    from triplet.pretrain import methods
    from triplet.pretrain.config import Pretrain

    found = load(path, Pretrain, [random.choice(OVERRIDES)] if random.random() < 0.3 else ())
    methods.check(found)
    return found.batch


def _linear(path: Path, random: Random) -> object:
    from benchmarks.linear import config
    from triplet.config import load

    kinds = {"knn": config.KnnConfig, "semi": config.Semi, "svm": config.Svm}
    return load(path, kinds.get(path.name.partition("_")[0], config.Linear))


def _published(path: Path, random: Random) -> object:
    from triplet.config import load, parse_file
    from triplet.demo import Demo
    from triplet.published.curves import PublishedCurves
    from triplet.published.effects import Effects
    from triplet.published.gpus import Cards
    from triplet.published.methods import Methods
    from triplet.published.tables import PublishedTables
    from triplet.pull.sources import Sources
    from triplet.report.costs import Power

    kinds: dict[str, Any] = {
        "methods": Methods,
        "expected": PublishedCurves,
        "published": PublishedTables,
        "gpus": Cards,
        "causes": Effects,
    }
    if path.stem in kinds:
        return parse_file(path, kinds[path.stem])
    return load(path, {"sources": Sources, "power": Power, "demo": Demo}[path.stem])


def _detection(path: Path, random: Random) -> object:
    for base in CONFIGS.glob("detection/*.yaml"):  # what it is based on lies beside it
        if not (path.parent / base.name).exists():
            shutil.copy(base, path.parent)
    return command("plan", "--config", str(path))


def _archive(folder: Path, scratch: Path, random: Random) -> object:
    from triplet.pull.sources import Unpack
    from triplet.pull.unpack import unpack
    from triplet.signals import Stop

    path = scratch / "archive"
    path.write_bytes(_made_archive(random))
    return unpack(path, scratch / "to", Unpack(archives=random.random() < 0.2), Stop())


PLAIN = ("a/1.jpg", "a/2.jpg", "b.json", "c", "d/e/f.png")
NAMES = (*PLAIN, "../out", "/abs", "a", "a/1.jpg/x", "n" * 300, "d$\\frac{$", "\x01", "é")


def _made_archive(random: Random) -> bytes:
    names = random.sample(NAMES if random.random() < 0.3 else PLAIN, 4)
    files = {name: random.randbytes(random.choice([0, 10, 3000])) for name in names}
    buffer = io.BytesIO()
    if random.random() < 0.4:
        kind = random.choice(
            [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
        )
        with zipfile.ZipFile(buffer, "w", kind) as archive:
            for name, content in files.items():
                archive.writestr(name, content * random.choice([1, 1, 1000]))
    else:
        with tarfile.open(fileobj=buffer, mode=random.choice(["w", "w:gz", "w:bz2", "w:xz"])) as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                info.type = random.choice(
                    [tarfile.REGTYPE] * 40 + [tarfile.SYMTYPE, tarfile.GNUTYPE_LONGNAME, b"x"]
                )
                if random.random() < 0.03:
                    info.size = random.choice([1 << 32, 1 << 40, len(content) + 1])
                info.pax_headers = {"GNU.sparse.realsize": "9" * 12} if random.random() < 0.03 else {}
                try:
                    tar.addfile(info, io.BytesIO(content))
                except OSError:
                    break
    content = buffer.getvalue()
    return mutate.data(random, content, most=2) if random.random() < 0.6 else content


def _records(folder: Path) -> None:
    use(folder)
    from tests.support import run_records

    run_records.run("triplet", 41.7, 36.2, analysed=True)
    run_records.run("byol", 40.7, 35.2, analysed=True)
    run_records.run("demo/seed0/moco", 40.0, 35.0, pictures=1)
    run_records.others("triplet")
    run_records.evaluated(folder, "demo/seed0/triplet")
    _crate(folder)


def _spoilt(folder: Path, scratch: Path, random: Random, pattern: str, root: str = "checkpoints") -> None:
    """Copy the three places to scratch and change one file there."""
    shutil.copytree(folder, scratch, dirs_exist_ok=True)
    use(scratch)
    path = random.choice(sorted((scratch / root).rglob(pattern)))
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_bytes(
            b"\n".join(mutate.as_json(random, line) for line in mutate.tree(random, lines)[:200])
        )
    else:
        path.write_bytes(mutate.as_json(random, mutate.tree(random, json.loads(path.read_text()))))


def use(folder: Path) -> None:
    """Let the three places be below a folder."""
    import os

    for place in ("datasets", "checkpoints", "reports"):
        os.environ[f"TRIPLET_{place.upper()}"] = str(folder / place)


def _record(folder: Path, scratch: Path, random: Random) -> object:
    """The report of changed records: seldom all of it, else without the figures, which take seconds."""
    from triplet.report import crate, stage
    from triplet.runs import collect

    _spoilt(folder, scratch, random, "record.json")
    if random.random() < 0.05:
        return command("report")
    runs, known = collect(paths.root("checkpoints")), crate.all_records()
    return stage.documents(runs, known, drawn=False)


def _metrics(folder: Path, scratch: Path, random: Random) -> object:
    from triplet.report import plots
    from triplet.runs import collect

    _spoilt(folder, scratch, random, "metrics.jsonl")
    if random.random() < 0.05:
        return command("report")
    for stage, panels in (("pretrain", plots.PRETRAIN), ("finetune", plots.FINETUNE)):
        for run in collect(paths.root("checkpoints")):
            plots.curves([run], stage, dict(random.sample(sorted(panels.items()), 1)), "name", "caption")
    return None


def _analyses(folder: Path, scratch: Path, random: Random) -> object:
    """What evaluations kept of categories and resampled images, as the page compares it."""
    from triplet.report import compare
    from triplet.runs import collect

    _spoilt(folder, scratch, random, "analysis.json")
    found = compare.comparisons({"runs": collect(paths.root("checkpoints"))})
    for each in found:
        compare.of_pairs(each)
        for task in each.tasks:
            compare.of_categories(each, task), compare.of_sizes(each, task), compare.sentence(each, task)
    return [compare.data(each) for each in found]


def _predictions(folder: Path, scratch: Path, random: Random) -> object:
    """Detections are evaluated again; what does not match is said on standard output."""
    from triplet.report.stage import check

    pattern, root = random.choice(
        [("coco_instances_results.json", "checkpoints"), ("annotations.json", "datasets")]
    )
    _spoilt(folder, scratch, random, pattern, root)
    return check(None)


def _crate(folder: Path) -> None:
    from triplet.report import crate

    members = folder / "reports" / "index.html"
    members.parent.mkdir()
    members.write_text("<html>")
    crate.export(folder / "crate.zip", crate.all_records(), [members])


def _verify(folder: Path, scratch: Path, random: Random) -> object:
    from triplet.report.stage import check

    path = scratch / "crate.zip"
    if random.random() < 0.4:
        path.write_bytes(mutate.data(random, (folder / "crate.zip").read_bytes()))
        return check(path)
    with (
        zipfile.ZipFile(folder / "crate.zip") as honest,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made,
    ):
        chosen = random.choice([name for name in honest.namelist() if name.endswith("json")])
        for name in honest.namelist():
            content = honest.read(name)
            if name == chosen:
                content = mutate.as_json(random, mutate.tree(random, json.loads(content)))
                content += random.choice([b"", b"", b"", b" " * (40 << 20), b"[],".join([b""] * 3_000_000)])
                name = random.choice([name] * 6 + ["../out", "/etc/x", name + "/", "x" * 70_000])[:65_000]
            made.writestr(name, content)
    return check(path)


def _image(folder: Path, scratch: Path, random: Random) -> object:
    from PIL import Image

    from triplet.errors import KitError
    from triplet.images import decode, open_images

    buffer = io.BytesIO()
    mode = random.choice(["RGB", "L", "P", "RGBA", "I;16", "CMYK", "1"])
    kind = random.choice((*untrusted.IMAGE_FORMATS, "TIFF", "EPS"))
    try:
        Image.new(mode, random.choice([(8, 8), (300, 20), (1, 1)])).save(buffer, kind)
    except (OSError, ValueError, KeyError):
        Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data = mutate.data(random, buffer.getvalue())
    (scratch / "a.jpg").write_bytes(data)
    open_images(scratch)
    try:
        return decode(data)
    except (
        Exception
    ) as error:  # every caller takes whatever Pillow's plug-ins raise for an unreadable image
        raise KitError(f"unreadable: {type(error).__name__}") from None


def _shards(folder: Path) -> None:
    from PIL import Image

    from triplet.pull.pack import pack

    use(folder)
    (folder / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8)).save(folder / "images" / f"{number}.png")
    pack("packed", folder / "images", per_shard=2)


def _lists(folder: Path, scratch: Path, random: Random) -> object:
    from triplet.images import open_images

    packed = scratch / "packed"
    shutil.copytree(folder / "datasets" / "packed", packed)
    path = random.choice(sorted(packed.glob("*.json")))
    path.write_bytes(mutate.as_json(random, mutate.tree(random, json.loads(path.read_text()))))
    listed = scratch / "list.txt"
    listed.write_bytes(mutate.data(random, b"a/1.jpg 0\nb/2.jpg 1\n" * 20))
    found = open_images(random.choice([packed, listed]))
    return [found.read(index) for index in range(min(4, len(found)))]


def _download(folder: Path, scratch: Path, random: Random) -> object:
    from tests.fuzz.server import served
    from triplet.pull import download as module
    from triplet.signals import Stop

    module.PAUSE, module.TRIES, module.STALL = 0.01, 2, 2  # type: ignore[misc]
    with served(random) as url:
        wanted = module.DownloadSpec("file", [url], bytes=random.choice([None, 3000]))
        if random.random() < 0.5:  # a part that is gone on from
            (scratch / "f.part").write_bytes(b"x" * 1000)
            notes = {"url": url, "validator": '"tag"', "bytes": 3000}
            (scratch / "f.part.json").write_bytes(mutate.as_json(random, mutate.tree(random, notes)))
        return module.download(wanted, scratch / "f", Stop())


READERS = {
    "weights": Reader(
        "checkpoints of PyTorch's, both forms, in the wrappers of others", weights.torch_case
    ),
    "pickles": Reader("Detectron2's and Caffe2's .pkl", weights.pickle_case),
    "safetensors": Reader("safetensors", weights.safetensors_case),
    "pretrain configs": Reader("configs/pretrain and overrides", _config("pretrain/*.yaml", _pretrain)),
    "linear configs": Reader("configs/linear", _config("linear/*.yaml", _linear)),
    "detection configs": Reader(
        "Detectron2's YAML, by `triplet plan`", _config("detection/*.yaml", _detection)
    ),
    "tables": Reader(
        "methods, sources, expected, published, gpus, causes, power and demo", _config("*.yaml", _published)
    ),
    "records": Reader("record.json of others' runs, by `triplet report`", _record, _records),
    "metrics": Reader("metrics.jsonl, by `triplet report`", _metrics, _records),
    "analyses": Reader("what evaluations kept, by the page's comparison", _analyses, _records),
    "detections": Reader("detections and their truth, evaluated again", _predictions, _records),
    "crates": Reader("archives that the report exports, verified", _verify, _records),
    "COCO": Reader("annotations in COCO's format", detection.coco, detection.annotated),
    "own data": Reader(
        "people's data as Roboflow, CVAT, Label Studio and YOLO lay them out",
        detection.own_data,
        detection.exported,
    ),
    "VOC": Reader("annotations in PASCAL VOC's format", detection.voc),
    "archives": Reader("zip and tar, compressed and in each other", _archive),
    "downloads": Reader("headers, ranges and notes of begun downloads", _download),
    "logs": Reader("logs and scores, by `triplet explain`", detection.explain),
    "images": Reader("JPEG, PNG, WebP, BMP, GIF and what pretends to be", _image),
    "lists": Reader("lists and shards of images", _lists, _shards),
}
