"""The benchmark measures, judges and writes as it says. No time is asserted."""

import copy
import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from benchmarks.speed import download, end_to_end, flops, photos, results, run, timing
from benchmarks.speed.steps import Setup, sizes_of
from triplet.errors import KitError
from triplet.pretrain.config import ResolutionRange, Views
from triplet.pretrain.estimate import estimate
from triplet.pretrain.layout import make_layout
from triplet.pretrain.views import InputResolutions

CPU = torch.device("cpu")


def test_photos_repeat_and_weigh_what_photographs_do(folder, tmp_path):
    photos.draw_photos(tmp_path, 2)
    sizes = []
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
        sizes.append(path.stat().st_size)
    assert 50_000 < min(sizes) <= max(sizes) < 120_000


def test_flop_of_a_step_are_those_of_the_estimate(config):
    views = Views(
        online=ResolutionRange(smallest=64, largest=64), target=ResolutionRange(smallest=96, largest=96)
    )
    config = config.model_copy(update={"views": views})
    expected = estimate(config, make_layout(config, 1)).flop
    assert flops.step_flop(config.model, InputResolutions(64, 64, 96, 96)) == pytest.approx(
        expected, rel=1e-4
    )


def test_peaks_are_known_by_the_exact_device():
    assert flops.peak("NVIDIA H200") == flops.peak("NVIDIA H100 80GB HBM3") == 989.4e12
    assert flops.peak("NVIDIA GeForce RTX 4090") == 165.2e12
    assert flops.peak("NVIDIA A100-SXM4-80GB") == 312e12
    for name in (
        "H100 PCIe",
        "H100 NVL",
        "H200 NVL",
        "GH200 480GB",
        "RTX A1000",
        "RTX 3090 Ti",
        "H100 80GB HBM3 MIG 1g.10gb",
        "Tesla T4",
    ):
        assert flops.peak(f"NVIDIA {name}") is None, name


def test_variants_take_turns_and_warm_up_is_left_out():
    turns = []
    variants = [timing.Variant(name, lambda name=name: turns.append(name)) for name in "ab"]
    timings = timing.interleave(variants, timing.Budget(CPU, 0.0, rounds=3, warmup=1))
    assert "".join(turns) == "aabb" + "ababab"
    assert [len(each.seconds) for each in timings] == [3, 3]


def test_short_calls_fill_a_block():
    count = itertools.count()
    variant = timing.Variant("short", lambda: next(count), block=0.01)
    (measured,) = timing.interleave([variant], timing.Budget(CPU, 0.0, rounds=2, warmup=1))
    assert measured.calls > 1
    assert next(count) == 2 + 2 * measured.calls
    assert len(measured.seconds) == 2


def case(benchmark, kit, other, **sizes):
    timings = []
    for name, seconds in (("kit", kit), ("released", other)):
        variant = timing.Variant(name, lambda: None, ours=name == "kit")
        timings.append(timing.Timing(variant, first=9.0, seconds=seconds))
    return timing.Case(benchmark, "a case", CPU, sizes, timings)


def test_ratios_are_taken_round_by_round():
    (ratio,) = case("head", [1.0, 2.0, 1.0], [10.0, 22.0, 12.0], images=196).ratios()
    assert (ratio["of"], ratio["over"], ratio["median"]) == ("kit", "released", pytest.approx(11.0))
    assert 10.0 <= ratio["low"] <= ratio["median"] <= ratio["high"] <= 12.0


def test_ratios_are_of_images_where_repetitions_differ_in_them():
    one = case("step", [1.0], [8.0])
    for each, images in zip(one.timings, (50, 100), strict=True):
        each.variant = dataclasses.replace(each.variant, images=images)
    assert one.ratios()[0]["median"] == pytest.approx(4.0)


def test_goals_are_judged_where_they_belong():
    (judged,) = results.judge(case("head", [1.0], [14.0], images=196))
    assert (judged["wanted"], judged["found"], judged["reached"]) == (15, 14.0, False)
    assert results.judge(case("head", [1.0], [20.0], images=196))[0]["reached"]
    assert results.judge(case("data", [1.0], [2.0], view=224))[0]["reached"]
    assert not results.judge(case("head", [1.0], [20.0], images=64))
    assert not results.judge(case("step", [1.0], [20.0], depth=50, width=64)), "a goal on the GPU"


def test_goals_are_not_judged_by_what_did_not_get_through():
    one = case("step", [1.0], [8.0], depth=50, width=64)
    one.device = torch.device("cuda")
    (left, _) = one.timings
    one.timings = [left]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
        assert results.judge(one) == []
        one.timings = []
        assert results.judge(one) == []


def test_fast_sizes_are_the_nearest_to_the_released_ones(config):
    few = ResolutionRange(smallest=32, largest=48, step=16)
    fast = config.model_copy(update={"views": config.views.model_copy(update=dict(online=few, target=few))})
    setup = Setup(released=config, fast=fast, passes=8, compile=False)
    for drawn, moved in zip(sizes_of(setup, config), sizes_of(setup, fast), strict=True):
        for before, after in zip(vars(drawn).values(), vars(moved).values(), strict=True):
            assert after in (32, 48)
            assert abs(before - after) <= 8


