"""The released code's way of computing the method, to measure the kit against.

It is rewritten from wanggrun/triplet (commit c1bbaa9), operation by operation where these cost time; each
docstring names the file that it follows. Tests prove that it computes the same as the kit. Equal parts are
shared: the modules are the kit's, and random sizes are arguments, so that both can get the same ones.
"""

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from triplet.images import Images
from triplet.models.networks import Networks
from triplet.pretrain.config import Pretrain, Views
from triplet.pretrain.views import InputResolutions


def head(prediction: Tensor, target: Tensor, gamma: float = 2.0, margin: float = 100.0) -> Tensor:
    """openselfsup/models/heads/triplet_loss_head.py, after the predictor: a loop over the rows.

    Args:
        prediction: (n, d), n > 10.
        target: (n, d).
        gamma: weight of the positive.
        margin: of the hinge.
    """
    p, z = F.normalize(prediction, dim=1), F.normalize(target, dim=1)
    n = len(p)
    distance = -2.0 * torch.matmul(p, z.t())
    index = torch.arange(n)  # on the CPU, wherever the distances are
    itself = index.expand(n, n).eq(index.expand(n, n).t())
    positive, deputy = [], []
    for i in range(n):
        positive.append(distance[i][itself[i]].max().unsqueeze(0))
        nearest, _ = torch.topk(distance[i][~itself[i]], 10, dim=-1, largest=False)
        deputy.append(nearest[1:].mean().unsqueeze(0))
    negatives, positives = torch.cat(deputy), torch.cat(positive)
    return F.margin_ranking_loss(negatives, gamma * positives, torch.ones_like(negatives), margin=margin)


class ReleasedLARS(Optimizer):
    """openselfsup/utils/optimizers.py: a loop over the tensors, two waits for the device in each.

    Args:
        params: groups; one may carry ``lars_exclude``.
        lr: learning rate.
        momentum: of the buffer.
        weight_decay: L2 penalty.
        eta: trust coefficient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eta=eta))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            decay = group["weight_decay"]
            for w in group["params"]:
                if w.grad is None:
                    continue
                ratio = 1.0
                if not group.get("lars_exclude", False):
                    norm, grad_norm = torch.norm(w).item(), torch.norm(w.grad).item()
                    ratio = group["eta"] * norm / (grad_norm + decay * norm)
                update = w.grad.add(w, alpha=decay).mul(ratio * group["lr"])
                state = self.state[w]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = update.clone()
                else:
                    state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                w.add_(-state["momentum_buffer"])


def make_optimizer(networks: Networks, config: Pretrain) -> ReleasedLARS:
    """openselfsup/apis/train.py, build_optimizer: a group for each tensor, the frozen ones included."""
    groups = []
    for name, parameter in networks.named_parameters():
        group: dict[str, Any] = {"params": [parameter]}
        if parameter.requires_grad and re.search(r"(bn|gn)(\d+)?.(weight|bias)|bias", name):
            group.update(weight_decay=0.0, lars_exclude=True)
        groups.append(group)
    settings = config.optimizer
    return ReleasedLARS(
        groups, settings.learning_rate, settings.momentum, settings.weight_decay, settings.eta
    )


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """openselfsup/models/triplet.py, momentum_update: a loop over the tensors, each made anew."""
    for mine, theirs in zip(target.parameters(), online.parameters(), strict=True):
        mine.data = mine.data * momentum + theirs.data * (1.0 - momentum)


SCALE = 1024.0
"""Loss scale in float16. apex and torch start at 65536 and find this by skipping updates, which here would
be updates that take no time."""


class ReleasedStep:
    """openselfsup/models/triplet.py, hooks/optimizer_hook.py and hooks/triplet_hook.py.

    On the CPU float32. On a GPU their run is apex O1: here float16 autocast and a scaled loss, torch's own
    form of it (apex also unscales after every backward pass; this does once an update, which is a little
    faster). Images are NCHW, cudnn.benchmark is on as their configs/base.py sets it, and the loss is read
    after every pass for the log.
    """

    name = "released"
    wants = "float32"  # not pinned: openselfsup/datasets/loader/build_loader.py
    cudnn_benchmark = True

    def __init__(self, config: Pretrain, device: torch.device) -> None:
        self.config, self.device, self.mixed = config, device, device.type == "cuda"
        self.networks = Networks(**config.model.model_dump()).train().to(device)
        self.optimizer = make_optimizer(self.networks, config)
        self.scaler = torch.amp.GradScaler(device.type, SCALE, enabled=self.mixed)

    def micro_batch(self, views: Tensor, sizes: InputResolutions) -> float:
        """Forward and backward of (n, 2, 3, h, w) normalised float views that lie on the host; the loss."""
        networks = self.networks
        images = views.to(self.device)
        with torch.autocast(self.device.type, torch.float16, enabled=self.mixed):
            view_1, view_2 = images[:, 0].contiguous(), images[:, 1].contiguous()
            online_1 = networks.online(_resize(view_1, sizes.online_1))
            online_2 = networks.online(_resize(view_2, sizes.online_2))
            with torch.no_grad():
                target_2 = networks.target(_resize(view_2, sizes.target_2)).clone().detach()
                target_1 = networks.target(_resize(view_1, sizes.target_1)).clone().detach()
            total = head(networks.predictor(online_1), target_2)
            total = total + head(networks.predictor(online_2), target_1)
        logged = total.item()  # apis/train.py, parse_losses
        self.scaler.scale(total / self.config.optimizer.accumulate).backward()
        return logged

    def update(self) -> None:
        """Optimiser, then EMA. Gradients are set to zero, as torch did by default before 2.0."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=False)
        ema_update(self.networks.target, self.networks.online, self.config.schedule.ema_base)


