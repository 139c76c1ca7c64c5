"""Put what `make setup` installs into one folder, for a machine without a network: `make wheelhouse`.

The files are those of the package index, wheels where it has some, and each has its hash of
docker/requirements.lock; so `make setup WHEELHOUSE=folder` verifies there what `make setup` verifies here.
scripts/wheels.sh takes its files by this, too.
"""

import argparse
import functools
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from triplet.errors import Interrupted, KitError
from triplet.pull.download import DownloadSpec, download
from triplet.signals import Stop, graceful

KIT = Path(__file__).resolve().parent.parent
LOCK = KIT / "docker" / "requirements.lock"
EXTRAS = ("dali", "detectron2", "openselfsup", "dev")
"""Those that scripts/setup.sh may take."""
HERE = "{}.{}".format(*sys.version_info)


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the folder; returns the exit code."""
    parser = argparse.ArgumentParser(prog="wheelhouse", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=HERE, help=f"of the other machine (default: {HERE})")
    parser.add_argument(
        "--machine", default=platform.machine(), help="of the other machine: x86_64 or aarch64"
    )
    parser.add_argument("--only", nargs="+", help="these packages, instead of all")
    arguments = parser.parse_args(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as work, graceful() as stop:
            wanted = list(wanted_packages(arguments.python, arguments.machine, Path(work)))
            if unknown := {*(arguments.only or ())} - {each["name"] for each in wanted}:
                raise KitError(f"not among what make setup installs: {' '.join(sorted(unknown))}")
            for each in wanted:
                if not arguments.only or each["name"] in arguments.only:
                    _fetch(each, arguments.folder, stop)
    except (Interrupted, KitError) as error:
        print(f"wheelhouse: {error}", file=sys.stderr)
        return 2
    (arguments.folder / "made-for").write_text(f"{arguments.python} {arguments.machine}\n")
    return 0


def _pins() -> dict[str, str]:
    """Return the pins of docker/versions.env by name."""
    lines = (KIT / "docker" / "versions.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def wanted_packages(python: str, machine: str, work: Path) -> Iterator[dict[str, Any]]:
    """Packages as in pylock.toml (PEP 751): each with the one wheel that fits, or a source package."""
    pins, beside = _pins(), work / "beside.in"
    beside.write_text(
        f"uv=={pins['UV_VERSION']}\n"
        f"mmcv=={pins['MMCV_VERSION']} --hash=sha256:{pins['MMCV_SHA256']}\n"
        f"pb1-detectron2=={pins['DETECTRON2_PYPI_VERSION']} "
        f"--hash=sha256:{pins['DETECTRON2_PYPI_SHA256']}\n"
    )
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    locked = ("pyproject.toml", *extras, "--constraints", "docker/requirements.lock")
    there = ("--python-version", python, "--python-platform", f"{machine}-manylinux_2_28")
    for name, given in (("kit", locked), ("beside", ("--no-deps", str(beside)))):
        output = work / f"pylock.{name}.toml"
        uv = (str(Path(sys.executable).parent / "uv"), "pip", "compile", "--quiet", "--generate-hashes")
        done = subprocess.run(
            [*uv, "--format", "pylock.toml", *there, "--output-file", str(output), *given],
            cwd=KIT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            reason = " ".join(done.stderr.split())
            raise KitError(f"uv finds no packages for Python {python} on {machine}: {reason}")
        yield from tomllib.loads(output.read_text())["packages"]


def _fetch(package: dict[str, Any], folder: Path, stop: Stop) -> None:
    """Bring the one file of a package, verified."""
    file = (package.get("wheels") or [package["sdist"]])[0]
    where = file.get("url") or file["path"]
    name = unquote(Path(urlsplit(where).path).name)
    sha256 = file["hashes"]["sha256"]
    if package["name"] != "uv" and sha256 not in _known():
        raise KitError(f"{name} has not the hash that docker/requirements.lock has; run: make lock")
    if "path" in file:
        shutil.copy(where, folder / name)
    else:
        spec = DownloadSpec(name, [where], f"sha256:{sha256}", file.get("size"))
        download(spec, folder / name, stop)


@functools.cache
def _known() -> str:
    """Every text that pins a hash."""
    return LOCK.read_text() + (KIT / "docker" / "versions.env").read_text()


if __name__ == "__main__":
    sys.exit(main())
