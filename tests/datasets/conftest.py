"""The drawn data set as each tool exports it."""

import pytest

from tests.support.own_data import EXPORTS, parts_of


@pytest.fixture(scope="session")
def exported(drawn, tmp_path_factory):
    """A folder for each layout by its name; not to be changed."""
    folders = {name: tmp_path_factory.mktemp("exported") / "mine" for name in EXPORTS}
    for name, export in EXPORTS.items():
        export(parts_of(drawn), folders[name])
    return folders
