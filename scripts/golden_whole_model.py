"""Numbers of a training by the authors' own code, for tests/pretrain/test_authors.py.

Theirs is everything that could be told wrongly: `train_model` builds mmcv's Runner and registers the
hooks, so the order of learning rate, backward pass, accumulation, LARS and EMA is the one that they
trained with; model, loss, optimiser, sampler and settings come from their registry and their config.
Ours is what the CPU and a test's time ask for, all of it in this file:

- BN instead of SyncBN (their own switches), float64, no apex, one process with gloo;
- ResNet-18 (10 steps) and ResNet-50 (1 step), narrow necks, 12 images, 2 micro-batches a step, few epochs;
- each resolution that their forward pass draws (96..224, 128..224) is noted, and a sixth of it used;
- weights and images that the test can make again: `initial`, `views`.

A clone of theirs, an environment beside the kit's, and the run (under a minute, one thread), from the
root of the kit:

    git clone https://github.com/wanggrun/triplet /tmp/authors
    git -C /tmp/authors checkout c1bbaa9
    . docker/versions.env
    .venv/bin/uv venv --python .venv/bin/python /tmp/mmcv
    into() { .venv/bin/uv pip install --python /tmp/mmcv/bin/python "$@"; }
    into torch==$TORCH_VERSION torchvision==$TORCHVISION_VERSION numpy==$NUMPY_VERSION six
    into setuptools==$SETUPTOOLS_VERSION wheel && into --no-build-isolation mmcv==1.7.2
    OMP_NUM_THREADS=1 /tmp/mmcv/bin/python scripts/golden_whole_model.py /tmp/authors

Their requirements name mmcv 1.0.3. It needs `into pip cython` first and gives the same numbers to the
last bit.
"""

import argparse
import importlib
import importlib.metadata
import logging
import subprocess
import sys
import tempfile
import types
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

COMMIT = "c1bbaa941f1b5867145deb2bbf7f1c0ff0bf238a"
MMCV = ("1.7.2", "1.0.3")
CONFIG = "configs/selfsup/triplet/r50_bs4096_accumulate4_ep1000_fp16_triplet_gpu3090.py"
OUTPUT = Path(__file__).parents[1] / "tests" / "golden" / "whole_model.npz"

GROUP = 12
"""Images in a micro-batch; the loss needs 11."""
ACCUMULATE = 2
HIDDEN, OUTPUTS = 48, 24
SHRINK = 6
"""The side that the networks see is the drawn one divided by this."""


@dataclass(frozen=True)
class Case:
    """One training run."""

    depth: int
    features: int
    """Channels after the backbone."""
    images: int
    epochs: int
    warmup_epochs: int
    keep: tuple[int, ...]
    """Optimiser steps, from 1, after which all tensors are noted."""


CASES = {
    # 5 micro-batches an epoch, so optimiser steps straddle epochs; the warm-up sees two epochs' values of
    # the cosine.
    "r18": Case(depth=18, features=512, images=60, epochs=4, warmup_epochs=2, keep=(1, 2, 5, 10)),
    "r50": Case(depth=50, features=2048, images=12, epochs=2, warmup_epochs=1, keep=(1,)),
}


# What the test imports. RandomState: numpy keeps its streams for ever, those of its Generator not.


