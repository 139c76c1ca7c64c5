"""The kit's C4 head beside Detectron2's own: the same training, in an order that suits a GPU."""

import copy
import json
from types import MethodType

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.detection import evaluate, head, model, synthetic, trainer
from tests.conftest import KIT
from triplet.progress import Bar
from triplet.scores import NUMBERS, CocoGroundTruth
from triplet.signals import Stop

from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.solver import build_optimizer
from detectron2.structures import PolygonMasks
from detectron2.utils.events import EventStorage

STEPS = 20
TINY = ["INPUT.MIN_SIZE_TRAIN=(64,)", "INPUT.MAX_SIZE_TRAIN=80", "MODEL.RPN.POST_NMS_TOPK_TRAIN=60"]
TINY += ["MODEL.RESNETS.STEM_OUT_CHANNELS=8", "MODEL.RESNETS.WIDTH_PER_GROUP=8"]
TINY += ["MODEL.RESNETS.RES2_OUT_CHANNELS=32", "MODEL.ROI_MASK_HEAD.CONV_DIM=16", "SOLVER.BASE_LR=0.01"]


@pytest.fixture(scope="module")
def start():
    """A config and its model."""
    cfg = model.load_config(KIT / "configs/detection/demo.yaml", TINY)
    torch.manual_seed(0)
    return cfg, model.build(cfg).train()


def train(start, change):
    """Losses and number of RoIs of each step after a change of the model, and the model."""
    cfg, network = start[0], copy.deepcopy(start[1])
    change(network)
    optimizer = build_optimizer(cfg, network)
    losses, rois = [], []
    network.roi_heads.pooler.register_forward_hook(lambda *given: rois.append(len(given[-1])))
    with EventStorage():
        for step in range(STEPS):
            torch.manual_seed(step)  # the heads sample from their proposals
            network.roi_heads.batch_size_per_image = 20 + step
            found = network(synthetic.images(cfg, 1, seed=step % 4))
            optimizer.zero_grad()
            sum(found.values()).backward()
            optimizer.step()
            losses.append({name: value.item() for name, value in found.items()})
    return losses, rois, network


def stock(network):
    for name in ("forward", "_shared_roi_transform"):
        setattr(network.roi_heads, name, MethodType(getattr(Res5ROIHeads, name), network.roi_heads))


@pytest.fixture(scope="module")
def expected(start):
    return train(start, stock)


def detected(start, network):
    """What a network finds in four images, and these as COCO lists them."""
    cfg, images = start[0], []
    for number in range(4):
        (image,) = synthetic.images(cfg, 1, seed=number)
        height, width = image["image"].shape[1:]
        images.append({**image, "image_id": number, "height": height, "width": width})
    network.roi_heads.box_predictor.test_score_thresh = 0.0
    with Bar("eval", len(images), quiet=True) as bar:
        found = evaluate._detect(network.eval(), images, None, bar, Stop())
    listed = [
        {"id": i, "width": each["width"], "height": each["height"], "file_name": f"{i}.png"}
        for i, each in enumerate(images)
    ]
    return found, listed


def truth_of(start, found, images, path):
    """Ground truth in which every seventh detection is right, so that no number is of nothing."""
    content = {"images": images, "annotations": []}
    content["categories"] = [{"id": c, "name": str(c)} for c in range(model.categories(start[0])[1])]
    for number, each in enumerate(found[::7], 1):
        x, y, w, h = each["bbox"]
        outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        content["annotations"].append(
            {"id": number, "image_id": each["image_id"], "category_id": each["category_id"]}
            | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": outline}
        )
    path.write_text(json.dumps(content))
    return CocoGroundTruth(path)


