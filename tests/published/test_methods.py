"""The methods, and what a run takes from its method when its user gives nothing else."""

import pickle
import re

import pytest
import torch

from tests.conftest import KIT
from tests.support.backbones import caffe2_name
from triplet import cli, paths, records
from triplet.defaults import MSRA, detection_config, weights_of
from triplet.errors import KitError
from triplet.models.resnet import ResNet
from triplet.published import curves
from triplet.published.methods import load_methods
from triplet.pull.sources import load_sources
from triplet.report import coco, tables

NAMES = [(name, weights) for name, method in load_methods().items() for weights in method.weights]


def test_every_method_has_weights_and_all_weights_a_method():
    assert sorted(name for _, name in NAMES) == sorted(load_sources().weights)
    for name, method in load_methods().items():
        assert next(iter(method.weights)) == name


@pytest.mark.parametrize(("method", "name"), NAMES)
def test_each_default_config_exists_and_fits_its_weights(places, method, name):
    path = detection_config(f"experiment/seed3/{name}")
    assert path.exists()
    recipe = "authors" if method == "triplet" else "moco"
    caffe2 = load_methods()[method].weights[name] == "caffe2"
    assert path.name == f"coco_r50_c4_2x_{recipe}{MSRA if caffe2 else ''}.yaml"
    (file,) = load_sources().weights[name].files
    assert caffe2 == file.name.endswith(".pkl")
    assert detection_config(name, weights=places / file.name) == path  # told by the file as by the method


def test_a_given_file_decides_the_colour_order(places):
    assert detection_config("supervised", weights=places / "resnet50.pth").stem == "coco_r50_c4_2x_moco"
    assert detection_config("triplet", weights=places / "R-50.pkl").stem == "coco_r50_c4_2x_authors_msra"


def test_rows_of_the_zoo_that_are_detcos_are_said_to_be():
    """They are one measurement, not two."""
    detco = {
        each.init: (each.at(curves.FULL, 0), each.at(curves.FULL, 1))
        for each in curves.published().curves
        if (each.detector, each.source) == ("c4", "detco")
    }
    *first, last = (
        method.label
        for name, method in load_methods().items()
        if method.zoo and (method.zoo.box, method.zoo.mask) == detco.get(name)
    )
    said = f"{', '.join(first)} and {last} are DetCo's, digit for digit"
    assert said == "Supervised, Random and MoCo v2 are DetCo's, digit for digit"
    notes = [grid.note for grid in tables.coco_table(coco.lines([], load_methods()))]
    for text in ((KIT / "README.md").read_text(), *notes):
        assert said in " ".join(text.split())


def test_the_numbers_are_those_of_the_readme_and_the_zoo():
    """Typed in a second time, from the tables."""
    table = """
        supervised 40.0 34.7 40.0 34.7    random 35.6 31.4 35.6 31.4        relative-loc 40.0 35.0 40.0 35.0
        rotation-pred 40.0 34.9 40.0 34.9 npid 39.4 34.5 39.4 34.5          simclr 39.6 34.6 39.6 34.6
        moco 40.9 35.5 40.9 35.5          moco-v2 40.9 35.5 41.0 35.6       byol 40.3 35.1 40.2 34.9
    """
    found = {
        name: [float(v) for v in values.split()]
        for name, values in re.findall(r"([a-z][\w-]+) ([\d. ]+\d)", table)
    }
    methods = load_methods()
    for name, method in methods.items():
        if name != "triplet":
            assert [method.readme.box, method.readme.mask, method.zoo.box, method.zoo.mask] == found[name]
    assert list(methods) == [*found, "triplet"]
    assert (methods["triplet"].readme.box, methods["triplet"].readme.mask) == (41.7, 36.2)


def test_no_method_no_default(places, tmp_path, capsys):
    with pytest.raises(KitError, match=r"'mine' is not a method of the table .*its default; add --config"):
        detection_config("mine")
    (tmp_path / "w.pth").touch()
    assert cli.main(["convert", "--run", "mine", "--weights", str(tmp_path / "w.pth")]) == 2
    assert cli.main(["finetune", "--run", "mine"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "is not a method of the table" in errors[0]
    assert "run first: triplet convert --run mine" in errors[1]


def test_nothing_to_convert_says_which_two_commands_help(places, capsys):
    assert cli.main(["convert", "--run", "seed1/byol"]) == 2
    error = capsys.readouterr().err
    assert "run first: triplet pretrain --run seed1/byol, or: triplet pull weights --method byol" in error
    assert error.count("\n") == 1


def test_a_begun_pretraining_goes_before_published_weights(places):
    paths.stage_folder("byol", "pretrain").mkdir(parents=True)
    with pytest.raises(KitError, match="run 'byol' has no finished pretrain stage"):
        weights_of("byol")


def test_supervised_needs_no_knowledge_of_bgr(places, drawn, capsys):
    """Pull, convert, finetune of the method with MSRA's file, without a config or a path."""
    torch.manual_seed(0)
    state = ResNet(50).state_dict()
    tensors = {caffe2_name(k): v.numpy() for k, v in state.items() if "running" not in k and v.ndim}
    (places / "R-50.pkl").write_bytes(pickle.dumps(tensors))
    given = ["--from", str(places / "R-50.pkl")]
    assert cli.main(["pull", "weights", "--method", "supervised", *given]) == 0
    assert cli.main(["convert", "--run", "supervised"]) == 0
    config = "configs/detection/coco_r50_c4_2x_moco_msra.yaml"
    said = capsys.readouterr().out
    assert f"convert: checkpoints/weights/supervised/R-50.pkl for {config}" in said
    record = records.require("supervised", "convert")
    assert (record.results["tensors"], record.results["format"]) == (318, "caffe2")
    assert record.config["format"] == "BGR"
    # The images are of 6 classes: it stops, having said under which config it would train.
    wrong = "MODEL.ROI_HEADS.NUM_CLASSES=80"
    assert cli.main(["finetune", "--run", "supervised", "--data", str(drawn), wrong]) == 2
    said = capsys.readouterr()
    assert f"finetune: supervised under {config}" in said.out
    assert "add MODEL.ROI_HEADS.NUM_CLASSES=6" in said.err


def test_a_repeated_seed_converts_the_run_that_it_repeats(places, tmp_path):
    """And not published weights of the same name."""
    path = paths.stage_folder("triplet", "pretrain") / "checkpoint.pth"

    def work(job):
        path.write_bytes(b"own")
        job.outputs["checkpoint"] = path

    records.perform("pretrain", path.parent, config={}, inputs={}, work=work)
    assert weights_of("seed3/triplet") == path
