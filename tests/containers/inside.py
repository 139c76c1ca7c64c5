"""Print what a container can see and do, as one JSON object. Runs inside, with the image's own Python."""

import json
import os
import subprocess
import sys
from pathlib import Path

TOOLKIT = {"nvcc", "cicc", "cudafe++", "libnvvm.so.4"}
"""Of CUDA's toolkit, what only compiling needs."""
PRUNED = ("/proc", "/sys", "/dev")


def refusal(folder: str) -> str:
    """Why a file cannot be made there; '' if it can."""
    try:
        Path(folder, "x").touch()
    except OSError as error:
        return error.strerror
    return ""


def toolkit() -> list[str]:
    """Every file of the toolkit's."""
    found = []
    for folder, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in PRUNED]
        found += [os.path.join(folder, name) for name in names if name in TOOLKIT]
    return found


def architectures() -> list[str]:
    """Those that Detectron2's operators hold code for, as in ``sm_90``."""
    packages = Path(sys.prefix).glob("lib/python3*/site-packages")
    (here,) = packages
    listed = [
        subprocess.run(
            [here / "triton/backends/nvidia/bin/cuobjdump", "--list-elf", compiled],
            capture_output=True,
            text=True,
        ).stdout
        for compiled in (here / "detectron2").glob("_C*.so")
    ]
    return sorted({line.split(".")[-2] for line in "".join(listed).splitlines() if line.endswith(".cubin")})


status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
seen = {
    "uid": os.getuid(),
    "effective capabilities": int(status["CapEff"], 16),
    "capabilities at most": int(status["CapBnd"], 16),
    "no new privileges": status["NoNewPrivs"] == "1",
    "networks": sorted(os.listdir("/sys/class/net")),
    "refused": {folder: refusal(folder) for folder in ("/kit", "/opt/venv", "/datasets", "/kit/configs")},
    "toolkit": toolkit(),
    "architectures": architectures(),
}
print(json.dumps(seen))
