"""Shims that let OpenSelfSup 1db69ec (January 2021) and mmcv 1.7.2 run unpatched on today's stack.

Each function says why it exists and when it can be removed.
"""

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from triplet.errors import KitError
from triplet.openselfsup import apex
from triplet.signals import ignore_in_worker
from triplet.training.batch_norm import PooledBatchNorm


def locate() -> Path:
    """Make OpenSelfSup importable and return the folder of its configs.

    The checkout named by the environment variable OPENSELFSUP is used, else the installed package (in the
    container image).

    Raises:
        KitError: there is neither, or mmcv is missing.
    """
    checkout = os.environ.get("OPENSELFSUP", "")
    if checkout not in ("", "0", "1"):  # values for `make build`
        folder = Path(checkout).absolute()
        if not (folder / "openselfsup" / "apis").is_dir():
            raise KitError(
                f"OPENSELFSUP={checkout} is not a checkout of OpenSelfSup: no openselfsup/apis in it"
            )
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    spec = importlib.util.find_spec("openselfsup")
    if spec is None or spec.origin is None:
        raise KitError(
            "OpenSelfSup is not here: name a checkout of it (OPENSELFSUP=folder; docker/versions.env says "
            "which), or use the image of make build"
        )
    if importlib.util.find_spec("mmcv") is None:
        raise KitError("OpenSelfSup needs mmcv; install it with: make setup")
    package = Path(spec.origin).parent
    return next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), package)


def apply(device: torch.device) -> None:
    """Apply all shims before OpenSelfSup is imported; a second call is harmless."""
    sync_batch_norm()
    replicated_tensors()
    mixed_precision()
    if device.type == "cpu":
        cpu()
    workers()


def sync_batch_norm() -> None:
    """Provide ``_specify_ddp_gpu_num``, which models/utils/norm.py:46 calls and torch no longer has.

    Can go with OpenSelfSup's successor (mmselfsup 0.1), which takes mmcv's layers.
    """
    nn.SyncBatchNorm._specify_ddp_gpu_num = lambda self, number: None  # type: ignore[attr-defined]


def replicated_tensors() -> None:
    """Provide ``_use_replicated_tensor_module``, which mmcv/parallel/distributed.py:159 reads and torch 2
    dropped.

    Can go with mmcv 2, whose wrappers are mmengine's; OpenSelfSup needs mmcv 1.
    """
    from mmcv.parallel import MMDistributedDataParallel

    MMDistributedDataParallel._use_replicated_tensor_module = False


def mixed_precision() -> None:
    """Replace NVIDIA's apex, used by apis/train.py:190 and hooks/optimizer_hook.py:23, by torch.amp.

    PyPI's package of that name is something else. Can go with a successor whose hooks use torch.amp.
    """
    facade = types.ModuleType("apex")
    facade.amp = apex  # type: ignore[attr-defined]
    sys.modules["apex"] = facade


class SharedBatchNorm(PooledBatchNorm):
    """The kit's BN over all processes, in place of torch's SyncBatchNorm, which has no CPU kernel."""

    @property
    def group(self) -> str:  # type: ignore[override]
        """The group of all processes at the time of the forward pass."""
        assert dist.group.WORLD is not None
        return dist.group.WORLD.group_name

    def _specify_ddp_gpu_num(self, number: int) -> None:
        """See ``sync_batch_norm``."""


def cpu() -> None:
    """Let OpenSelfSup run without a GPU: it calls ``.cuda()``, device numbers, SyncBN and DDP on NCCL.

    This serves tests and the demo's data. Can go with a successor that takes a device.
    """
    from mmcv.parallel import MMDistributedDataParallel

    nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.cuda.current_device = lambda: 0

    class OnCpu(MMDistributedDataParallel):
        def __init__(self, module: nn.Module, device_ids: Any = None, **rest: Any) -> None:
            super().__init__(module, device_ids=None, **rest)

    theirs: Any = importlib.import_module("openselfsup.apis.train")
    theirs.MMDistributedDataParallel = OnCpu
    norm: Any = importlib.import_module("openselfsup.models.utils.norm")
    norm.norm_cfg["SyncBN"] = ("bn", SharedBatchNorm)


def workers() -> None:
    """Make loader processes ignore signals, which datasets/loader/build_loader.py lets kill them.

    torchrun signals the whole process group, and without its loaders the parent would fail before it has
    saved. Can go with a successor that takes a worker_init_fn.
    """
    loader: Any = importlib.import_module("openselfsup.datasets.loader.build_loader")
    seeded = loader.worker_init_fn

    def begin(worker: int) -> None:
        seeded(worker)
        ignore_in_worker(worker)

    loader.worker_init_fn = begin


def keep_memory_bank(model: nn.Module) -> None:
    """Put NPID's features into checkpoints, from which models/memories/simple_memory.py leaves them out.

    A registered buffer is saved, so a resumed run has the features. Can go once upstream registers them.
    """
    bank = getattr(model, "memory_bank", None)
    if bank is not None:
        bank.register_buffer("feature_bank", bank.__dict__.pop("feature_bank"))
