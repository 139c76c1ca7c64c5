"""Budgets, calibration and proofs with numbers that are neither equal nor one."""

import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks.detection import budget, calibration, convert, model, preview, proof
from benchmarks.detection.budget import Memory
from benchmarks.detection.plan import FinetuneOptions, FinetunePlan
from tests.conftest import KIT
from triplet import cli, paths, records
from triplet.errors import KitError
from triplet.models.networks import Networks
from triplet.published import curves
from triplet.signals import Stop
from triplet.training import checkpoint
from triplet.training.distributed import Processes
from triplet.weights import detectron2_format, read_backbone

from detectron2.checkpoint import DetectionCheckpointer

CONFIGS = KIT / "configs/detection"
DEMO = CONFIGS / "demo.yaml"
ALONE = Processes(0, 1, torch.device("cpu"))


def config(name="coco_r50_c4_2x_moco", **changes):
    return model.load_config(CONFIGS / f"{name}.yaml", [f"{key}={value}" for key, value in changes.items()])


ODD = {"SOLVER.MAX_ITER": 1000, "SOLVER.STEPS": "(333,777)", "SOLVER.WARMUP_ITERS": 55}


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.218, (218, (73, 169), 12)),
        (0.37, (370, (123, 287), 20)),
        (0.6996, (700, (233, 544), 38)),
        (1, (1000, (333, 777), 55)),
    ],
)
def test_a_compressed_schedule_rounds_to_the_nearest_iteration(fraction, expected):
    cfg = config(**ODD)
    solver = budget.compress(cfg, fraction).SOLVER
    assert expected == (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS)
    assert solver.BASE_LR == cfg.SOLVER.BASE_LR
    other = budget.with_schedule(config(), solver)
    assert expected == (other.SOLVER.MAX_ITER, other.SOLVER.STEPS, other.SOLVER.WARMUP_ITERS)


def test_too_few_iterations_means_below_a_hundred_or_below_all():
    cfg = config(**ODD)
    assert budget.compress(cfg, 0.0996).SOLVER.MAX_ITER == 100
    with pytest.raises(KitError, match="99 iterations are left of 1000"):
        budget.compress(cfg, 0.0994)
    assert (
        budget.compress(
            config(**ODD | {"SOLVER.MAX_ITER": 40, "SOLVER.STEPS": "(20,30)"}), 1
        ).SOLVER.MAX_ITER
        == 40
    )


def test_hours_hold_training_precise_bn_and_a_reserve():
    """1000 iterations of 0.4 s; 90 of precise BN take as long as 30; a twentieth is kept for the rest."""
    cfg = config(**ODD, **{"TEST.PRECISE_BN.NUM_ITER": 90})
    assert budget.lasts(0.4, cfg) == pytest.approx(1030 * 0.4 / 0.95)
    assert budget.lasts(0.4, cfg, done=250) == pytest.approx(780 * 0.4 / 0.95)
    assert budget.part_in(0.1, 0.4, cfg) == pytest.approx((360 * 0.95 / 0.4 - 30) / 1000)
    without = config(**ODD, **{"TEST.PRECISE_BN.ENABLED": False})
    assert budget.lasts(0.4, without) == pytest.approx(1000 * 0.4 / 0.95)
    assert budget.part_in(0.1, 0.4, without) == pytest.approx(360 * 0.95 / 0.4 / 1000)


@pytest.mark.parametrize(("asked", "part"), [("1x", 1 / 3), ("0.3x", 0.1), ("2/5", 0.4), ("1.5x", 0.5)])
def test_a_schedule_is_counted_in_images(asked, part):
    """One of 270 000 iterations of 16 images, and of twice as many of 8."""
    for length, batch in ((270_000, 16), (540_000, 8)):
        cfg = config(**{"SOLVER.MAX_ITER": length, "SOLVER.IMS_PER_BATCH": batch})
        assert budget.part(asked, cfg) == pytest.approx(part)


def test_memory_is_linear_and_never_shrinks_with_images():
    assert Memory.through(8e9, 11e9) == Memory(8e9, 3e9)
    assert Memory.through(8e9, 8.2e9) == Memory(8e9, 1e9), "an eighth of the first at least"
    assert [Memory(5.0, 3.0).peak(n) for n in (1, 2, 6)] == [5, 8, 20]
    # 24 images a process, a GPU of 40 GB of which 36 are planned with: 12 fit with 35, 24 would take 71.
    assert budget.images_in_a_pass(24, Memory(2e9, 3e9), 40e9) == 12
    assert budget.images_in_a_pass(24, Memory(2e9, 3e9), 38e9) == 8
    assert budget.images_in_a_pass(10, Memory(2e9, 3e9), 40e9) == 10


