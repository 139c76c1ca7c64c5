"""Optimiser steps in passes and processes, and how data goes on after a stop."""

import itertools
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.detection import data, loading, model, synthetic, trainer
from tests.conftest import KIT
from tests.support.processes import launch
from tests.support.toy_detector import Toy, toy_batches, toy_steps
from triplet.errors import KitError
from triplet.signals import Stop
from triplet.training.distributed import Processes

from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.mark.slow
def test_passes_and_processes_take_the_same_steps(tmp_path):
    whole, _ = toy_steps(ALONE, 8)
    for images in (1, 2, 4):
        for a, b in zip(whole, toy_steps(ALONE, images)[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    running = launch(2, tmp_path / "found", program=(Path(__file__).with_name("pair_of_steps.py"),))
    _, error = running.communicate()
    assert running.returncode == 0, error
    for rank in (0, 1):
        for a, b in zip(whole, torch.load(tmp_path / f"found.{rank}"), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_loss_scale_is_kept_in_a_checkpoint():
    made = []
    for _ in range(2):
        network = Toy()
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        made.append(trainer.GradAccumTrainer(network, toy_batches(8), optimizer, ALONE, 8, "float16"))
    first, second = made
    with EventStorage() as first.storage:
        first.iter = 0
        first.run_step()
    first.scaler.update(new_scale=1024.0)
    second.load_state_dict(first.state_dict())
    assert second.scaler.get_scale() == 1024.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(value):
    network = Toy()
    before = [p.clone() for p in network.parameters()]
    with torch.no_grad():
        before_two = network.two.weight.clone()
        network.two.bias.fill_(value)
    with pytest.raises(FloatingPointError, match="at iteration 0"):
        toy_steps(ALONE, 8, 1, network)
    assert torch.equal(network.one.weight, before[0])
    assert torch.equal(network.two.weight, before_two)


@pytest.fixture(scope="module")
def demo():
    return model.load_config(KIT / "configs/detection/demo.yaml", ["SOLVER.IMS_PER_BATCH=2"])


def test_bfloat16_follows_float32(demo):
    wider = {"STEM_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 16, "RES2_OUT_CHANNELS": 64}
    demo = demo.clone()
    demo.MODEL.RESNETS.update(wider)  # with more channels rounding averages out
    found = {}
    batch = synthetic.images(demo, 2, seed=0)
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        network = trainer.build(demo, ALONE, precision)
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        steps = trainer.GradAccumTrainer(network, iter([batch]), optimizer, ALONE, 2, precision)
        torch.manual_seed(1)
        with EventStorage() as steps.storage:
            steps.run_step()
        found[precision] = steps.latest
    assert found["float32"].keys() == {
        "loss_cls",
        "loss_box_reg",
        "loss_mask",
        "loss_rpn_cls",
        "loss_rpn_loc",
    }
    for name, value in found["float32"].items():
        # The RoI heads sample from proposals whose order rounding changes.
        tolerance = 0.02 if "rpn" in name else 0.3
        assert found["bfloat16"][name] == pytest.approx(value, rel=tolerance), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_boxes_reach_the_pooling_exactly(demo, precision, monkeypatch):
    """In bfloat16 they would be rounded to 8 bits; half of COCO's coordinates lie above 256 pixels."""
    network = trainer.build(demo, ALONE, precision)
    pooler = next(m for m in network.modules() if isinstance(m, ROIPooler))
    box = torch.tensor([[257.3, 301.1, 333.7, 411.9]])
    seen = []
    module = sys.modules["detectron2.layers.roi_align"]
    align = module.roi_align
    monkeypatch.setattr(
        module, "roi_align", lambda x, rois, *more: seen.append(rois) or align(x, rois, *more)
    )
    features = torch.randn(1, 4, 40, 40, dtype=trainer.PRECISIONS[precision] or torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        pooled = pooler([features], [Boxes(box)])
    assert torch.equal(seen[0][:, 1:], box)
    assert pooled.dtype == features.dtype
    exact = pooler([features.float()], [Boxes(box)])
    assert exact.dtype == torch.float32, "as without autocast"
    torch.testing.assert_close(pooled.float(), exact, rtol=1e-2, atol=1e-2)


def test_workers_are_as_many_as_the_user_says(drawn, demo):
    cfg = demo.clone()
    cfg.DATASETS.TRAIN = data.training(cfg, drawn)[0]
    for asked, given in ((4, min(4, len(os.sched_getaffinity(0)))), (0, 0), (7, 7)):
        cfg.DATALOADER.NUM_WORKERS = asked
        assert loading.loaders(cfg, ALONE) == given


@pytest.mark.parametrize(
    ("capability", "best"),
    [
        (None, "float32"),
        ((6, 1), "float32"),
        ((7, 5), "float16"),
        ((8, 0), "bfloat16"),
        ((9, 0), "bfloat16"),
    ],
)
def test_each_generation_of_gpus_has_its_precision(monkeypatch, capability, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert trainer.best_precision() == best


def test_the_layout_of_memory_changes_nothing(demo):
    """What a GPU trains in: channels last."""
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        network = trainer.build(demo, ALONE, "float32").to(memory_format=layout)
        torch.manual_seed(1)
        with EventStorage():
            losses = network(synthetic.images(demo, 2, seed=0))
        sum(losses.values()).backward()
        found.append((losses, network.backbone.stem.conv1.weight.grad))
    (plain, gradient), (last, other) = found
    for name, value in plain.items():
        torch.testing.assert_close(last[name], value, rtol=1e-3, atol=1e-4)
    assert torch.cosine_similarity(other.flatten(), gradient.flatten(), dim=0) > 0.999


def files(loader, count):
    made = iter(loader)
    return [sorted(image["file_name"] for image in next(made)) for _ in range(count)]


def test_a_resumed_run_goes_on_in_the_data(drawn, demo):
    cfg = demo.clone()
    cfg.DATASETS.TRAIN = data.training(cfg, drawn)[0]
    cfg.SEED = 5
    whole = files(loading.batches(cfg, ALONE, Stop()), 9)
    assert files(loading.batches(cfg, ALONE, Stop(), 4), 5) == whole[4:]
    shares = [
        files(loading.batches(cfg, Processes(rank, 2, torch.device("cpu")), Stop()), 4) for rank in (0, 1)
    ]
    for one, other in zip(*shares, strict=True):
        assert len(one) == len(other) == 1


def test_wide_and_high_images_stay_apart_after_a_resume_too():
    random = torch.Generator().manual_seed(0)
    wide = [bool(torch.rand((), generator=random) < 0.7) for _ in range(31)]
    order = [int(torch.randint(31, (), generator=random)) for _ in range(600)]
    images = [{"width": 2 + wide[n], "height": 2, "n": n} for n in order]
    theirs = [[image["n"] for image in batch] for batch in AspectRatioGroupedDataset(images, 4)]
    for start in (0, 1, 7, 100):
        flat = list(loading._Grouped(order, wide, 4, start))
        assert [flat[i : i + 4] for i in range(0, len(flat), 4)] == theirs[start:]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(drawn, demo, tmp_path, workers):
    folder = tmp_path / "damaged"
    shutil.copytree(drawn, folder)
    image = min((folder / "train2017").iterdir())
    image.write_bytes(image.read_bytes()[:300])
    cfg = demo.clone()
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.DATASETS.TRAIN = data.training(cfg, folder)[0]
    with pytest.raises(KitError, match="or its annotations cannot be read") as caught:
        for _ in itertools.islice(loading.batches(cfg, ALONE, Stop()), loading.data_size(cfg)):
            pass
    assert str(caught.value).startswith(str(image))
    assert "\n" not in str(caught.value)


def test_samplers_that_are_not_heeded_are_refused(drawn, demo):
    cfg = demo.clone()
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    with pytest.raises(KitError, match="only the defaults are supported"):
        loading.batches(cfg, ALONE, Stop())


@pytest.mark.parametrize("name", ["coco_r50_retinanet_1x_moco", "keypoint_r50_fpn_2x_moco"])
def test_synthetic_images_have_the_categories_of_each_detector(name):
    small = ["INPUT.MIN_SIZE_TRAIN=(64,)", "INPUT.MAX_SIZE_TRAIN=96", "MODEL.RESNETS.STEM_OUT_CHANNELS=8"]
    more = ["MODEL.RESNETS.RES2_OUT_CHANNELS=32", "MODEL.RESNETS.WIDTH_PER_GROUP=8"]
    cfg = model.load_config(KIT / f"configs/detection/{name}.yaml", [*small, *more])
    key, count = model.categories(cfg)
    classes = torch.cat([i["instances"].gt_classes for i in synthetic.images(cfg, 20, seed=0)])
    assert classes.max() < count
    with pytest.raises(KitError, match=f"the config expects {count}; add {key}=2"):
        data._check_count(cfg, Path("here"), ["a", "b"])
    with EventStorage():
        losses = trainer.build(cfg, ALONE, "float32")(synthetic.images(cfg, 1, seed=0))
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("largest", [False, True])
def test_synthetic_images_are_within_the_config(demo, largest):
    cfg = demo.clone()
    cfg.INPUT.MIN_SIZE_TRAIN = (96, 112)
    for image in synthetic.images(cfg, 3, seed=1, largest=largest):
        _, height, width = image["image"].shape
        assert (height, width) in ([(112, 160)] if largest else [(96, 128), (112, 149)])
        boxes = image["instances"].gt_boxes
        assert len(boxes) == synthetic.OBJECTS
        assert bool(boxes.inside_box((height, width)).all())
