"""Scale on paper: within its stated error of what others have published, and lawful."""

import json

import pytest

from benchmarks.speed import scale
from benchmarks.speed.scale import CHECKS, GPUS, Cluster, ProcessStep
from tests.conftest import KIT


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.name} on {check.gpus}")
def test_published_results_are_met_within_the_stated_error(check):
    assert abs(scale.error(check)) <= scale.ERROR
    assert check.base_rate < check.rate <= check.base_rate / check.base * check.gpus


@pytest.mark.parametrize("card", scale.BANDWIDTHS)
def test_more_gpus_are_faster_and_never_more_than_their_number(card):
    step, cluster = scale.step_of(card), Cluster()
    assert step.on(1, cluster) == step.seconds
    rates = [step.rate(gpus, cluster) for gpus in GPUS]
    assert rates == sorted(rates)
    efficiencies = [rate / gpus / rates[0] for gpus, rate in zip(GPUS, rates, strict=True)]
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert efficiencies[0] == 1


def test_a_free_network_costs_only_the_waiting():
    free = Cluster(within=1e30, between=1e30, launch=0, hop=0, far_hop=0)
    step = ProcessStep(0.1, 32, 1e8, norms=50, norms_back=50, pool=8)
    assert step.on(64, free) == pytest.approx(0.1 * free.waiting(64))
    slow = Cluster(between=1e6)
    assert step.on(64, slow) > slow.all_reduce(1e8, 64) - step.seconds, "a backward pass hides no more"


def test_an_all_reduce_carries_each_byte_twice():
    plain = Cluster(within=1e9, between=1e9, launch=0, hop=0, far_hop=0)
    assert plain.all_reduce(1e9, 8) == pytest.approx(2 * 7 / 8)
    assert plain.all_reduce(1e9, 16) == pytest.approx(2 * 7 / 8 + 2 * 1 / 2)
    assert plain.all_reduce(1e9, 1) == 0


def test_the_committed_file_is_what_the_program_says(tmp_path, capsys):
    path = tmp_path / "scale.json"
    assert scale.main(["--output", str(path)]) == 0
    committed = json.loads((KIT / "benchmarks/results/scale.json").read_text())
    found = json.loads(path.read_text())
    assert {**found, "command": ""} == {**committed, "command": ""}
    assert "1024 GPUs" in capsys.readouterr().out
