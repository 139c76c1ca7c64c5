"""BYOL's training step as implemented by lightly and solo-learn, if they are installed.

Neither is a dependency of the kit. Each step uses the library's own parts (heads, loss, LARS, EMA) around
the kit's backbone, in the order of its training code, without its logging and linear probe. BYOL's loss
takes the place of the triplet loss. The libraries train at 224 pixels; here they get the same resized views
as the other contestants, so that ratios compare code and not resolutions. On a GPU both run in float16 with
a scaled loss (``precision: 16-mixed`` in their configs).

The newest solo-learn on PyPI, 1.0.2, requires torch 1.9.1 and cannot be installed beside the kit's torch.
Version 1.0.6, published only on GitHub, can (tried with torch 2.11 and lightning 2.1.2).
"""

import copy
import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.reference import SCALE
from triplet.models.resnet import ResNet
from triplet.pretrain.config import Pretrain
from triplet.pretrain.methods.triplet import resize
from triplet.pretrain.views import InputResolutions

INSTALL = {
    "lightly": "pip install lightly",
    "solo-learn": "pip install git+https://github.com/vturrisi/solo-learn",
}


class _Byol:
    """Base class of both contestants; a subclass builds the parts and defines the loss and the EMA."""

    name: str
    wants: str
    cudnn_benchmark = False
    channels_last = False
    parts: Any
    optimizer: torch.optim.Optimizer

    def __init__(self, config: Pretrain, device: torch.device) -> None:
        self.config, self.device, self.mixed = config, device, device.type == "cuda"
        backbone = ResNet(config.model.depth, config.model.width)
        self.networks, self.channels = nn.ModuleDict({"backbone": backbone}), backbone.channels
        self.build()
        self.networks.train().to(device)
        if self.channels_last:
            self.networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.scaler = torch.amp.GradScaler(device.type, SCALE, enabled=self.mixed)
        self.optimizer = self.make_optimizer()

    def build(self) -> None:
        """Build the modules besides the backbone, on the CPU."""
        raise NotImplementedError

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return LARS over the trained parameters."""
        raise NotImplementedError

    def loss(self, predictions: list[Tensor], targets: list[Tensor]) -> Tensor:
        """Return the loss for the (n, d) predictions and targets of both views."""
        raise NotImplementedError

    def ema(self) -> None:
        """Update the target network."""
        raise NotImplementedError

    def encode(self, backbone: str, projector: str, images: Tensor) -> Tensor:
        """Project (n, 3, h, w) images to (n, d) with the networks of these names."""
        if self.channels_last:
            images = images.to(memory_format=torch.channels_last)
        result: Tensor = self.networks[projector](self.networks[backbone](images).mean((2, 3)))
        return result

    def micro_batch(self, views: Tensor, sizes: InputResolutions) -> None:
        """Run forward and backward on (n, 2, 3, h, w) normalised float views in host memory."""
        images = views.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.float16, enabled=self.mixed):
            view_1, view_2 = images[:, 0], images[:, 1]
            with torch.no_grad():
                targets = [
                    self.encode("target_backbone", "target_projector", resize(view_1, sizes.target_1)),
                    self.encode("target_backbone", "target_projector", resize(view_2, sizes.target_2)),
                ]
            predictions = [
                self.networks["predictor"](self.encode("backbone", "projector", resize(view, side)))
                for view, side in ((view_1, sizes.online_1), (view_2, sizes.online_2))
            ]
            total = self.loss(predictions, targets)
        self.scaler.scale(total / self.config.optimizer.accumulate).backward()

    def update(self) -> None:
        """Run the optimiser and the EMA."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema()


