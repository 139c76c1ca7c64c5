"""Report what this machine has, and which commands provide what is missing."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from triplet import paths, toolchain
from triplet.commands import typed
from triplet.progress import harmless, say
from triplet.published.methods import load_methods
from triplet.pull.sources import load_sources

NEEDED_DISK = 60
"""Disk space in GB for COCO with its archives (40) and the checkpoints of a pretraining and a
finetuning."""
DRIVERS = {"12.6": 560, "12.8": 570, "13.0": 580}
"""Oldest driver for each CUDA version that torch is built for (NVIDIA's release notes)."""
REAL_JOB = ("GPU", "NVIDIA driver", "CUDA in torch", "coco", "weights", "converted weights")
"""Needs of a finetuning on COCO beyond the demo's, in the order in which to meet them."""


@dataclass(frozen=True)
class Diagnosis:
    """One line of the doctor's report."""

    what: str
    found: str
    ok: bool
    advice: str = ""
    """Command to run, or the use of the missing thing."""
    required: bool = False
    """Whether even the demo needs it."""

    @property
    def mark(self) -> str:
        return "ok" if self.ok else "needs" if self.required else "none"


def doctor(*, as_json: bool = False) -> int:
    """Print what runs here, the findings, and the next step; return 0 if the demo can run, else 1.

    Args:
        as_json: whether to print one JSON object instead of lines for people.
    """
    findings = examine()
    required = [f for f in findings if f.required and not f.ok]
    lacking = [f for name in REAL_JOB for f in findings if f.what == name and not f.ok]
    step = _next(required, lacking)
    if as_json:
        found = {
            "demo": not required,
            "finetune": not required and not lacking,
            "findings": [asdict(f) for f in findings],
            "next": step,
        }
        say(json.dumps(found))
        return 1 if required else 0
    say(f"doctor: {_headline(required, lacking)}")
    if sys.stdout.isatty():
        _print_table(findings)
    else:
        for f in findings:
            say(f"  {f.mark:<7}{f.what:<26}{f.found}{'' if f.ok else f'; {f.advice}'}")
    say(f"  {'next':<7}{step}")
    return 1 if required else 0


def _headline(required: list[Diagnosis], lacking: list[Diagnosis]) -> str:
    if required:
        return f"nothing runs here yet, not even the demo: {_names(required)} missing"
    if lacking:
        return f"the demo runs here; before a finetuning on COCO, see to: {_names(lacking)}"
    return "the demo and a finetuning on COCO run here"


def _names(findings: list[Diagnosis]) -> str:
    return ", ".join(f.what for f in findings)


def _next(required: list[Diagnosis], lacking: list[Diagnosis]) -> str:
    """Return the next step towards the demo or, with a GPU, towards a finetuning."""
    if required:
        return required[0].advice
    if not lacking:
        return typed("finetune", "--run", "triplet")
    return typed("demo") if lacking[0].what == "GPU" else lacking[0].advice


def _print_table(findings: list[Diagnosis]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "found", "to do"):
        table.add_column(column, overflow="fold")
    colours = {"ok": "green", "needs": "red", "none": "yellow"}
    for f in findings:
        cells = (f.what, f.found, "" if f.ok else f.advice)
        table.add_row(Text(f.mark, colours[f.mark]), *map(harmless, cells))
    Console(markup=False, highlight=False).print(table)


def examine() -> list[Diagnosis]:
    """Examine everything that the kit uses."""
    return [
        *_environment(),
        *_gpu(),
        *_containers(),
        *_room(),
        *_data(),
    ]


def _environment() -> list[Diagnosis]:
    python = platform.python_version()
    found = [
        Diagnosis(
            "Python",
            python,
            re.match(r"3\.1[1-4]\.", python) is not None,
            "install Python 3.11, 3.12, 3.13 or 3.14, then: make setup",
            required=True,
        )
    ]
    for name in ("torch", "torchvision", "pycocotools"):
        version = _version(name)
        found.append(Diagnosis(name, version or "-", bool(version), "make setup", required=True))
    detectron2 = _detectron2()
    found.append(Diagnosis("Detectron2", detectron2 or "-", bool(detectron2), "make setup", required=True))
    lacking = toolchain.missing(gpu=True)
    found.append(
        Diagnosis(
            "compiler",
            "-" if lacking else "C, and Python's headers",
            not lacking,
            f"only for compile=true (recipes named fast): install {' and '.join(lacking)}",
        )
    )
    openselfsup = _version("openselfsup") or os.environ.get("OPENSELFSUP", "")
    found.append(
        Diagnosis(
            "OpenSelfSup",
            openselfsup or "-",
            bool(openselfsup),
            "only for ENGINE=openselfsup: name a checkout, OPENSELFSUP=folder; in the image of make build",
        )
    )
    return found


def _detectron2() -> str:
    """Return Detectron2's version and variant; '' if it is missing."""
    if upstream := _version("detectron2"):
        try:
            import torch  # noqa: F401  # loads what the compiled part links to

            from detectron2 import _C

            cuda = _C.get_cuda_version()
        except ImportError as error:
            return f"{upstream} (upstream, its compiled part does not load: {error})"
        return f"{upstream} (upstream, compiled for {'the CPU' if cuda == 'not available' else cuda})"
    pypi = _version("pb1-detectron2")
    return pypi and f"{pypi} (PyPI sdist, not compiled)"


def _gpu() -> list[Diagnosis]:
    listed = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if not listed:
        return [Diagnosis("GPU", "-", False, "the real job needs NVIDIA GPUs; the demo does not")]
    lines = listed.splitlines()
    driver = lines[0].rpartition(",")[2].strip()
    major = driver.partition(".")[0]
    found = [Diagnosis("GPU", "; ".join(line.rpartition(",")[0] for line in lines), True)]
    if _version("torch"):
        import torch

        cuda = torch.version.cuda or ""
        needed = DRIVERS.get(cuda, max(DRIVERS.values()))
        found.append(
            Diagnosis(
                "NVIDIA driver",
                driver,
                major.isdigit() and int(major) >= needed,
                f"update the driver to {needed} or newer for CUDA {cuda}, or use an older CUDA: "
                "docs/containers.md",
            )
        )
        usable = torch.cuda.is_available()
        found.append(
            Diagnosis(
                "CUDA in torch",
                f"{torch.version.cuda or '-'}{'' if usable else ', not usable'}",
                usable,
                "torch sees no GPU: check the driver, and CUDA_VISIBLE_DEVICES",
            )
        )
    return found


def _containers() -> list[Diagnosis]:
    if "TRIPLET_COMMIT" in os.environ:
        image, sources = os.environ.get("TRIPLET_IMAGE", "not named"), os.environ["TRIPLET_SOURCES"]
        return [Diagnosis("image", f"{image}; {sources}", True)]
    docker = _output("docker", "--version")
    engine = _output("docker", "info", "--format", "{{.ServerVersion}}") if docker else ""
    compose = _output("docker", "compose", "version", "--short") if docker else ""
    hook = shutil.which("nvidia-container-runtime-hook")  # the container engine looks for it too
    only = "only for RUNTIME=docker"
    return [
        Diagnosis("Docker", docker or "-", bool(docker), f"install Docker Engine ({only})"),
        Diagnosis("Docker engine", engine or "not running", bool(engine), f"start dockerd ({only})"),
        Diagnosis("Compose", compose or "-", bool(compose), f"install docker-compose-plugin ({only})"),
        Diagnosis(
            "nvidia-container-toolkit",
            hook or "-",
            bool(hook),
            f"install it and restart the engine: without, containers get no GPU ({only})",
        ),
    ]


def _room() -> list[Diagnosis]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    found = [Diagnosis("memory", f"{memory:.0f} GB", memory >= 6, "the demo needs about 4 GB")]
    place = paths.root("datasets")
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    found.append(
        Diagnosis(
            "disk",
            f"{free:.0f} GB free at {place}",
            free >= NEEDED_DISK,
            f"COCO and its checkpoints want {NEEDED_DISK} GB: set TRIPLET_DATASETS to a larger disk",
        )
    )
    shm = Path("/dev/shm")
    size = shutil.disk_usage(shm).total / 1e9 if shm.exists() else 0.0
    found.append(
        Diagnosis(
            "/dev/shm",
            f"{size:.1f} GB",
            size >= 1,
            "loader processes share images there: in Docker raise SHM_SIZE, else workers=0",
        )
    )
    return found


def _data() -> list[Diagnosis]:
    found = []
    imagenet = f"only to pretrain: {typed('pull', 'imagenet')}, or put or link the images at {{}}/train"
    advice = {"imagenet": imagenet}
    for name, source in load_sources().datasets.items():
        folder = paths.root("datasets") / name
        there = all((folder / item).exists() for item in source.provides)
        there |= name == "imagenet" and (folder / "train").is_dir()  # enough for pretraining
        to_do = advice.get(name, typed("pull", name)).format(folder)
        found.append(Diagnosis(name, str(folder) if there else "-", there, to_do))
    pulled = [
        name
        for name in load_sources().weights
        if (paths.root("checkpoints") / "weights" / name / "record.json").exists()
    ]
    found.append(
        Diagnosis(
            "weights",
            ", ".join(pulled) or "-",
            bool(pulled),
            typed("pull", "weights", "--method", "triplet"),
        )
    )
    converted = [
        name for name in load_methods() if (paths.stage_folder(name, "convert") / "record.json").exists()
    ]
    found.append(
        Diagnosis(
            "converted weights",
            ", ".join(converted) or "-",
            bool(converted),
            f"{typed('convert', '--run', 'triplet')}, after the weights are pulled or pretrained",
        )
    )
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    """Return the output of a command; '' if it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