def initial(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights of a tensor, float64, by its name in the authors' checkpoint.

    Online and target network get different ones, unlike at the start of a training, so that no mix-up of
    the two can hide. Scales are those of a usual initialisation; BN and biases are not at 1 and 0.
    """
    drawn = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    if len(shape) > 1:
        return drawn * np.sqrt(6 / np.prod(shape[1:]))  # kaiming by fan-in
    return 0.1 * drawn + name.endswith(".weight")


def views(index: int) -> np.ndarray:
    """(2, 3, 64, 64) uint8: two views of an image, blocks of colour that are in part the same."""
    rng = np.random.RandomState(1000 + index)
    common, own = rng.uniform(0, 255, (3, 8, 8)), rng.uniform(0, 255, (2, 3, 16, 16))
    mixed = 0.6 * np.kron(common, np.ones((8, 8))) + 0.4 * np.kron(own, np.ones((4, 4)))
    return mixed.astype(np.uint8)


MEASURES = ("norm", "sum", "probe", *(f"entry {i}" for i in range(8)))
_PROBE = np.random.RandomState(0).uniform(-1, 1, 512 * 512 * 9)


def fingerprint(values: np.ndarray) -> np.ndarray:
    """(11,) what is kept of a tensor, see MEASURES: ``probe`` is the product with a fixed random vector.

    Each is divided by its natural size (norm by nothing, sum and probe by the norm and the root of the
    size, entries by the root mean square), so that all but the norm are of order 1 and one tolerance fits.
    """
    flat = np.asarray(values, dtype=np.float64).ravel()
    norm = np.linalg.norm(flat)
    if not norm:
        return np.zeros(len(MEASURES))
    entries = np.zeros(8)
    entries[: len(flat[:8])] = flat[:8] / norm * np.sqrt(len(flat))
    return np.array(
        [norm, flat.sum() / norm / np.sqrt(len(flat)), flat @ _PROBE[: len(flat)] / norm, *entries]
    )


# The rest runs in the other environment.


def die(message: str) -> NoReturn:
    """One line and exit code 2."""
    print(f"golden_whole_model: {message}", file=sys.stderr)
    raise SystemExit(2)


def check(checkout: Path) -> None:
    """Refuse anything but the commit, unchanged, and the environment of this file's head."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    if not (checkout / "openselfsup").is_dir() or not (commit := git("rev-parse", "HEAD")):
        die(f"{checkout} is not a git checkout of https://github.com/wanggrun/triplet")
    if commit != COMMIT:
        die(f"{checkout} is at {commit}, expected {COMMIT}; run: git -C {checkout} checkout {COMMIT}")
    if git("status", "--porcelain", "--untracked-files=no"):
        die(f"{checkout} has local changes; run: git -C {checkout} stash")
    for name, expected in (("mmcv", MMCV), ("torch", ()), ("torchvision", ()), ("six", ())):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            die(f"found no {name} in {sys.prefix}; the head of this file says how to make the environment")
        if expected and found not in expected:
            die(f"found {name} {found} in {sys.prefix}, expected {expected[0]}; see the head of this file")


def fit_to_cpu() -> None:
    """Replace the parts of a GPU, of apex and of an older torch that their code and mmcv ask for."""
    import torch
    from mmcv.parallel import MMDistributedDataParallel

    torch.set_num_threads(1)
    torch.nn.Module.cuda = lambda self, *_: self
    torch.cuda.current_device = lambda: 0
    sys.modules["apex"] = types.ModuleType("apex")  # imported always, used for fp16 alone
    MMDistributedDataParallel._use_replicated_tensor_module = False  # gone since torch 2

    class OnCpu(MMDistributedDataParallel):
        def __init__(self, module: Any, device_ids: Any, **rest: Any) -> None:
            super().__init__(module, device_ids=None, **rest)

    importlib.import_module("openselfsup.apis.train").MMDistributedDataParallel = OnCpu
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def configure(checkout: Path, case: Case, folder: str) -> Any:
    """Their config, changed where this file's head says so."""
    from mmcv import Config, ConfigDict

    cfg = Config.fromfile(str(checkout / CONFIG))
    cfg.model.backbone.update(depth=case.depth, norm_cfg=ConfigDict(type="BN"))
    narrow = dict(hid_channels=HIDDEN, out_channels=OUTPUTS, sync_bn=False)
    cfg.model.neck.update(in_channels=case.features, **narrow)
    cfg.model.head.predictor.update(in_channels=OUTPUTS, **narrow)
    cfg.optimizer_config.update(update_interval=ACCUMULATE, use_fp16=False)
    cfg.custom_hooks[0].update_interval = ACCUMULATE
    cfg.custom_hooks.append(ConfigDict(type="Recorder"))  # last: it sees what the other hooks did
    cfg.lr_config.warmup_iters = case.warmup_epochs  # in epochs, by warmup_by_epoch
    cfg.total_epochs = case.epochs
    cfg.data.update(imgs_per_gpu=GROUP, workers_per_gpu=0)
    cfg.update(use_fp16=False, seed=None, work_dir=folder, checkpoint_config=None)
    cfg.log_config.hooks = []
    return cfg


def run(checkout: Path, case: Case) -> dict[str, np.ndarray]:
    """Train with their code; ``recorder`` says what comes back."""
    import torch
    from openselfsup.hooks import HOOKS
    from openselfsup.models import build_model

    with tempfile.TemporaryDirectory() as folder:
        cfg = configure(checkout, case, folder)
        model = build_model(cfg.model).double()
        pairs = zip(model.online_net.parameters(), model.target_net.parameters(), strict=True)
        copied = all(torch.equal(online, target) for online, target in pairs)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(initial(name, tuple(parameter.shape))))

        record: dict[str, np.ndarray] = {"target_copied": np.array(copied)}
        HOOKS.register_module(recorder(model, case, record), force=True)
        mean, std = (np.array(cfg.img_norm_cfg[key]).reshape(3, 1, 1) for key in ("mean", "std"))
        # As their ToTensor and Normalize do it, in float64.
        dataset = [
            dict(img=torch.from_numpy((views(i) / 255 - mean) / std), index=i) for i in range(case.images)
        ]
        train(model, dataset, cfg)
    return record


def train(model: Any, dataset: list[dict[str, Any]], cfg: Any) -> None:
    """By their loop, from seed 0, without their log."""
    from openselfsup.apis import set_random_seed, train_model

    set_random_seed(0)
    quiet = logging.getLogger("quiet")
    quiet.setLevel(logging.ERROR)
    theirs = importlib.import_module("openselfsup.apis.train")
    theirs.get_root_logger = lambda *_: quiet
    theirs.print_log = lambda *_, **__: None
    cfg.setdefault("log_level", "ERROR")
    train_model(model, [dataset], cfg, distributed=True)


