"""Checkpoints: what is inside counts, whatever the file is called; all that is saved is finite."""

import os
import shutil

import pytest
import torch
from torch import nn

from triplet.artifacts import Artifact, Plan
from triplet.errors import KitError
from triplet.training import checkpoint


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "pretrain")


class Run:
    """A run of 12 steps whose one weight says how many of them are done."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.network = nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.1, momentum=0.9)

    def path(self, step):
        return self.folder / f"step_{step:07d}.pth"

    def save(self, *steps, optimizer=True, path=None, plan=None):
        for step in steps:
            nn.init.constant_(self.network.weight, step)
            path = path or self.path(step)
            checkpoint.save(path, self.network, self.optimizer if optimizer else None, step, 0, plan)
            path = None

    def resume(self, steps=12, final=None, plan=None):
        nn.init.constant_(self.network.weight, -1)
        found = checkpoint.restore(self.folder, self.network, self.optimizer, steps, final, plan)
        assert self.network.weight.item() == (found or -1)
        return found

    def names(self):
        return sorted(path.name for path in self.folder.glob("*.pth"))


@pytest.mark.parametrize("digest", [True, False], ids=["with its sum", "alone"])
@pytest.mark.parametrize("name", ["step_9999999.pth", "step_0000002.pth"])
def test_a_renamed_checkpoint_is_of_the_step_in_it(run, capsys, name, digest):
    run.save(4, 8)
    run.path(8).rename(run.folder / name)
    sum_of = run.path(8).with_suffix(".pth.sha256")
    sum_of.rename(run.folder / f"{name}.sha256") if digest else sum_of.unlink()
    assert checkpoint.trained(run.folder) == "with 8 steps trained"
    assert checkpoint.trained(run.folder, "iterations") == "with 8 iterations trained"
    assert run.resume() == 8
    said = capsys.readouterr().out
    assert said == f"pretrain: {name} holds step 8: that counts, and not its name\n"
    assert run.names() == ["step_0000004.pth", "step_0000008.pth"]
    assert not (run.folder / f"{name}.sha256").exists()
    if digest:
        assert sum_of.read_text().endswith("  step_0000008.pth\n")
    assert run.resume() == 8
    assert capsys.readouterr().out == ""


def test_a_copy_takes_nobodys_place(run):
    run.save(4, 8)
    shutil.copy(run.path(4), run.path(11))
    assert run.resume() == 8
    checkpoint.keep(run.folder, 2)
    assert run.names() == ["step_0000004.pth", "step_0000008.pth"]
    for path in (run.path(12), run.folder / "checkpoint.pth"):  # a kill while they are written
        (run.folder / f".{path.name}.{os.getpid()}.tmp").touch()
    for pattern in checkpoint.SCRATCH:
        for path in run.folder.glob(pattern):
            path.unlink()
    assert list(run.folder.iterdir()) == []


def test_a_copy_stands_in_for_an_original_that_is_damaged(run):
    run.save(4, 8)
    shutil.copy(run.path(8), run.path(11))
    os.truncate(run.path(8), 100)
    assert run.resume() == 8


def test_exchanged_names_lose_nothing(run):
    run.save(4, 8)
    run.path(4).rename(run.folder / "x")
    run.path(8).rename(run.path(4))
    (run.folder / "x").rename(run.path(8))
    for path in run.folder.glob("*.sha256"):
        path.unlink()
    assert run.resume() == 8
    assert run.names() == ["step_0000004.pth", "step_0000008.pth"]


def test_a_checkpoint_of_a_longer_run_is_not_taken(run, capsys):
    run.save(4, 48)
    assert run.resume(steps=12) == 4
    assert run.resume(steps=48) == 48  # killed after its last step
    assert "it is of another run: it has 48 steps behind it, this one has 12" in capsys.readouterr().out


@pytest.mark.parametrize("step", [None, "8", 8.0, True, -8, torch.tensor(8)])
def test_a_checkpoint_without_a_step_is_damaged(run, capsys, step):
    run.save(4)
    state = torch.load(run.path(4), weights_only=True)
    checkpoint.write(run.path(8), {**state, "step": step})
    checkpoint.write(run.path(9), [1])
    assert run.resume() == 4
    assert "step_0000008.pth is damaged" in capsys.readouterr().out


def test_one_wrong_bit_is_seen_without_the_sum(run):
    run.save(4, 8)
    content = bytearray(run.path(8).read_bytes())
    where = content.index(torch.tensor([8.0]).numpy().tobytes())
    content[where + 2] ^= 1
    run.path(8).write_bytes(content)
    run.path(8).with_suffix(".pth.sha256").write_bytes(b"")
    assert run.resume() == 4


def test_a_finished_run_resumes_only_where_its_record_is_damaged(run):
    final = run.folder / "checkpoint.pth"
    run.save(12, optimizer=False, path=final)
    assert run.resume() == 0
    assert run.resume(final=final) == 12
    run.save(4)  # of another run that was begun over it
    assert run.resume(final=final) == 4
    run.path(4).unlink()
    assert run.resume(final=final, steps=24) == 0
    os.truncate(final, final.stat().st_size // 2)
    assert run.resume(final=final) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_saved(run, value):
    run.save(4)
    before = run.path(4).read_bytes()
    nn.init.constant_(run.network.weight, value)
    with pytest.raises(KitError, match=r"weight is not finite after step 8.*last good.*step_0000004\.pth"):
        checkpoint.save(run.path(8), run.network, run.optimizer, 8, 0)
    with pytest.raises(KitError, match="not finite"):
        checkpoint.save(run.path(4), run.network, None, 4, 0)
    assert run.path(4).read_bytes() == before
    assert run.names() == ["step_0000004.pth"]


def plan(rate=0.5, sha256="aa", path="a"):
    images = Artifact(path=path, sha256=sha256, bytes=1)
    return Plan(stage="pretrain", config={"rate": rate, "pair": [1, 2]}, inputs={"images": images})


@pytest.mark.parametrize(
    ("other", "change"),
    [(plan(rate=0.25), "config.rate 0.25 -> 0.5"), (plan(sha256="bb"), "input images bb -> aa")],
    ids=["config", "input"],
)
def test_a_checkpoint_of_another_plan_is_not_taken(run, capsys, other, change):
    """As a copy from another run's folder is, whose steps and tensors fit."""
    run.save(4, plan=plan(path="elsewhere"))
    run.save(8, plan=other)
    assert run.resume(plan=plan()) == 4
    assert f"step_0000008.pth is damaged (it is of another plan: {change}" in capsys.readouterr().out
    final = run.folder / "checkpoint.pth"
    for path in run.folder.glob("step_*"):
        path.unlink()
    run.save(12, path=final, optimizer=False, plan=other)
    assert run.resume(final=final, plan=plan()) == 0
    assert run.resume(final=final, plan=other) == 12


