"""Build a wheel that has every file of its package.

``python whole_wheel.py SOURCE PACKAGE WHEELS [FOLDER ...]``: setuptools leaves out folders without
``__init__.py`` and data files that a setup.py does not list, and the package fails only when it is used.
Here they are added, with further FOLDERs of the source that belong inside the package; then the wheel is
installed, and each file is compared with its source. Sources of what has been compiled (csrc) stay behind.
"""

import filecmp
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def main(source: Path, package: str, wheels: Path, *folders: str) -> int:
    """Exit code: 1 where an installed file is missing or another one than in the source."""
    with tempfile.TemporaryDirectory() as work:
        built, unpacked, installed = (Path(work, name) for name in ("built", "unpacked", "installed"))
        pip = (sys.executable, "-m", "pip")
        plain = ("--no-deps", "--no-build-isolation", "--quiet")
        subprocess.run([*pip, "wheel", *plain, "--wheel-dir", built, source], check=True)
        (wheel,) = built.iterdir()
        subprocess.run([sys.executable, "-m", "wheel", "unpack", wheel, "--dest", unpacked], check=True)
        (root,) = unpacked.iterdir()
        for path, name in files(source, package, folders):
            target = root / name
            if not target.exists():
                print(f"{wheel.name} lacks {name}: added")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        wheels.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "wheel", "pack", root, "--dest-dir", wheels], check=True)
        packed = wheels / wheel.name
        subprocess.run([*pip, "install", "--no-deps", "--quiet", "--target", installed, packed], check=True)
        odd = [
            name
            for path, name in files(source, package, folders)
            if not (installed / name).is_file() or not filecmp.cmp(path, installed / name, shallow=False)
        ]
    for name in odd:
        print(f"{packed.name}: {name} is missing or differs from {source}", file=sys.stderr)
    return 1 if odd else 0


def files(source: Path, package: str, folders: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    """Every file that belongs into the package, and its path in the wheel."""
    for place, prefix in ((package, package), *((folder, f"{package}/{folder}") for folder in folders)):
        for path in sorted((source / place).rglob("*")):
            inside = path.relative_to(source / place)
            if path.is_file() and not {"__pycache__", "csrc"} & {*inside.parts}:
                yield path, f"{prefix}/{inside.as_posix()}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *sys.argv[4:]))