def recorder(model: Any, case: Case, record: dict[str, np.ndarray]) -> Any:
    """The class of a hook that notes everything, and fills in ``record`` at the end:

    for each micro-batch ``indices`` of its images, ``loss``, ``sides`` as drawn for (online, view 1),
    (online, view 2), (target, view 1), (target, view 2); for each optimiser step ``learning_rate`` and
    ``ema_momentum``; after those of ``case.keep`` the ``fingerprint`` of all ``parameters`` and
    ``buffers``; their names; which of the trained ones LARS has ``excluded``; the ``hooks`` in order.
    """
    from mmcv.runner import Hook

    seen: dict[str, list[Any]] = {
        key: []
        for key in ("indices", "loss", "sides", "learning_rate", "ema_momentum", "parameters", "buffers")
    }
    current = watch_views(model, seen)

    class Recorder(Hook):
        def __init__(self, **_: Any) -> None:
            pass

        def after_train_iter(self, runner: Any) -> None:
            # outputs["loss"] is divided by the accumulation count by now.
            seen["loss"].append(runner.outputs["log_vars"]["loss"])
            assert all(current["sides"]), "each network sees both views"
            seen["sides"].append(current["sides"])
            step, left = divmod(runner.iter + 1, ACCUMULATE)
            if left:
                return
            rates = set(runner.current_lr())
            assert len(rates) == 1, "one learning rate for all groups"
            seen["learning_rate"] += rates
            seen["ema_momentum"].append(runner.model.module.momentum)
            if step in case.keep:
                for key, named in (
                    ("parameters", model.named_parameters()),
                    ("buffers", model.named_buffers()),
                ):
                    seen[key].append([fingerprint(tensor.numpy(force=True)) for _, tensor in named])

        def after_run(self, runner: Any) -> None:
            record.update({key: np.array(values) for key, values in seen.items()})
            record.update(names_of(model, runner))

    return Recorder


def watch_views(model: Any, seen: dict[str, list[Any]]) -> dict[str, Any]:
    """Note each micro-batch's ``indices`` in ``seen``; returns a dict with ``sides``, the current one's."""
    import torch
    from torch.nn import functional as F

    current: dict[str, Any] = {}

    class Functional:
        """Stands for torch.nn.functional in their model's file."""

        @staticmethod
        def interpolate(view: Any, size: list[Any], **options: Any) -> Any:
            number = [torch.equal(view, current["img"][:, i]) for i in (0, 1)].index(True)
            current["next"] = number, int(size[0])
            return F.interpolate(view, size=[int(side) // SHRINK for side in size], **options)

    def begin(module: Any, inputs: Any, batch: dict[str, Any]) -> None:
        current.update(img=batch["img"], sides=[0] * 4)
        seen["indices"].append(batch["index"].numpy())

    model.register_forward_pre_hook(begin, with_kwargs=True)
    sys.modules["openselfsup.models.triplet"].F = Functional
    for place, network in enumerate((model.online_net, model.target_net)):

        def note(module: Any, inputs: Any, place: int = place) -> None:
            number, side = current.pop("next")
            assert inputs[0].shape[-1] == side // SHRINK
            column = 2 * place + number
            assert current["sides"][column] == 0, "a view was shown twice to one network"
            current["sides"][column] = side

        network.register_forward_pre_hook(note)
    return current


def names_of(model: Any, runner: Any) -> dict[str, np.ndarray]:
    """Return the names of parameters, buffers and hooks of the numbers, and those that LARS excludes."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    excluded = {
        names[id(parameter)]: group.get("lars_exclude", False)
        for group in runner.optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    }
    return dict(
        parameter_names=np.array([name for name, _ in model.named_parameters()]),
        buffer_names=np.array([name for name, _ in model.named_buffers()]),
        trained_names=np.array(list(excluded)),
        excluded=np.array(list(excluded.values())),
        hooks=np.array([type(hook).__name__ for hook in runner._hooks]),
    )


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description="Numbers of a training run by the authors' own code.")
    parser.add_argument("checkout", type=Path, help=f"of github.com/wanggrun/triplet at {COMMIT[:8]}")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    checkout = arguments.checkout.resolve()
    check(checkout)
    warnings.filterwarnings("ignore")
    sys.path.insert(0, str(checkout))
    fit_to_cpu()
    import mmcv
    import torch

    made_by = f"wanggrun/triplet {COMMIT}, mmcv {mmcv.__version__}, torch {torch.__version__}"
    content = {"made_by": np.array(made_by)}
    for name, case in CASES.items():
        print(f"golden_whole_model: {name}")
        content |= {f"{name}_{key}": values for key, values in run(checkout, case).items()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.output, **content)
    print(f"golden_whole_model: wrote {arguments.output} ({arguments.output.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
