"""``python -m benchmarks.speed.download``: a large file from loopback, the kit beside curl."""

import argparse
import hashlib
import http.client
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from benchmarks.speed import results
from benchmarks.speed.timing import Budget, Case, Variant, interleave
from triplet import files
from triplet.pull.download import DownloadSpec, download
from triplet.signals import Stop

PIECE = 1 << 20


class _Handler(BaseHTTPRequestHandler):
    """Handler that sends one file as fast as the kernel can."""

    protocol_version = "HTTP/1.1"
    file: Path

    def do_GET(self) -> None:
        with self.file.open("rb") as content:
            size = os.fstat(content.fileno()).st_size
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.flush()
            sent = 0
            while sent < size:
                sent += os.sendfile(self.connection.fileno(), content.fileno(), sent, size - sent)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON; return 0."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.download", description=__doc__)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results there as JSON")
    parser.add_argument("--bytes", type=int, default=10**9, help="of the file (default: 1 GB)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring (default: 60)")
    arguments = parser.parse_args(argv)
    os.environ["no_proxy"] = "*"
    with tempfile.TemporaryDirectory() as temporary:
        case = _measure(Path(temporary), arguments.bytes, arguments.seconds)
    case_json = results.as_json(case)
    print(results.table([case_json], []))
    if arguments.output:
        command = shlex.join(["python", "-m", "benchmarks.speed.download", *argv])
        content = {**results.header(command, 1, smoke=arguments.bytes < 10**9), "cases": [case_json]}
        files.write_text(arguments.output, json.dumps(content, indent=1) + "\n")
    return 0


def _measure(folder: Path, size: int, seconds: float) -> Case:
    source, target = folder / "source", folder / "target"
    hasher = hashlib.sha256()
    with source.open("wb") as out:
        for start in range(0, size, PIECE):
            piece = os.urandom(min(PIECE, size - start))
            hasher.update(piece)
            out.write(piece)
    checksum = f"sha256:{hasher.hexdigest()}"
    handler = type("Handler", (_Handler,), {"file": source})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/file"
        curl = shutil.which("curl")
        plain = _curl(curl, url, target) if curl else _http_client(url, target)
        name = "curl" if curl else "http.client"
        synced = _then(plain, ["sync", str(target)])
        variants = [
            Variant("kit", _kit(url, target, None), ours=True),
            Variant(name, plain),
            Variant(f"{name}, sync", synced),
            Variant("kit, verified", _kit(url, target, checksum), ours=True),
            Variant(f"{name}, sync, sha256sum", _then(synced, ["sha256sum", str(target)])),
        ]
        budget = Budget(torch.device("cpu"), seconds=seconds, rounds=5)
        timings = interleave(variants, budget)
        server.shutdown()
    note = "the kit has the file on the disk when it is done, as sync does"
    return Case("download", f"{size} bytes from loopback", budget.device, {"bytes": size}, timings, [note])


def _kit(url: str, target: Path, checksum: str | None) -> Callable[[], object]:
    def run() -> None:
        target.unlink(missing_ok=True)
        download(DownloadSpec("file", [url], checksum), target, Stop())

    return run


def _curl(curl: str, url: str, target: Path) -> Callable[[], object]:
    command = [curl, "--silent", "--fail", "--noproxy", "*", "--output", str(target), url]

    def run() -> None:
        target.unlink(missing_ok=True)
        subprocess.run(command, check=True)

    return run


def _http_client(url: str, target: Path) -> Callable[[], object]:
    host, _, path = url.removeprefix("http://").partition("/")

    def run() -> None:
        connection = http.client.HTTPConnection(host)
        connection.request("GET", f"/{path}")
        with target.open("wb") as out:
            shutil.copyfileobj(connection.getresponse(), out, PIECE)
        connection.close()

    return run


def _then(fetch: Callable[[], object], command: list[str]) -> Callable[[], object]:
    def run() -> None:
        fetch()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)

    return run


if __name__ == "__main__":
    sys.exit(main())
