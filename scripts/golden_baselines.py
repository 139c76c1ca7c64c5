"""Numbers of the baselines' trainings by OpenSelfSup, for tests/pretrain/test_baselines.py.

As scripts/golden_whole_model.py does it for the Triplet method, whose head says what is theirs and why:
model, loss, optimiser, schedule, sampler and the order of hooks, by their registry and the zoo's configs.
Ours is what the CPU and a test's time ask for, all of it in this file: ResNet-18 in float64, BN instead of
SyncBN, narrow necks, 12 images of 16 pixels, 5 epochs, no dropout, weights and images that the test can
make again.

From the root of the kit, where `make setup` has run (a minute, one thread):

    git clone https://github.com/open-mmlab/OpenSelfSup /tmp/openselfsup
    git -C /tmp/openselfsup checkout 1db69ec
    OMP_NUM_THREADS=1 .venv/bin/python -m scripts.golden_baselines /tmp/openselfsup
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scripts.golden_whole_model import die, fingerprint, fit_to_cpu, initial, train, views

OUTPUT = Path(__file__).parents[1] / "tests" / "golden" / "baselines.npz"

BATCH, EPOCHS, STEPS, FEATURES, HIDDEN, OUTPUTS = 12, 5, 10, 512, 48, 24
WARMUP, DROPS = 2, (2, 4)
"""Epochs of the warm-up where there is one, and after which a stepped learning rate falls."""
QUEUE, NEGATIVES = 36, 20
KEEP = (1, 2, 10)
"""Optimiser steps, from 1, after which all tensors are noted."""
NECK = dict(in_channels=FEATURES, hid_channels=HIDDEN, out_channels=OUTPUTS, sync_bn=False)


@dataclass(frozen=True)
class Case:
    """One baseline."""

    config: str
    """Below configs/selfsup of OpenSelfSup."""
    names: dict[str, str]
    """Beginnings of tensors' names: theirs -> ours."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of the model that are narrower here."""
    accumulate: int = 1

    @property
    def images(self) -> int:
        """So that there are 10 steps in all."""
        return BATCH * self.accumulate * STEPS // EPOCHS


COUNTED = ("running", "num_batches", "queue_ptr", "pointer")
"""Beginnings of what starts as it is made."""
BACKBONE = {"backbone.": "online.backbone."}


def _moco(layer: str) -> dict[str, str]:
    pairs = {"encoder_q": "online", "encoder_k": "target"}
    names = {f"{a}.0.": f"{b}.backbone." for a, b in pairs.items()}
    return {
        **names,
        **{f"{a}.1.{layer}.": f"{b}.projector." for a, b in pairs.items()},
        "queue_ptr": "pointer",
        "queue": "queue",
    }


LINEAR = dict(in_channels=FEATURES, out_channels=OUTPUTS)
QUEUED = dict(queue_len=QUEUE, feat_dim=OUTPUTS)
CASES = {
    "byol": Case(
        "byol/r50_bs2048_accumulate2_ep200_fp16.py",
        {
            "online_net.0.": "online.backbone.",
            "online_net.1.": "online.projector.",
            "target_net.0.": "target.backbone.",
            "target_net.1.": "target.projector.",
            "head.predictor.": "predictor.",
        },
        dict(neck=NECK, head=dict(predictor={**NECK, "in_channels": OUTPUTS})),
        accumulate=2,
    ),
    "simclr": Case(
        "simclr/r50_bs256_ep200.py", {**BACKBONE, "neck.": "online.projector."}, dict(neck=NECK)
    ),
    "moco": Case("moco/r50_v1.py", _moco("fc"), dict(neck=LINEAR, **QUEUED)),
    "moco-v2": Case("moco/r50_v2.py", _moco("mlp"), dict(neck=dict(LINEAR, hid_channels=HIDDEN), **QUEUED)),
    "npid": Case(
        "npid/r50.py",
        {**BACKBONE, "neck.fc.": "online.projector.", "memory_bank.feature_bank": "bank"},
        dict(neck=LINEAR, neg_num=NEGATIVES, memory_bank=dict(length=24, feat_dim=OUTPUTS)),
    ),
    "rotation-pred": Case(
        "rotation_pred/r50.py",
        {**BACKBONE, "head.fc_cls.": "online.projector."},
        dict(head=dict(in_channels=FEATURES)),
    ),
    "relative-loc": Case(
        "relative_loc/r50.py",
        {**BACKBONE, "neck.": "neck.", "head.fc_cls.": "head."},
        dict(neck=dict(in_channels=FEATURES, out_channels=HIDDEN), head=dict(in_channels=HIDDEN)),
    ),
}