def test_a_pool_of_bn_is_kept_by_passes_of_other_sizes():
    cfg = config(**{"SOLVER.IMS_PER_BATCH": 24})
    assert [budget.images_of_pool(cfg, n, 12) for n in (1, 2, 3, 4, 6, 12)] == [12, 6, 4, 3, 2, 1]
    with pytest.raises(KitError, match="GPUS x NODES may be 1, 2, 3, 4, 6, 12;"):
        budget.images_of_pool(cfg, 8, 12)
    assert [budget.bn_images(cfg, 3, n) for n in (2, 5)] == [6, 15]
    own = config(**{"SOLVER.IMS_PER_BATCH": 24, "MODEL.RESNETS.NORM": "BN"})
    assert [budget.images_of_pool(own, n, 4) for n in (1, 2, 3, 6)] == [4] * 4
    with pytest.raises(KitError, match="GPUS x NODES may be 1, 2, 3, 6;"):
        budget.images_of_pool(own, 4, 4)  # whose six images do not divide into passes of four
    assert budget.bn_images(own, 3, 5) == 5
    assert (budget.per_process(cfg, 8), budget.divisors(24)) == (3, [1, 2, 3, 4, 6, 8, 12, 24])


def test_a_plan_counts_its_passes_and_the_images_under_bn(places):
    cfg = config(**{"SOLVER.IMS_PER_BATCH": 24, **ODD})
    plan = FinetunePlan(
        "byol", cfg, model.plain(cfg), config(), processes=2, images=4, precision="tf32", seconds=0.4
    )
    assert (plan.iterations, plan.batch, plan.passes, plan.bn_images) == (1000, 24, 3, 8)
    first, second, *_ = plan.lines()
    assert first.startswith(
        "24 images an iteration = 2 x 4 x 3 passes, tf32; BN over 8, where the recipe has 24"
    )
    assert second == "1000 iterations, learning rate 0.02, warm-up 55, steps at 333, 777"
    (time,) = [line for line in plan.lines() if line.startswith("0.4 s an iteration")]
    assert "compressed to 0.6%" in " ".join(plan.lines())
    assert f"{budget.lasts(0.4, cfg) / 60:.0f} min" in time


C4 = CONFIGS / "coco_r50_c4_2x_moco.yaml"