def test_checkpoints_say_of_which_plan_they_are(run):
    final = run.folder / "model_final.pth"
    assert checkpoint.planned(run.folder) is None
    run.save(12, path=final, plan=plan(3))
    assert checkpoint.planned(run.folder) == plan(3)
    run.save(4, plan=plan(1))
    run.save(8, plan=plan(2))
    assert checkpoint.planned(run.folder) == plan(2)
    os.truncate(run.path(8), 100)
    assert checkpoint.planned(run.folder) == plan(1)
    state = torch.load(run.path(4), weights_only=True)
    checkpoint.write(run.path(4), {**state, "plan": "{"})
    assert checkpoint.planned(run.folder) == plan(3)
    final.unlink()
    run.save(4)  # of before there were plans in them
    assert checkpoint.planned(run.folder) is None
    assert run.resume(plan=plan()) == 4


def test_a_foreign_checkpoint_takes_no_more_memory_than_its_file(run, capsys):
    """A tensor of 800 GB by strides of 0, which torch itself would make in full when it is changed."""
    run.save(4)
    state = torch.load(run.path(4), weights_only=True)
    state["networks"]["weight"] = torch.zeros(1).expand(2 * 10**11, 1)
    checkpoint.write(run.path(8), state)
    assert run.resume() == 4
    assert "_rebuild_tensor_v2 of 2e+11 elements in a file of" in capsys.readouterr().out
    assert checkpoint.reached(run.folder) == 4


def test_a_sum_without_end_is_no_sum(run):
    run.save(4, 8)
    with (run.folder / "step_0000008.pth.sha256").open("ab") as file:
        file.truncate(1 << 40)  # a hole
    assert run.resume() == 4
