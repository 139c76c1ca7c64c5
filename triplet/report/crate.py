"""An RO-Crate of the runs: a ZIP with the records, their small outputs, and the report.

It follows the RO-Crate Metadata Specification 1.1 (w3id.org/ro/crate/1.1); a stage is a CreateAction.
Weights are left out: their hashes are in the records.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import triplet
from triplet import environment, files, paths, records
from triplet.errors import KitError
from triplet.records import Artifact, Record

METADATA = "ro-crate-metadata.json"
CONTEXT = "https://w3id.org/ro/crate/1.1"
LEFT_OUT = (".pth", ".pkl", ".pt", ".npy")
"""Suffixes of weights and features, which are too large for the crate."""
OWN = ("predict", "export")
"""Stages that are not part of a reproduction: they serve a person's own images and other tools."""
TYPES = {
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".csv": "text/csv",
    ".html": "text/html",
    ".yaml": "application/yaml",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
}


def all_records() -> dict[str, Record]:
    """Return every record of this machine's stages, by the portable path of its file."""
    found = {}
    # Data sets have millions of files; their records lie in the folders above.
    places = [
        *paths.root("checkpoints").rglob("record.json"),
        *paths.root("datasets").glob("*/record.json"),
    ]
    for path in sorted(places):
        if record := records.read(path.parent):
            found[paths.portable(path)] = record
    return found


def export(archive: Path, known: dict[str, Record], report: Iterable[Path]) -> int:
    """Write the crate; return the number of its files besides the metadata.

    Args:
        archive: path of the ZIP.
        known: records by the portable path of their file.
        report: files that the report stage wrote.
    """
    members = {paths.portable(path): path for path in report}
    known = {name: record for name, record in known.items() if record.stage not in OWN}
    for name, record in known.items():
        members[name] = paths.local(name)
        log = members[name].with_name("log.txt")
        if log.is_file():
            members[paths.portable(log)] = log
        for artifact in record.outputs.values():
            # Data sets and published weights are named, not copied.
            if artifact.path.startswith("checkpoints/") and record.stage != "pull":
                members |= _small(paths.local(artifact.path))
    hashes = {name: Artifact.of(path) for name, path in sorted(members.items())}
    metadata = json.dumps(describe(hashes, known), indent=1)
    with files.atomic(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as crate:
        crate.writestr(zipfile.ZipInfo(METADATA), metadata, zipfile.ZIP_DEFLATED)
        for name, artifact in hashes.items():
            content = members[name].read_bytes()
            if hashlib.sha256(content).hexdigest() != artifact.sha256:
                raise KitError(
                    f"{members[name]} was replaced while it was packed; run the same command again"
                )
            crate.writestr(zipfile.ZipInfo.from_file(members[name], name), content, zipfile.ZIP_DEFLATED)
    return len(hashes)


def _small(path: Path) -> dict[str, Path]:
    """Return the files of an output for the crate: all of them, or none if one is too large a kind."""
    inside = [path] if path.is_file() else [path / name for name, _ in files.walk(path)]
    if any(file.suffix in LEFT_OUT for file in inside):
        return {}
    return {paths.portable(file): file for file in inside}


def describe(hashes: dict[str, Artifact], known: dict[str, Record]) -> dict[str, Any]:
    """Return the content of ``ro-crate-metadata.json``."""
    actions = list(_actions(hashes, known))
    graph = [
        {
            "@id": METADATA,
            "@type": "CreativeWork",
            "conformsTo": {"@id": CONTEXT},
            "about": {"@id": "./"},
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": "Runs of the Triplet reproduction kit",
            "description": "Records, metrics, logs, predictions and tables of runs that reproduce 'Solving "
            "Inefficiency of Self-supervised Representation Learning' (ICCV 2021). "
            "Verify: triplet report --verify FILE.zip",
            "datePublished": datetime.now(UTC).isoformat(timespec="seconds"),
            "license": {"@id": "https://spdx.org/licenses/Apache-2.0"},
            "hasPart": [{"@id": name} for name in hashes],
            "mentions": [{"@id": action["@id"]} for action in actions],
        },
        {
            "@id": "#kit",
            "@type": "SoftwareApplication",
            "name": "triplet-kit",
            "softwareVersion": f"{triplet.__version__} ({environment.commit()})",
        },
        *(
            {
                "@id": name,
                "@type": "File",
                "name": name,
                "sha256": artifact.sha256,
                "contentSize": str(artifact.bytes),
                "encodingFormat": TYPES.get(Path(name).suffix, "application/octet-stream"),
            }
            for name, artifact in hashes.items()
        ),
        *actions,
    ]
    return {"@context": [f"{CONTEXT}/context", {"sha256": "https://schema.org/sha256"}], "@graph": graph}


def _actions(hashes: dict[str, Artifact], known: dict[str, Record]) -> Iterator[dict[str, Any]]:
    """Yield the action of each record: its command, inputs and outputs."""
    for name, record in known.items():
        written = [artifact.path for artifact in record.outputs.values() if artifact.path in hashes]
        yield {
            "@id": f"#{name}",
            "@type": "CreateAction",
            "name": record.stage,
            "description": record.command,
            "instrument": {"@id": "#kit"},
            "startTime": record.started,
            "endTime": record.ended,
            "object": [{"@id": a.path} for a in record.inputs.values() if a.path in hashes],
            "result": [{"@id": path} for path in (name, *written)],
        }
