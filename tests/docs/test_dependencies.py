"""docs/dependencies.md: a row for each direct dependency, and its licence as the package says."""

import importlib.metadata
import re
import tomllib

import pytest

from scripts.audit import READ_BY_HAND
from tests.conftest import KIT

PAGE = (KIT / "docs" / "dependencies.md").read_text()
PROJECT = tomllib.loads((KIT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def rows(section):
    """The cells of each row by its first, of the table under a heading."""
    text = PAGE.partition(f"### {section}\n")[2].partition("\n#")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    return {name: rest for name, *rest in cells[2:]}


ROWS = rows("The kit") | rows("Extras")


def test_each_direct_dependency_has_one_row_and_each_row_one():
    assert list(rows("The kit")) == PROJECT["dependencies"]
    assert set(rows("Extras")) == {name for names in EXTRAS.values() for name in names}
    assert {*rows("Beside the lock")} == {"Detectron2", "pb1-detectron2", "OpenSelfSup", "mmcv", "uv"}


def test_an_extra_is_named_in_its_rows():
    for extra, names in EXTRAS.items():
        for name in names:
            assert f"`{extra}`" in ROWS[name][0].partition(":")[0], f"{name} of {extra}"


@pytest.mark.parametrize("name", ROWS)
def test_the_licence_is_that_of_the_metadata(name):
    try:
        said = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    classifiers = [
        each.split(" :: ")[-1] for each in said.get_all("Classifier") or () if each.startswith("License ")
    ]
    text = (said.get("License") or "").strip()
    named = [
        said.get("License-Expression"),
        text if "\n" not in text and text != "UNKNOWN" else "",
        *classifiers,
    ]
    assert ROWS[name][1] in (
        [each for each in named if each] or [f"{READ_BY_HAND.get(name)} (its LICENSE file)"]
    )


def test_every_row_is_filled_in():
    for name, cells in (ROWS | rows("Beside the lock")).items():
        assert len(cells) == 4, name
        assert all(cells), name


def test_the_pythons_are_those_of_the_project():
    assert PROJECT["requires-python"] == ">=3.11,<3.15"
    assert re.findall(r"^\| (3\.[\d and.]+),", PAGE, re.M) == ["3.11 and 3.12", "3.13", "3.14"]
