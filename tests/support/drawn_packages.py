"""Python packages that are drawn for a test, and an index on loopback that serves them."""

import base64
import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def draw_wheel(index: Path, name: str, version: str, files: Mapping[str, str] | None = None) -> Path:
    """Write a wheel for every Python with these files; returns its path within the index's folder."""
    info = f"{name}-{version}.dist-info"
    content = {
        f"{name}.py": f'version = "{version}"\n',
        **(files or {}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{path},sha256={_digest(text)},{len(text.encode())}" for path, text in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]) + "\n"
    wheel = _place(index, name) / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        for path, text in content.items():
            member = zipfile.ZipInfo(path)
            member.external_attr = 0o100755 << 16  # scripts are executable
            packed.writestr(member, text)
    return wheel


def draw_sdist(index: Path, name: str, version: str, work: Path) -> Path:
    """Write a source package whose setup.py is all it has beside one module."""
    root = work / f"{name}-{version}"
    root.mkdir()
    (root / "setup.py").write_text(
        f'from setuptools import setup\nsetup(name="{name}", version="{version}", py_modules=["{name}"])\n'
    )
    (root / f"{name}.py").write_text(f'version = "{version}"\n')
    (root / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    sdist = _place(index, name) / f"{name}-{version}.tar.gz"
    with tarfile.open(sdist, "w:gz") as packed:
        packed.add(root, root.name)
    return sdist


def pack_installed(index: Path, name: str, work: Path) -> None:
    """Make a wheel of a package in pure Python that this environment has."""
    root = work / name
    for file in importlib.metadata.files(name) or ():
        if ".." not in file.parts and file.suffix != ".pyc":
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), root / file)
    command = [sys.executable, "-m", "wheel", "pack", "--dest-dir", _place(index, name), root]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def sha256(path: Path) -> str:
    """Digest of a file, as locks have it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def serve(index: Path) -> Iterator[str]:
    """Serve a folder of packages as an index; gives its address."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(index))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def _place(index: Path, name: str) -> Path:
    folder = index / name.replace("_", "-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
