from pathlib import Path

import pytest
import torch

from tests.conftest import KIT
from triplet.config import load, parse
from triplet.defaults import recipe
from triplet.errors import KitError
from triplet.models.networks import Networks
from triplet.pretrain.config import Model, Pretrain, ResolutionRange
from triplet.pretrain.estimate import ROOM, _kept, estimate, fit
from triplet.pretrain.layout import MicroBatch, Order, make_layout
from triplet.pretrain.objective import Objective, backward
from triplet.training.distributed import Processes

CONFIGS = sorted((KIT / "configs" / "pretrain").glob("*.yaml"))
AUTHORS = KIT / "configs" / "pretrain" / "triplet_resnet50_8x196x4-larscos-1000e_imagenet.yaml"


def test_arithmetic_is_the_papers():
    """65.4 GFLOP at 224 px (recipe.md, section 3: convolutions only): 2 x (3 + 1) x 4.09 GMAC x 2."""
    fixed = {
        "online": ResolutionRange(smallest=224, largest=224),
        "target": ResolutionRange(smallest=224, largest=224),
    }
    config = load(AUTHORS, Pretrain)
    config = config.model_copy(update={"views": config.views.model_copy(update=fixed)})
    assert estimate(config, make_layout(config, 8)).flop / 1e9 == pytest.approx(65.4, rel=0.01)


def test_a_share_that_does_not_fit_is_cut():
    """One GPU of 80 GB holds 784 images of the authors' recipe at a time, eight hold theirs at once."""
    config = load(AUTHORS, Pretrain)
    assert fit(config, 8, 24 * 2**30) == config
    cut = fit(config, 1, 80 * 2**30)
    assert cut.images_per_gpu == 4 * 196
    assert estimate(cut, make_layout(cut, 1)).memory <= 80 * 2**30 * ROOM
    more = cut.model_copy(update={"images_per_gpu": 8 * 196})
    assert estimate(more, make_layout(more, 1)).memory > 80 * 2**30 * ROOM
    own = config.model_copy(update={"images_per_gpu": 196})
    assert fit(own, 1, 1.0) == own, "what the user sets is left alone"
    with pytest.raises(
        KitError, match=r"196 images, a negative group, need about \d+ GiB, a GPU here has 8"
    ):
        fit(config, 8, 8 * 2**30)


def test_advice_on_memory_can_be_followed():
    simclr = load(recipe("simclr", "pretrain"), Pretrain, ["precision=float32"])
    assert fit(simclr, 8, 80 * 2**30) == simclr
    with pytest.raises(KitError, match="256 images, which simclr looks at at once") as refused:
        fit(simclr, 1, 8 * 2**30)
    assert str(refused.value).endswith("take more GPUs, or precision=bfloat16, or a larger GPU")
    half = load(recipe("simclr", "pretrain"), Pretrain)
    with pytest.raises(KitError, match=r"^32 images, .*has 1; take a larger GPU$"):
        fit(half, 8, 2**30)
    small = load(AUTHORS.with_name(AUTHORS.name.replace("196x4", "104x6")), Pretrain)
    with pytest.raises(KitError, match=r"^104 images, a negative group, .*; take a larger GPU$"):
        fit(small, 8, 2**30)
    byol = load(recipe("byol", "pretrain"), Pretrain)
    with pytest.raises(
        KitError, match=r"images, a group, need .* a smaller loss.group with more optimizer"
    ):
        fit(byol, 8, 2**30)


def test_drawn_resolutions_are_averaged():
    """The recipe's 36.7 takes cost for proportional to the area; rounding up at odd sides adds to it."""
    config = load(AUTHORS, Pretrain)
    thinned = estimate(config, make_layout(config, 8)).flop / 1e9
    assert 36.7 < thinned < 36.7 * 1.1
    few = Pretrain(
        model=Model(depth=18, width=8, hidden=16, outputs=8),
        views=config.views.model_copy(
            update={k: ResolutionRange(smallest=64, largest=96, step=8) for k in ("online", "target")}
        ),
        loss=config.loss,
        optimizer=config.optimizer,
        schedule=config.schedule,
    )
    each = [
        estimate(
            few.model_copy(
                update={
                    "views": few.views.model_copy(
                        update={k: ResolutionRange(smallest=s, largest=s) for k in ("online", "target")}
                    )
                }
            ),
            make_layout(few, 8),
        ).flop
        for s in range(64, 97, 8)
    ]
    assert estimate(few, make_layout(few, 8)).flop == pytest.approx(sum(each) / 5)