def test_smoke(tmp_path, capsys):
    output = tmp_path / "sub" / "speed.json"
    threads = torch.get_num_threads()
    assert run.main(["all", "--smoke", "--device", "cpu", "--output", str(output)]) == 0
    assert torch.get_num_threads() == threads
    content = json.loads(output.read_text())
    assert {"command", "date", "commit", "hardware", "versions", "threads"} <= content.keys()
    assert content["command"].startswith("python -m benchmarks.speed.run all --smoke")
    names = [each["benchmark"] for each in content["cases"]]
    assert names == ["step", "head", "update", "data", "detection"]
    assert content["failed"] == []
    for each in content["cases"]:
        pair = {"float32", "detectron2"} if each["benchmark"] == "detection" else {"kit", "released"}
        assert pair <= {name.partition(",")[0] for name in each["variants"]}
        assert not each["goals"], "a smoke run judges nothing"
        for values in each["variants"].values():
            assert len(values["all_seconds"]) == values["repetitions"] >= 2
        assert all(np.isfinite(ratio["median"]) for ratio in each["ratios"])
    (together,) = content["loader_and_step"]
    assert 0 <= together["waiting_share"]["median"] <= 1
    out = capsys.readouterr().out
    assert "kit over released: " in out
    assert "waiting for data" in out


def broken(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_variant_that_fails_leaves_the_others():
    failed = []
    variants = [timing.Variant("a", broken), timing.Variant("b", lambda: None)]
    (left,) = timing.interleave(variants, timing.Budget(CPU, 0.0), failed)
    assert left.variant.name == "b"
    assert failed == ["a failed: CUDA out of memory. Tried to allocate 2.00 GiB"]
    with pytest.raises(KitError, match="a failed: CUDA"):
        timing.interleave(variants[:1], timing.Budget(CPU, 0.0), [])


def test_a_part_that_fails_leaves_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "step", broken)
    monkeypatch.setattr(run, "detection", broken)
    output = tmp_path / "speed.json"
    assert run.main(["all", "--smoke", "--device", "cpu", "--output", str(output)]) == 2
    content = json.loads(output.read_text())
    assert [each["benchmark"] for each in content["cases"]] == ["head", "update", "data"]
    assert [line.partition(":")[0] for line in content["failed"]] == [
        "the training step",
        "a detection step",
    ]
    captured = capsys.readouterr()
    assert "kit over released" in captured.out
    assert "the training step: CUDA out of memory. Tried to allocate 2.00 GiB; give a lower" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "--images", "nowhere"], "no folder or list of images at nowhere"),
        (["step", "--batch", "8"], "group must hold at least"),
    ],
)
def test_mistakes_get_one_line(arguments, message, capsys):
    assert run.main([*arguments, "--smoke", "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("benchmarks.speed.run: ")
    assert err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_refused(capsys):
    assert run.main(["head", "--device", "cuda"]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_all_parts_on_a_gpu_are_the_probes_comparison(monkeypatch):
    told = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(run.probe, "main", lambda argv: told.append(argv) or 0)
    assert run.main(["--batch", "98", "--no-compile", "--output", "a b.json"]) == 0
    (options,) = told
    assert options[:4] == ["--everything", "--device", "cuda", "--seconds"]
    assert options[5:] == ["--output", "a b.json", "--comparison=--seconds 20.0 --batch 98 --no-compile"]
    assert [each.name for each in run.probe.COMPARISON] == list(run.NAMES)


def test_rounds_are_told_as_they_end():
    rounds = []
    budget = timing.Budget(
        CPU, 0.0, rounds=3, after_round=lambda found: rounds.append(len(found[0].seconds))
    )
    timing.interleave([timing.Variant("a", lambda: None)], budget)
    assert rounds == [1, 2, 3]


def test_dali_is_for_the_gpu():
    assert end_to_end.backends(CPU) == ["opencv"]


@pytest.mark.parametrize("package", ["lightly", "solo"])
def test_the_other_libraries_step(package, config):
    pytest.importorskip(package)
    from benchmarks.speed import third_party

    (each,) = [e for e in third_party.installed(config, CPU)[0] if e.name.startswith(package)]
    before = copy.deepcopy(each.networks.state_dict())
    each.micro_batch(torch.randn(12, 2, 3, 48, 48), InputResolutions(32, 41, 48, 33))
    each.update()
    weights = {name: p for name, p in each.networks.named_parameters() if p.ndim > 1}
    parts = {name.split(".")[0] for name in weights}
    assert parts == {"backbone", "projector", "predictor", "target_backbone", "target_projector"}
    for name, weight in weights.items():
        assert not torch.equal(before[name], weight), name


def test_the_download_benchmark_runs(tmp_path, capsys):
    output = tmp_path / "download.json"
    command = ["--bytes", "3000001", "--seconds", "0", "--output", str(output)]
    assert download.main(command) == 0
    content = json.loads(output.read_text())
    (case,) = content["cases"]
    assert content["smoke"]
    assert {"kit", "kit, verified"} < case["variants"].keys()
    assert {ratio["of"] for ratio in case["ratios"]} == {"kit", "kit, verified"}
    assert "kit over" in capsys.readouterr().out