def _resize(view: Tensor, side: int) -> Tensor:
    return F.interpolate(view, size=[side, side], mode="bilinear")


class Blur:
    """openselfsup/datasets/pipelines/transforms.py, GaussianBlur: by PIL, radius from numpy's generator."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=np.random.uniform(self.low, self.high)))


class Solarize:
    """openselfsup/datasets/pipelines/transforms.py, Solarization: in numpy's wider integers and back."""

    def __call__(self, image: Image.Image) -> Image.Image:
        pixels = np.array(image)
        return Image.fromarray(np.where(pixels < 128, pixels, 255 - pixels).astype(np.uint8))


def pipeline(config: Views, view: int) -> transforms.Compose:
    """train_pipeline of configs/selfsup/triplet/*.py: an RGB image of PIL to normalised float32 pixels.

    Args:
        config: of the views; its defaults are the released numbers.
        view: 0 or 1.
    """
    jitter = transforms.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                config.size, config.scale, config.ratio, transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(config.flip),
            transforms.RandomApply([jitter], p=config.jitter),
            transforms.RandomGrayscale(config.grayscale),
            transforms.RandomApply([Blur(*config.blur_radius)], p=config.blur[view]),
            transforms.RandomApply([Solarize()], p=config.solarize[view]),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )


class Pairs(Dataset[Tensor]):
    """openselfsup/datasets/triplet.py: item i is (2, 3, size, size) float32, both views of image i."""

    def __init__(self, images: Images, config: Views) -> None:
        self.images = images
        self.pipelines = [pipeline(config, view) for view in (0, 1)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = Image.open(io.BytesIO(self.images.read(index))).convert("RGB")
        return torch.cat([each(image).unsqueeze(0) for each in self.pipelines])


def load(images: Images, config: Pretrain) -> Iterator[Tensor]:
    """openselfsup/datasets/loader/build_loader.py: (n, 2, 3, size, size) float32 batches without end."""
    loader = DataLoader(
        Pairs(images, config.views),
        config.micro_batch,
        shuffle=True,
        num_workers=config.loaders,
        drop_last=True,
    )
    while True:
        yield from loader
