"""Each baseline beside OpenSelfSup: tests/golden/baselines.npz holds its numbers,
scripts/golden_baselines.py made them. Settings come from the kit's own configs, but for what that script
changes as well.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import golden_baselines as script
from scripts.golden_baselines import BATCH, CASES, COUNTED, KEEP, STEPS, pixels, start
from scripts.golden_whole_model import MEASURES, fingerprint
from tests.support.convolution import by_one_product
from triplet.config import load
from triplet.defaults import recipe
from triplet.pretrain.config import Pretrain
from triplet.pretrain.layout import MicroBatch, Order
from triplet.pretrain.methods import npid
from triplet.pretrain.objective import Objective, backward
from triplet.pretrain.trainer import advance, make_optimizer
from triplet.training.distributed import Processes

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "baselines.npz")
TOLERANCE = 1e-9


def settings(name: str) -> Pretrain:
    config = load(recipe(name, "pretrain"), Pretrain)
    small = ["model.depth=18", f"loss.group={BATCH}", "optimizer.groups=1", "precision=float32"]
    small += [f"model.outputs={script.OUTPUTS}", f"schedule.epochs={script.EPOCHS}"]
    if config.model.hidden:
        small += [f"model.hidden={script.HIDDEN}"]
    if config.schedule.warmup_epochs:
        small += [f"schedule.warmup_epochs={script.WARMUP}"]
    if config.schedule.steps:
        small += [f"schedule.steps={list(script.DROPS)}"]
    small += [f"contrastive.queue={script.QUEUE}", f"contrastive.negatives={script.NEGATIVES}"]
    return load(recipe(name, "pretrain"), Pretrain, small)


class Run:
    """A training by our parts from their weights and batches."""

    def __init__(self, name: str, config: Pretrain) -> None:
        self.name, self.case, self.config = name, CASES[name], config
        self.order = Order(self.case.images, config)
        alone = Processes(0, 1, torch.device("cpu"))
        self.objective = Objective(config, self.case.images, alone).double().train()
        self.networks = self.objective.networks
        if name == "relative-loc":
            self.networks.dropout = 0.0
        self.optimizer = make_optimizer(self.networks, config)
        self.iteration = 0
        with torch.no_grad():
            for key, tensor in self.networks.state_dict().items():
                if not key.rpartition(".")[2].startswith(COUNTED):
                    tensor.copy_(torch.from_numpy(start(self.theirs(key), tuple(tensor.shape))))

    def theirs(self, name: str) -> str:
        """Our name of a tensor -> theirs."""
        prefix, ours = next((a, b) for a, b in self.case.names.items() if name.startswith(b))
        return prefix + name.removeprefix(ours)

    def golden(self, key: str) -> np.ndarray:
        return GOLDEN[f"{self.name}_{key}"]

    def step(self, number: int) -> dict[str, float]:
        """One optimiser step: the largest deviations of its losses and its learning rate."""
        worst = 0.0
        for _ in range(self.config.optimizer.accumulate):
            indices = self.golden("indices")[self.iteration].tolist()
            each = MicroBatch(self.iteration, tuple((0, index) for index in indices))
            images = torch.from_numpy(np.stack([pixels(self.name, index) for index in indices]))
            step = self.objective.begin(images, each)
            loss = backward(self.objective, step, self.config.optimizer.accumulate)[0]
            worst = max(worst, abs(loss.item() - self.golden("loss")[self.iteration]))
            self.iteration += 1
        rate, _ = advance(self.networks, self.optimizer, self.config, self.order, number)
        return {"loss": worst, "rate": abs(rate / self.golden("learning_rate")[number] - 1)}

    def tensors(self, number: int) -> dict[str, float]:
        """Deviation of each tensor, by our name, where theirs were kept after this step."""
        expected = dict(
            zip(self.golden("names").tolist(), self.golden("tensors")[KEEP.index(number + 1)], strict=True)
        )
        found = {
            key: fingerprint(value.numpy(force=True)) for key, value in self.networks.state_dict().items()
        }
        assert {self.theirs(key) for key in found} == expected.keys()
        worst = {}
        for key, value in found.items():
            off = np.abs(value - expected[self.theirs(key)])
            off[MEASURES.index("norm")] /= max(value[MEASURES.index("norm")], 1e-12)
            worst[key] = off.max().item()
        return worst


@pytest.fixture(autouse=True)
def _as_recorded(monkeypatch):
    """One thread, quick convolutions, and NPID's negatives as theirs were drawn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", by_one_product)
    monkeypatch.setattr(
        npid, "draw", lambda images, batch: torch.from_numpy(GOLDEN["npid_drawn"][batch.iteration])
    )
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_are_openselfsups(name):
    """In float64: losses, learning rates, every parameter, BN statistic, queue and memory."""
    run = Run(name, settings(name))
    for number in range(STEPS):
        worst = run.step(number)
        if number + 1 in KEEP:
            worst |= run.tensors(number)
        key = max(worst, key=worst.get)
        assert worst[key] < TOLERANCE, (number, key, worst[key])


@pytest.mark.parametrize(
    ("name", "section", "wrong"),
    [
        ("byol", "schedule", {"ema_base": 0.98}),
        ("simclr", "contrastive", {"temperature": 0.11}),
        ("moco", "contrastive", {"momentum": 0.99}),
        ("npid", "contrastive", {"momentum": 0.4}),
        ("relative-loc", "optimizer", {"head_weight_decay": None}),
        ("rotation-pred", "optimizer", {"weight_decay": 1e-3}),
    ],
)
def test_a_wrong_constant_is_seen(name, section, wrong):
    """In the first step already."""
    config = settings(name)
    part = getattr(config, section).model_copy(update=wrong)
    run = Run(name, config.model_copy(update={section: part}))
    assert max((run.step(0) | run.tensors(0)).values()) > 1e3 * TOLERANCE
