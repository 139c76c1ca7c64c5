"""What `make audit` says of licences and of known vulnerabilities, with a drawn database of OSV's form."""

import json
import subprocess
import urllib.request
import zipfile

import pytest

from scripts import audit
from tests.conftest import KIT

ENTRY = {
    "schema_version": "1.6.0",
    "id": "OSV-1",
    "aliases": ["CVE-1"],
    "summary": "It breaks.",
    "affected": [
        {
            "package": {"name": "Some_Package", "ecosystem": "PyPI"},
            "versions": ["0.1.post1"],
            "ranges": [
                {
                    "type": "ECOSYSTEM",
                    "events": [{"introduced": "1.0"}, {"fixed": "1.17"}, {"introduced": "2.0rc1"}],
                },
                {"type": "GIT", "events": [{"introduced": "0"}]},
            ],
        }
    ],
}
NAMED = {"name": "some-package", "ecosystem": "PyPI"}


def database(folder, entry=ENTRY):
    with zipfile.ZipFile(folder / "all.zip", "w") as packed:
        packed.writestr("OSV-1.json", json.dumps(entry))
    return folder / "all.zip"


@pytest.mark.parametrize(
    ("version", "affected"),
    [("0.9", False), ("0.1.post1", True), ("1.0", True), ("1.18", False), ("1.16.9", True), ("2.0", True)],
)
def test_a_version_is_affected_by_list_or_range(version, affected):
    assert audit.affects(ENTRY, version, NAMED) is affected


def test_a_last_affected_version_is_affected():
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"last_affected": "1.2"}]}]
    entry = {"affected": [{"package": NAMED, "ranges": ranges}]}
    assert [audit.affects(entry, version, NAMED) for version in ("0.1", "1.2", "1.2.1")] == [
        True,
        True,
        False,
    ]


def test_the_database_is_served_as_osv_answers(tmp_path):
    with audit.served(database(tmp_path)) as address:
        for version, expected in (("1.5", {"vulns": [ENTRY]}), ("1.17", {})):
            query = json.dumps({"package": NAMED, "version": version}).encode()
            with urllib.request.urlopen(address, query) as answer:
                assert json.load(answer) == expected


@pytest.mark.parametrize("content", [b"no zip", None])
def test_what_is_no_database_is_one_line(tmp_path, monkeypatch, capsys, content):
    monkeypatch.setattr(audit, "foreign_licences", lambda: iter(()))
    file = tmp_path / "all.zip"
    if content:
        file.write_bytes(content)
    assert audit.main(["--database", str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("licence", "name", "allowed"),
    [
        ("MIT", "a", True),
        ("LGPL-2.1-only OR MIT", "a", True),
        ("MIT AND GPL-3.0-only", "a", False),
        ("DFSG approved; MIT License", "a", True),
        ("UNKNOWN", "a", False),
        ("LicenseRef-NVIDIA-Proprietary", "a", False),
        ("LicenseRef-NVIDIA-Proprietary", "nvidia-cublas", True),
    ],
)
def test_a_licence_is_allowed_by_one_of_its_choices(licence, name, allowed):
    assert audit.is_allowed(licence, name) is allowed


@pytest.mark.slow
def test_make_audit_names_package_and_mended_version(tmp_path):
    """pip-audit and pip-licenses for real, over the lock."""
    assert "\nsix==1.17" in (KIT / "docker" / "requirements.lock").read_text()
    entry = json.loads(json.dumps(ENTRY).replace("Some_Package", "six").replace("1.17", "9"))
    given = f"AUDIT_DB={database(tmp_path, entry)}"
    done = subprocess.run(
        ["make", "--no-print-directory", "audit", given], cwd=KIT, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "audit: six 1.17.0: CVE-1, OSV-1; mended in 9",
        "audit: 1 known vulnerabilities, 0 licences that are not allowed",
    ]
    assert done.returncode == 2