def pixels(case: str, index: int) -> np.ndarray:
    """(k, 3, 16, 16) uint8: the views of an image that a method sees, relative location's being nine
    patches."""
    both = views(index)
    if case == "relative-loc":
        return np.stack([both[0, :, y : y + 16, x : x + 16] for y in (0, 24, 48) for x in (0, 24, 48)])
    count = 1 if case in ("npid", "rotation-pred") else 2
    return both[:count, :, ::4, ::4]


def start(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a tensor by its name in theirs: weights, or the unit features of a queue or memory."""
    values = initial(name, shape)
    if name in ("queue", "memory_bank.feature_bank"):
        values = values / np.linalg.norm(values, axis=0 if name == "queue" else 1, keepdims=True)
    return values


# The rest needs OpenSelfSup.


def item(name: str, index: int, cfg: Any) -> dict[str, Any]:
    """Return the item of their data set, made of ``pixels``."""
    import torch
    from openselfsup.datasets.rotation_pred import rotate

    mean, std = (np.array(cfg.img_norm_cfg[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    found = torch.from_numpy((pixels(name, index) / 255 - mean) / std)
    if name == "npid":
        return dict(img=found[0], idx=index, index=index)
    if name == "rotation-pred":
        return dict(img=torch.stack(rotate(found[0])), rot_label=torch.arange(4), index=index)
    if name == "relative-loc":
        pairs = torch.stack([torch.cat([found[i], found[4]]) for i in range(9) if i != 4])
        return dict(img=pairs, patch_label=torch.arange(8), index=index)
    return dict(img=found, index=index)


def configure(checkout: Path, case: Case, folder: str) -> Any:
    """Their config, changed where this file's head says so."""
    from mmcv import Config, ConfigDict

    cfg = Config.fromfile(str(checkout / "configs" / "selfsup" / case.config))
    cfg.model.backbone.update(depth=18, norm_cfg=ConfigDict(type="BN"))
    cfg.merge_from_dict(dict(model=case.model))
    cfg.optimizer_config.update(update_interval=case.accumulate, use_fp16=False)
    hooks = cfg.get("custom_hooks", [])
    for hook in hooks:
        hook.update_interval = case.accumulate
    cfg.custom_hooks = [*hooks, ConfigDict(type="Recorder")]  # last: it sees what the other hooks did
    if "warmup" in cfg.lr_config:
        cfg.lr_config.warmup_iters = WARMUP  # in epochs, by warmup_by_epoch
    if cfg.lr_config.policy == "step":
        cfg.lr_config.step = list(DROPS)
    cfg.total_epochs = EPOCHS
    cfg.data.update(imgs_per_gpu=BATCH, workers_per_gpu=0)
    cfg.update(use_fp16=False, seed=None, work_dir=folder, checkpoint_config=None)
    cfg.log_config.hooks = []
    return cfg


def run(checkout: Path, name: str, case: Case) -> dict[str, np.ndarray]:
    """Train with their code; ``recorder`` says what comes back."""
    import torch
    from openselfsup.hooks import HOOKS
    from openselfsup.models import build_model

    with tempfile.TemporaryDirectory() as folder:
        cfg = configure(checkout, case, folder)
        model = build_model(cfg.model)
        record: dict[str, np.ndarray] = {}
        drawn: list[np.ndarray] = []
        if name == "npid":
            bank = model.memory_bank
            bank.register_buffer("feature_bank", bank.__dict__.pop("feature_bank"))
            theirs = bank.multinomial.draw

            def draw(count: int) -> torch.Tensor:
                found = theirs(count)
                drawn.append(found.numpy().reshape(BATCH, NEGATIVES).copy())
                return found

            bank.multinomial.draw = draw
        if name == "relative-loc":
            model.neck.drop.p = 0.0
        model = model.double()
        with torch.no_grad():
            for key, tensor in tensors(model).items():
                if not key.rpartition(".")[2].startswith(COUNTED):
                    tensor.copy_(torch.from_numpy(start(key, tuple(tensor.shape))))
        HOOKS.register_module(recorder(model, case, record), force=True)
        train(model, [item(name, i, cfg) for i in range(case.images)], cfg)
    if drawn:
        record["drawn"] = np.array(drawn)
    return record


def tensors(model: Any) -> dict[str, Any]:
    """All of a model's; ``backbone.*`` of one with two networks is the online one's again, and left out."""
    twice = hasattr(model, "online_net") or hasattr(model, "encoder_q")
    return {k: v for k, v in model.state_dict().items() if not (twice and k.startswith("backbone."))}


def recorder(model: Any, case: Case, record: dict[str, np.ndarray]) -> Any:
    """The class of a hook that fills in ``record``: for each micro-batch ``indices`` and ``loss``, for each
    optimiser step ``learning_rate``, after those of KEEP the ``fingerprint`` of all ``tensors`` and, at
    the end, their ``names``."""
    from mmcv.runner import Hook

    seen: dict[str, list[Any]] = {key: [] for key in ("indices", "loss", "learning_rate", "tensors")}

    def begin(module: Any, inputs: Any, batch: dict[str, Any]) -> None:
        seen["indices"].append(batch["index"].numpy())

    model.register_forward_pre_hook(begin, with_kwargs=True)

    class Recorder(Hook):
        def __init__(self, **_: Any) -> None:
            pass

        def after_train_iter(self, runner: Any) -> None:
            seen["loss"].append(runner.outputs["log_vars"]["loss"])
            step, left = divmod(runner.iter + 1, case.accumulate)
            if left:
                return
            (rate,) = set(runner.current_lr())
            seen["learning_rate"].append(rate)
            if step in KEEP:
                seen["tensors"].append([fingerprint(t.numpy(force=True)) for t in tensors(model).values()])

        def after_run(self, runner: Any) -> None:
            record.update({key: np.array(values) for key, values in seen.items()})
            record["names"] = np.array(list(tensors(model)))

    return Recorder


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description="Numbers of the baselines' trainings by OpenSelfSup.")
    parser.add_argument("checkout", type=Path, help="of OpenSelfSup")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--only", choices=CASES, help="one of them, and write nothing")
    arguments = parser.parse_args()
    checkout = arguments.checkout.resolve()
    asked = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    pins = (Path(__file__).parents[1] / "docker" / "versions.env").read_text()
    if not (commit := asked.stdout.strip()) or f"OPENSELFSUP_COMMIT={commit}\n" not in pins:
        die(f"{checkout} is at {commit or 'no commit'}, expected that of docker/versions.env")
    warnings.filterwarnings("ignore")
    sys.path.insert(0, str(checkout))
    fit_to_cpu()
    import mmcv
    import torch

    torch.Tensor.cuda = lambda self, *_, **__: self
    made_by = f"OpenSelfSup {commit}, mmcv {mmcv.__version__}, torch {torch.__version__}"
    content = {"made_by": np.array(made_by)}
    for name, case in CASES.items():
        if arguments.only in (None, name):
            found = run(checkout, name, case)
            print(f"golden_baselines: {name}, losses {found['loss'].round(3)}", flush=True)
            content |= {f"{name}_{key}": values for key, values in found.items()}
    if arguments.only:
        return
    np.savez_compressed(arguments.output, **content)
    print(f"golden_baselines: wrote {arguments.output} ({arguments.output.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