@pytest.mark.parametrize(("gpus", "factor"), [(2, 4.0), (8, 1.0), (16, 0.5)])
def test_published_seconds_are_those_of_eight_gpus(places, gpus, factor):
    plan = preview.preview("byol", C4, FinetuneOptions(), preview.Hardware(gpus=gpus))
    assert plan.seconds == pytest.approx(factor * curves.published().speed["c4"].seconds)
    assert (plan.processes, plan.images) == (gpus, 16 // gpus)


def test_hours_of_few_gpus_train_less(places):
    def iterations(gpus, hours):
        options = FinetuneOptions(hours=hours)
        return preview.preview("byol", C4, options, preview.Hardware(gpus=gpus)).iterations

    two, four = iterations(2, 6), iterations(4, 6)
    precise = config().TEST.PRECISE_BN.NUM_ITER / 3
    assert (four + precise) / (two + precise) == pytest.approx(2, rel=1e-3)
    assert (iterations(4, 3) + precise) / (two + precise) == pytest.approx(1, rel=1e-3)


def test_an_iteration_is_timed_over_those_that_count(monkeypatch):
    """The clock is read after the third and the fifteenth of fifteen."""
    steps = SimpleNamespace(stopping=False, done=0)
    read, shown = [], []
    monkeypatch.setattr(calibration, "_batches", lambda *_: (x for x in ()))
    monkeypatch.setattr(calibration, "_stepper", lambda *_: steps)
    monkeypatch.setattr(
        calibration, "_synchronized_time", lambda _: read.append(steps.done) or 7.0 * steps.done
    )

    def run_step():
        steps.done += 1

    steps.run_step = run_step
    bar = SimpleNamespace(step=lambda: shown.append(steps.done))
    found = calibration._time_iteration(None, ALONE, "float32", 1, Stop(), bar)
    assert (found, read, shown[-1]) == (7.0, [3, 15], 15)
    assert (calibration.WARM, calibration.TIMED) == (3, 12)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of which no tensor has the default's values."""
    torch.manual_seed(0)
    networks = Networks(50, 8, 8, 8)
    for name, value in networks.online.backbone.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_()
        elif value.is_floating_point() and value.ndim == 1:
            value.uniform_(0.6, 1.4)
    path = tmp_path_factory.mktemp("weights") / "checkpoint.pth"
    checkpoint.save(path, networks, None, 1, 1)
    return path


@pytest.fixture(scope="module")
def loaded(weights):
    """A model of the demo with these weights in it, and the plain backbone."""
    backbone = read_backbone(weights)
    detector = model.build(model.load_config(DEMO))
    path = weights.with_name("w.pkl")
    detectron2_format.write(path, backbone.state)
    assert proof.load_and_check(detector, path) == 318
    return detector, backbone, path


@pytest.mark.parametrize("difference", [math.nan, 1.01e-4])
def test_features_that_differ_or_are_no_number_prove_nothing(
    places, weights, monkeypatch, difference, capsys
):
    monkeypatch.setattr(proof, "feature_difference", lambda *_: difference)
    monkeypatch.setattr(proof, "load_and_check", lambda *_: 318)
    monkeypatch.setattr(convert.detection, "build", lambda _: None)
    command = ["convert", "--run", "method", "--config", str(DEMO), "--weights", str(weights)]
    assert cli.main(command) == 2
    assert "features differ by" in capsys.readouterr().err
    folder = paths.stage_folder("method", "convert")
    assert not (folder / "detectron2.pkl").exists()
    assert records.read(folder) is None
    monkeypatch.setattr(proof, "feature_difference", lambda *_: 0.99e-4)
    assert cli.main(command) == 0
    assert records.require("method", "convert").results["feature_difference"] == 0.99e-4


@pytest.mark.parametrize(
    "name",
    [
        "backbone.stem.conv1.weight",
        "backbone.res2.0.shortcut.norm.bias",
        "backbone.res4.5.conv3.norm.running_var",
        "roi_heads.res5.2.conv2.weight",
    ],
)
def test_one_value_of_one_tensor_that_does_not_arrive_is_seen(loaded, monkeypatch, name):
    detector, _, path = loaded
    load = DetectionCheckpointer.load

    def spoil(self, *arguments, **more):
        result = load(self, *arguments, **more)
        self.model.state_dict()[name].view(-1)[-1] += 1e-6
        return result

    monkeypatch.setattr(DetectionCheckpointer, "load", spoil)
    with pytest.raises(KitError, match=f"was not loaded into {name}: the values differ"):
        proof.load_and_check(detector, path)
    monkeypatch.undo()
    assert proof.load_and_check(detector, path) == 318


@torch.no_grad()
def test_what_a_detector_does_differently_shows_in_its_features(loaded):
    """Mean, deviation, colour order, and any layer of either part."""
    detector, backbone, _ = loaded
    mean = detector.backbone.stem.conv1.norm.running_mean.clone()
    detector.train()
    assert proof.feature_difference(detector, backbone, "RGB") < 1e-4
    assert detector.training
    assert proof.feature_difference(detector, backbone, "BGR") > 1e-2
    assert torch.equal(detector.backbone.stem.conv1.norm.running_mean, mean)
    for tensor, change in (
        (detector.pixel_mean, 0.05),
        (detector.pixel_std, 0.05),
        (detector.backbone.res3[1].conv2.weight, 0.05),
        (detector.roi_heads.res5[0].conv1.weight, 0.05),
        (detector.roi_heads.res5[2].conv3.weight, 0.05),
    ):
        before = tensor.detach().clone()
        tensor *= 1 + change
        assert proof.feature_difference(detector, backbone, "RGB") > 1e-3
        tensor.copy_(before)
    assert proof.feature_difference(detector, backbone, "RGB") < 1e-4


@torch.no_grad()
def test_a_difference_is_the_largest_and_relative(weights):
    """Features a thousand times as large differ no more; those of one channel of 256 as much as all."""
    backbone = read_backbone(weights)
    for part in ("weight", "bias"):
        backbone.state[f"layer4.2.bn3.{part}"] *= 1000
    detector = model.build(model.load_config(DEMO))
    path = weights.with_name("large.pkl")
    detectron2_format.write(path, backbone.state)
    proof.load_and_check(detector, path)
    assert proof.feature_difference(detector, backbone, "RGB") < 1e-4
    detector.roi_heads.res5[2].conv3.norm.bias[7] += 1e7
    assert 0.1 < proof.feature_difference(detector, backbone, "RGB") < 10


@pytest.mark.parametrize("key", ["width", "stride_in_1x1", "format", "pixel_mean", "pixel_std"])
def test_each_part_of_the_pixels_path_is_compared(key):
    cfg = model.load_config(DEMO)
    path = proof.pixel_path(cfg)
    assert path == {
        "width": 8,
        "stride_in_1x1": False,
        "format": "RGB",
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
    }
    proof.check_pixel_path(cfg, SimpleNamespace(config=path))
    other = {
        "width": 64,
        "stride_in_1x1": True,
        "format": "BGR",
        "pixel_mean": [1.0] * 3,
        "pixel_std": [1.0] * 3,
    }
    with pytest.raises(KitError, match=f"the weights were proved with {key} "):
        proof.check_pixel_path(cfg, SimpleNamespace(config=path | {key: other[key]}))


@pytest.mark.parametrize("method", ["triplet", "byol", "random"])
def test_a_band_is_wider_than_the_noise_of_a_run(method):
    found = curves.expected(method, "c4", curves.FULL)
    for band in (found.box, found.mask):
        assert band.low <= band.mid - curves.NOISE + 1e-9
        assert band.high >= band.mid + curves.NOISE - 1e-9
    assert str(curves.Band(1.04, 2.06, 3.18)) == "2.1 (1.0 to 3.2)"
