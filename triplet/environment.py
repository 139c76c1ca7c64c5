"""The environment of a result: versions, hardware, container image and the kit's commit."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "detectron2",
    "pb1-detectron2",
    "mmcv",
    "pycocotools",
    "hotcoco",
    "ultrafast-pycocotools",
    "scikit-learn",
    "numpy",
    "pillow",
)


def commit() -> str:
    """Return the kit's commit from the image (TRIPLET_COMMIT) or the checkout, with ``+`` if modified."""
    if baked := os.environ.get("TRIPLET_COMMIT"):
        return baked
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return the processor, the cores that this process may use, the memory in bytes and the GPUs."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpus: list[str] = []
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": cpu,
        "cores": usable_cores(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus,
    }


def image() -> str | None:
    """Return the container's image by its digest or ID (TRIPLET_IMAGE); None outside a container."""
    return os.environ.get("TRIPLET_IMAGE")


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use; on macOS, which does not say, all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of_cores(chosen: int | None = None) -> int:
    """Return the number of loader processes for this process: the chosen one, or its share of the cores,
    less one, at most 32."""
    if chosen is not None:
        return chosen
    share = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(max(1, share - 1), 32)