def test_twenty_steps_are_those_of_detectron2s_head(start, expected, tmp_path):
    losses, _, network = train(start, lambda network: None)
    assert losses == expected[0]
    for name, value in expected[2].state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    theirs, images = detected(start, expected[2])
    ours, _ = detected(start, network)
    truth = truth_of(start, theirs, images, tmp_path / "truth.json")
    for task in ("bbox", "segm"):
        numbers = truth.score(ours, task).numbers
        assert numbers == truth.score(theirs, task).numbers
        assert len(numbers) == len(NUMBERS["bbox"]) == 12
        assert task == "segm" or numbers["AP"] > 0


@pytest.mark.parametrize("objects", [(True, True), (True, False), (False, False)])
def test_losses_of_several_images_are_those_of_detectron2s_head(start, objects):
    """Some of which may show no object."""
    cfg, found = start[0], []
    for change in (stock, lambda network: None):
        network = copy.deepcopy(start[1])
        change(network)
        images = synthetic.images(cfg, 2, seed=3)
        for image, some in zip(images, objects, strict=True):
            image["instances"] = image["instances"] if some else image["instances"][:0]
        torch.manual_seed(0)
        with EventStorage():
            losses = network(images)
        sum(losses.values()).backward()
        gradient = network.roi_heads.res5[0].conv1.weight.grad
        found.append(({name: value.item() for name, value in losses.items()}, gradient))
    (theirs, expected), (ours, gradient) = found
    assert ours == theirs
    assert torch.equal(gradient, expected)


def test_without_masks_it_is_detectron2s_head(start):
    cfg = model.load_config(KIT / "configs/detection/demo.yaml", [*TINY, "MODEL.MASK_ON=False"])
    with EventStorage():
        losses = model.build(cfg).train()(synthetic.images(cfg, 1, seed=0))
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}


@pytest.mark.slow
def test_compiled_too_by_one_graph_for_any_number_of_rois(start, expected):
    torch._dynamo.reset()
    counters.clear()
    losses, rois, _ = train(start, lambda network: trainer.compile_res5(network, backend="aot_eager"))
    assert len({*rois}) == STEPS
    assert counters["stats"]["unique_graphs"] == 1
    for ours, theirs in zip(losses, expected[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_masks_are_rasterised_before_the_first_wait_for_res5(start, monkeypatch):
    """On a GPU the box losses wait for it; the boxes that the masks need are fetched before res5 begins."""
    cfg, network = start[0], copy.deepcopy(start[1])
    events = []

    def watch(owner, name):
        called = getattr(owner, name)

        def noted(*given, **named):
            events.append(name)
            return called(*given, **named)

        monkeypatch.setattr(owner, name, noted)

    watch(head, "_fetch_boxes")
    watch(network.roi_heads.res5, "forward")
    watch(PolygonMasks, "crop_and_resize")
    watch(network.roi_heads.box_predictor, "losses")
    with EventStorage():
        network(synthetic.images(cfg, 2, seed=0))
    assert events == [*["_fetch_boxes"] * 2, "forward", *["crop_and_resize"] * 2, "losses"]


def test_a_mask_head_of_another_size_gets_its_own_masks():
    outline = torch.tensor([0.0, 0, 8, 0, 8, 8, 0, 8]).numpy()
    polygons, boxes = PolygonMasks([[outline]]), torch.tensor([[0.0, 0, 16, 16]])
    targets = head.MaskTargets(polygons, boxes, 14)
    assert len(targets) == 1
    for side in (14, 28):
        assert torch.equal(targets.crop_and_resize(boxes, side), polygons.crop_and_resize(boxes, side))


@pytest.mark.gpu
def test_on_a_gpu_the_losses_are_those_of_detectron2s_head(start):
    """Compiled by inductor, in float32 without TF32."""
    cfg, network = start[0], copy.deepcopy(start[1]).cuda()
    model.allow_tf32(False)
    found = []
    for change in (stock, trainer.compile_res5):
        changed = copy.deepcopy(network)
        change(changed)
        torch.manual_seed(0)
        with EventStorage():
            found.append({k: v.item() for k, v in changed(synthetic.images(cfg, 2, seed=0)).items()})
    assert found[1] == pytest.approx(found[0], rel=1e-5)
