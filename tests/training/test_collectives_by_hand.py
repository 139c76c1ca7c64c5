"""What three processes make of their values, the other two of which are written down here."""

import pytest
import torch
import torch.distributed as dist

from triplet.errors import KitError
from triplet.training.distributed import Processes

SECOND = Processes(1, 3, torch.device("cpu"))
ALONE = Processes(0, 1, torch.device("cpu"))


def test_gathered_rows_are_in_order_and_pass_their_own_gradient(monkeypatch):
    def all_gather(parts, own):
        assert not own.requires_grad
        for part, add in zip(parts, (10.0, 0.0, 20.0), strict=True):
            part.copy_(own + add)

    monkeypatch.setattr(dist, "all_gather", all_gather)
    own = torch.arange(4.0).view(2, 2).requires_grad_()
    found = SECOND.all_gather(own)
    assert torch.equal(found, torch.cat([own + 10, own, own + 20]))
    weights = torch.arange(12.0).view(6, 2)
    (found * weights).sum().backward()
    assert torch.equal(own.grad, weights[2:4])
    assert ALONE.all_gather(own) is own


def test_means_are_over_all_processes_and_in_place(monkeypatch):
    others = torch.tensor([6.0, -3.0])
    monkeypatch.setattr(dist, "all_reduce", lambda values: values.add_(others))
    values = torch.tensor([3.0, 9.0])
    assert SECOND.mean(values).tolist() == [3, 2]
    assert values.tolist() == [3, 2]
    assert ALONE.mean(torch.tensor([5.0])).tolist() == [5]


def test_gathered_values_are_in_order_and_an_odd_one_is_named(monkeypatch):
    def all_gather_object(found, value):
        found[:] = ["first", value, "third"]

    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    assert SECOND.gather("own") == ["first", "own", "third"]
    with pytest.raises(KitError, match=r"process 1 has another seed than process 0 \(\w{12}, first\)"):
        SECOND.assert_same("seed", 5)

    def same(found, value):
        found[:] = [value] * 3

    monkeypatch.setattr(dist, "all_gather_object", same)
    SECOND.assert_same("seed", {"b": 1, "a": [2]})
    assert ALONE.gather(4) == [4]


def test_other_files_are_named_and_other_copies_between_nodes(monkeypatch, tmp_path):
    (tmp_path / "weights").write_text("a")

    def all_gather_object(found, value):
        found[:] = ["first", value, "first"]

    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    SECOND.assert_same_inputs({}, [tmp_path])
    with pytest.raises(KitError, match="process 1 has another file of weights than process 0"):
        SECOND.assert_same_inputs({"file of weights": tmp_path / "weights"}, [])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(KitError, match="process 1 has another copy of the images than process 0"):
        SECOND.assert_same_inputs({}, [tmp_path])


def test_the_first_process_gives_the_others_its_tensors(monkeypatch):
    """Also those that lie in memory otherwise."""
    sent = torch.arange(48.0).view(1, 3, 4, 4)

    def broadcast(tensor, src):
        assert (src, tensor.is_contiguous()) == (0, True)
        tensor.copy_(sent)

    monkeypatch.setattr(dist, "broadcast", broadcast)
    mine = torch.zeros(1, 3, 4, 4).to(memory_format=torch.channels_last)
    SECOND.broadcast([mine])
    assert torch.equal(mine, sent)
    assert mine.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box, src: box.__setitem__(0, ("from", src)))
    assert SECOND.broadcast_object("own") == ("from", 0)
    assert ALONE.broadcast_object("own") == "own"


@pytest.mark.parametrize(("here", "nodes"), [(None, 1), ("3", 1), ("1", 3)])
def test_machines_are_counted_by_the_processes_of_one(monkeypatch, here, nodes):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if here:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert SECOND.nodes == nodes
    assert (SECOND.is_main_process, ALONE.is_main_process) == (False, True)
    assert SECOND.memory is SECOND.free is None