def test_memory_is_what_a_real_backward_holds():
    """Against the storages that a forward pass on the CPU really keeps alive for its backward."""
    model = Model(depth=18, width=16, hidden=64, outputs=32)
    networks, kept = Networks(**model.model_dump()), {}
    weights = {p.data_ptr() for p in networks.parameters()}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images = torch.rand(8, 3, 96, 96)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = networks.predictor(networks.online(images))
    assert output.requires_grad
    assert _kept(model, 96, "float32") == pytest.approx(sum(kept.values()) / 8, rel=0.01)
    pooling = 16 * 24 * 24 * 8  # its int64 indices
    half, full = (_kept(model, 96, precision) - pooling for precision in ("bfloat16", "float32"))
    assert half * 2 == pytest.approx(full, rel=0.01)


class Kept:
    """A tensor kept for a backward pass; the bytes that are kept at a time, and the most of them."""

    now = most = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Kept.now += tensor.nbytes
        Kept.most = max(Kept.most, Kept.now)

    def __del__(self):
        Kept.now -= self.tensor.nbytes


@pytest.mark.parametrize("method", ["triplet", "byol"])
def test_a_step_keeps_the_tensors_of_one_term_of_the_loss(method):
    """At most 0.55 of what a backward pass of the whole loss keeps."""
    config = parse(
        {
            "method": method,
            "model": {"depth": 18, "width": 8, "hidden": 32, "outputs": 16},
            "views": {
                "size": 64,
                "online": {"smallest": 64, "largest": 64},
                "target": {"smallest": 64, "largest": 64},
            },
            "loss": {"group": 12},
            "optimizer": {"learning_rate": 0.1, "groups": 1, "accumulate": 1},
            "schedule": {"epochs": 1, "warmup_epochs": 0},
        },
        Pretrain,
        "test",
    )
    objective = Objective(config, 12, Processes(0, 1, torch.device("cpu"))).train()
    pixels, each = torch.zeros(12, 2, 3, 64, 64, dtype=torch.uint8), MicroBatch(0, ())
    most = {}
    for way in ("whole", "a term at a time"):
        Kept.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            step = objective.begin(pixels, each)
            if way == "whole":
                (objective(step) + objective(step)).backward()
            else:
                backward(objective, step)
        most[way] = Kept.most
        assert Kept.now == 0
    assert 0 < most["a term at a time"] <= 0.55 * most["whole"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_can_be_costed(path):
    config = load(path, Pretrain)
    processes = 1 if config.optimizer.groups == 1 else 8
    cost = estimate(config, make_layout(config, processes))
    assert cost.flop > 0
    assert 2**20 < cost.memory < 80 * 2**30
    assert "GFLOP an image" in cost.describe()


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if "8x" in path.stem], ids=lambda path: path.stem
)
def test_names_encode_the_run(path):
    config = load(path, Pretrain)
    group, accumulate = config.loss.group, config.optimizer.accumulate
    fast = "-fast" if config.compile else ""
    data = path.stem.rpartition("_")[2]
    row = path.stem.partition("_")[0]
    assert config.method == row.removesuffix("-v2")
    images = f"8x{group}x{accumulate}" if accumulate > 1 else f"8x{group}"
    how = config.optimizer.name + ("step" if config.schedule.steps else "cos")
    name = f"{row}_resnet50_{images}-{how}-{config.schedule.epochs}e{fast}_{data}"
    assert path.stem == name
    assert config.optimizer.groups == 8


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "warmup"),
    [
        ("8x196x4-larscos-1000e_imagenet", 6272, 1000, 10),
        ("8x104x6-larscos-1000e_imagenet", 4992, 1000, 10),
        ("8x196x4-larscos-200e_imagenet", 6272, 200, 10),
        ("4x196x8-larscos-10e_sysu30k", 6272, 10, 2),
    ],
)
def test_the_authors_constants(name, batch, epochs, warmup):
    config = load(Path(f"{KIT}/configs/pretrain/triplet_resnet50_{name}.yaml"), Pretrain)
    assert config.batch == batch
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (epochs, warmup)
    assert (config.schedule.warmup_ratio, config.schedule.ema_base) == (1e-4, 0.99)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.momentum) == (4.8, 0.9)
    assert (optimizer.weight_decay, optimizer.eta) == (1e-6, 0.001)
    assert (config.loss.gamma, config.loss.margin, config.loss.nearest, config.loss.skip) == (2, 100, 10, 1)
    assert config.model.model_dump() == {"depth": 50, "width": 64, "hidden": 4096, "outputs": 256}
    views = config.views
    assert views.blur == (1.0, 0.1)
    assert views.solarize == (0.0, 0.2)
    assert (views.online.smallest, views.online.largest, views.online.step) == (96, 224, 1)
    assert (views.target.smallest, views.target.largest, views.target.step) == (128, 224, 1)


def test_the_log_tells_the_size_of_the_run():
    config = load(AUTHORS, Pretrain)
    assert Order(1281167, config).describe() == (
        "1000 epochs of 1281167 images = 817000 iterations = 204250 optimiser steps"
    )
