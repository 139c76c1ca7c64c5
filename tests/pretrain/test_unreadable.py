"""What earlier sessions could not read is remembered, whatever became of the list."""

import os

import pytest
import torch

from tests.conftest import KIT
from triplet.config import load
from triplet.images import open_images
from triplet.pretrain.config import Pretrain
from triplet.pretrain.unreadable import Unreadable
from triplet.training.distributed import Processes

ODD = os.fsdecode(b"caf\xe9.png")


@pytest.fixture
def unreadable(tmp_path):
    for name in ("1.png", "2.png", ODD):
        (tmp_path / name).touch()
    config = load(KIT / "configs/pretrain/demo.yaml", Pretrain, ["unreadable=1"])
    alone = Processes(0, 1, torch.device("cpu"))
    return lambda: Unreadable(tmp_path, open_images(tmp_path), config, alone)


def test_names_that_are_bytes_are_remembered(unreadable, capsys):
    first = unreadable()
    first.add({0, 2})
    assert "replaced by another: " in capsys.readouterr().out
    assert unreadable().names == first.names == ["1.png", ODD]
    assert capsys.readouterr().out == ""


def test_damaged_lines_are_dropped_and_counted(unreadable, tmp_path, capsys):
    (tmp_path / "unreadable.txt").write_bytes(b"1.png\n\xff\xfe\n\0\0\0\n\n2.p")
    assert unreadable().names == ["1.png"]
    assert "unreadable.txt: 3 damaged lines are left out\n" in capsys.readouterr().out
