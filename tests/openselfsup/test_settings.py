"""YAML over OpenSelfSup's configs; mmcv's Config is the real one."""

import json

import pytest

from tests.conftest import KIT
from triplet.defaults import recipe
from triplet.errors import KitError
from triplet.openselfsup import shims
from triplet.openselfsup.settings import plain, resolve
from triplet.openselfsup.train import iterations
from triplet.published.methods import load_methods

OURS = sorted((KIT / "configs" / "openselfsup").glob("*.yaml"))


@pytest.fixture
def configs(tmp_path):
    """A folder as OpenSelfSup's, with one config."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "base.py").write_text("total_epochs = 2\nworkflow = [('train', 1)]\n")
    (folder / "one.py").write_text(
        "_base_ = 'base.py'\nmodel = dict(type='BYOL', depth=50)\n"
        "data = dict(imgs_per_gpu=4, workers_per_gpu=2,\n"
        "    train=dict(pipeline=[dict(size=224), dict(p=0.5)]))\n"
    )
    return folder


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_yaml_is_merged_over_the_base(configs, tmp_path):
    path = write(tmp_path, 'base: one.py\ndata: {train: {pipeline: {"0": {size: 64}}}}\n')
    found = resolve(path, configs, ["model.depth=18", "gpus=1"])
    assert (found.model.type, found.model.depth, found.gpus, found.total_epochs) == ("BYOL", 18, 1, 2)
    assert [dict(each) for each in found.data.train.pipeline] == [{"size": 64}, {"p": 0.5}]
    recorded = plain(found)
    assert recorded["data"] == {"imgs_per_gpu": 4, "train": {"pipeline": [{"size": 64}, {"p": 0.5}]}}
    json.dumps(recorded)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("gpus: 1", [], "expected base"),
        ("base: two.py", [], "base=two.py is not a config below"),
        ("base: ../outside.py", [], "is not a config below"),
        ("base: one.py\ntotal_epoch: 3", [], "unknown key 'total_epoch'; did you mean 'total_epochs'?"),
        ("base: one.py", ["model.dept=18"], "unknown key 'model.dept'; did you mean 'depth'?"),
        ("base: one.py", ["data.train.pipeline.2.p=1"], "unknown key 'data.train.pipeline.2.p'"),
    ],
)
def test_what_does_not_fit_is_refused(configs, tmp_path, text, overrides, message):
    (tmp_path / "outside.py").write_text("raise SystemExit('was run')")
    with pytest.raises(KitError) as refused:
        resolve(write(tmp_path, text), configs, overrides)
    assert message in str(refused.value)


def test_epochs_are_counted_as_their_sampler_does(configs, tmp_path):
    path = write(tmp_path, "base: one.py\ngpus: 2")
    config = resolve(path, configs)
    assert iterations(config, 48) == 6
    assert iterations(config, 49) == 7
    config = resolve(path, configs, ["data.drop_last=true"])
    assert iterations(config, 49) == 6
    with pytest.raises(KitError, match="found 5 images, fewer than a batch of 8"):
        iterations(config, 5)
    config.data.drop_last, config.model.type = False, "Triplet"
    with pytest.raises(KitError, match=r"has 1 images and the loss needs 11; add data.drop_last=true"):
        iterations(config, 49)


def test_every_method_has_its_recipe_for_both_engines():
    methods = [name for name, method in load_methods().items() if method.pretrain]
    assert len(methods) == 8
    for method in methods:
        for engine in ("pretrain", "openselfsup"):
            assert recipe(method, engine).is_file()
    with pytest.raises(KitError, match="no recipe for a method 'supervised'"):
        recipe("supervised", "pretrain")


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_every_config_of_the_kit_fits_openselfsup(openselfsup, path):
    found = resolve(path, openselfsup)
    batch = found.data.imgs_per_gpu * found.gpus * found.optimizer_config.get("update_interval", 1)
    expected = {"byol": 4096, "triplet": 6272, "rotation-pred": 128, "relative-loc": 512, "demo": 32}
    assert batch == expected.get(path.stem.partition("_")[0], 256)


def test_without_openselfsup_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENSELFSUP", str(tmp_path))
    with pytest.raises(KitError, match="is not a checkout of OpenSelfSup: no openselfsup/apis in it"):
        shims.locate()
    monkeypatch.delenv("OPENSELFSUP")
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delitem(__import__("sys").modules, "openselfsup", raising=False)
    with pytest.raises(KitError, match="OpenSelfSup is not here"):
        shims.locate()