class Lightly(_Byol):
    """The step of lightly's benchmarks/imagenet/resnet50/byol.py and main.py (its loader does not pin)."""

    name, wants = "lightly", "float32"

    def build(self) -> None:
        """See _Byol."""
        heads = importlib.import_module("lightly.models.modules")
        self.utils = importlib.import_module("lightly.models.utils")
        self.criterion = importlib.import_module("lightly.loss").NegativeCosineSimilarity()
        model, networks = self.config.model, self.networks
        networks["projector"] = heads.BYOLProjectionHead(self.channels, model.hidden, model.outputs)
        networks["predictor"] = heads.BYOLPredictionHead(model.outputs, model.hidden, model.outputs)
        for part in ("backbone", "projector"):
            networks[f"target_{part}"] = copy.deepcopy(networks[part]).requires_grad_(False)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """See _Byol."""
        trained = [self.networks[part] for part in ("backbone", "projector", "predictor")]
        decayed, others = self.utils.get_weight_decay_parameters(trained)
        settings = self.config.optimizer
        lars: Any = importlib.import_module("lightly.utils.lars")
        optimizer: torch.optim.Optimizer = lars.LARS(
            [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        return optimizer

    def loss(self, predictions: list[Tensor], targets: list[Tensor]) -> Tensor:
        """See _Byol."""
        one, two = (self.criterion(targets[i], predictions[1 - i]) for i in (0, 1))
        total: Tensor = 2 * one + 2 * two
        return total

    def ema(self) -> None:
        """See _Byol."""
        for part in ("backbone", "projector"):
            self.utils.update_momentum(self.networks[part], self.networks[f"target_{part}"], m=0.99)


class SoloLearn(_Byol):
    """The step of solo-learn's solo/methods/byol.py, solo/methods/base.py and main_pretrain.py."""

    name, wants, channels_last = "solo-learn", "pinned float32", True

    def build(self) -> None:
        """See _Byol."""
        self.momentum = importlib.import_module("solo.utils.momentum")
        self.criterion = importlib.import_module("solo.losses.byol").byol_loss_func
        self.updater = self.momentum.MomentumUpdater(base_tau=0.99)
        model, networks = self.config.model, self.networks

        def mlp(inputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(inputs, model.hidden),
                nn.BatchNorm1d(model.hidden),
                nn.ReLU(),
                nn.Linear(model.hidden, model.outputs),
            )

        networks["target_backbone"] = ResNet(model.depth, model.width)
        networks["projector"] = mlp(self.channels)
        networks["target_projector"] = mlp(self.channels)
        networks["predictor"] = mlp(model.outputs)
        for part in ("backbone", "projector"):
            self.momentum.initialize_momentum_params(networks[part], networks[f"target_{part}"])

    def make_optimizer(self) -> torch.optim.Optimizer:
        """See _Byol."""
        settings = self.config.optimizer
        trained = [self.networks[part] for part in ("backbone", "projector", "predictor")]
        lars: Any = importlib.import_module("solo.utils.lars")
        optimizer: torch.optim.Optimizer = lars.LARS(
            [{"params": each.parameters()} for each in trained],
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            eta=settings.eta,
            clip_lr=False,
            exclude_bias_n_norm=True,
        )
        return optimizer

    def loss(self, predictions: list[Tensor], targets: list[Tensor]) -> Tensor:
        """See _Byol."""
        one, two = (self.criterion(predictions[1 - i], targets[i]) for i in (0, 1))
        total: Tensor = one + two
        return total

    def ema(self) -> None:
        """See _Byol."""
        for part in ("backbone", "projector"):
            self.updater.update(self.networks[part], self.networks[f"target_{part}"])


def installed(config: Pretrain, device: torch.device) -> tuple[list[_Byol], list[str]]:
    """Return the steps that can be built here, and a line for each that cannot."""
    steps: list[_Byol] = []
    missing = []
    for kind in (Lightly, SoloLearn):
        try:
            with warnings.catch_warnings(action="ignore"):
                steps.append(kind(config, device))
        except (ImportError, AttributeError) as error:  # missing, or incompatible with this torch
            missing.append(f"{kind.name} is left out ({error}); to compare: {INSTALL[kind.name]}")
    return steps, missing
