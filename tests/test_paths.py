"""Where everything lies, and that no name leads elsewhere."""

import pytest

from triplet import paths
from triplet.errors import KitError


def test_an_empty_variable_is_no_place(monkeypatch, tmp_path):
    monkeypatch.setenv("TRIPLET_DATASETS", "")
    monkeypatch.chdir(tmp_path)
    assert paths.root("datasets") == tmp_path / "datasets"


def test_paths_survive_a_move_of_the_places(places, monkeypatch):
    path = places / "checkpoints" / "a" / "b.pth"
    assert paths.local(paths.portable(path)) == path
    monkeypatch.setenv("TRIPLET_CHECKPOINTS", "/elsewhere")
    assert str(paths.local("checkpoints/a/b.pth")) == "/elsewhere/a/b.pth"


@pytest.mark.parametrize("run", ["", "/absolute", "../out", "a/../../b", "a\nb", "\x1b[2J"])
def test_a_run_stays_below_the_checkpoints(places, run):
    with pytest.raises(KitError, match="--run names a folder below"):
        paths.stage_folder(run, "pretrain")


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "a/../../b", ".", "", "a\0b"])
def test_names_lead_to_no_other_place(places, name):
    for folder in (lambda: paths.stage_folder(name, "copy"), lambda: paths.dataset_folder(name)):
        with pytest.raises(KitError, match="names a folder below"):
            folder()
