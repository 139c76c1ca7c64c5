"""The finetune stage: Mask R-CNN from converted weights, by Detectron2's own trainer."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from benchmarks.detection import data, model, quiet
from triplet import coco, files, records
from triplet.errors import KitError
from triplet.progress import Bar
from triplet.signals import Stop, graceful
from triplet.weights import proof

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.utils.env import seed_all_rng


def finetune(
    run: str,
    config: Path,
    dataset: Path,
    overrides: Sequence[str] = (),
    *,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Finetune the run's converted weights on a data set's train2017.

    Args:
        run: whose convert stage is done.
        config: Detectron2's YAML.
        dataset: folder in COCO 2017's layout.
        overrides: ``KEY.SUB=value`` for Detectron2's settings.
        seed: of the heads, the sampling and the data order.
        force: start over.

    Raises:
        KitError: weights that do not arrive, a data set that does not fit, a loss that is not finite.
        Interrupted: stopped by a signal, after saving.
    """
    converted = records.require(run, "convert")
    weights = records.output(converted, "weights")
    truth = coco.annotations(dataset, "train2017")
    cfg = model.load_config(config, overrides)
    proof.check_pixel_path(cfg, converted)

    def work(job: records.Job) -> None:
        name, categories = data.register(dataset, "train2017")
        if len(categories) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise KitError(
                f"{truth} has {len(categories)} categories, {config} expects "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}; add MODEL.ROI_HEADS.NUM_CLASSES={len(categories)}"
            )
        here = cfg.clone()
        here.merge_from_list(
            ["DATASETS.TRAIN", (name,), "DATASETS.TEST", (), "OUTPUT_DIR", str(job.folder),
             "MODEL.WEIGHTS", str(weights), "SEED", seed]
        )  # fmt: skip
        here.freeze()
        _train(here, job, seed, categories)

    records.perform(
        "finetune",
        records.stage_folder(run, "finetune"),
        config={"dataset": records.portable(dataset), "seed": seed, "detectron2": plain(cfg)},
        inputs={"weights": weights, "annotations": truth, "images": dataset / "train2017"},
        work=work,
        force=force,
        seed=seed,
    )


def plain(cfg: CfgNode) -> dict:
    """A Detectron2 config as plain values, less where it runs."""
    values = yaml.safe_load(cfg.dump())
    del values["MODEL"]["DEVICE"]
    return values


def _train(cfg: CfgNode, job: records.Job, seed: int, categories: list[str]) -> None:
    log, metrics = job.folder / "log.txt", job.folder / "metrics.json"
    files.cut_lines(metrics, "iteration", _saved_iteration(job.folder))  # before the trainer opens it
    with graceful() as stop:
        with quiet.log_to(log):
            seed_all_rng(seed)
            trainer = Trainer(cfg)
            count = proof.load_and_check(trainer.model, Path(cfg.MODEL.WEIGHTS))
            trainer.resume_or_load(resume=True)
        with Bar("finetune", trainer.max_iter, trainer.start_iter) as bar:
            watch = _Watch(bar, stop)
            trainer.register_hooks([watch])
            try:
                with quiet.log_to(log):
                    trainer.train()
            except FloatingPointError as error:
                reason = " ".join(str(error).split())[:120]
                raise KitError(f"{reason}; lower SOLVER.BASE_LR; see {log}") from None
            except RuntimeError:
                if not stop:  # else a loader process was killed by the signal that stops this one
                    raise
                watch.save_and_stop(trainer.iter)
    resolved = job.folder / "config.yaml"
    files.write_text(resolved, cfg.dump())
    job.outputs.update(model=job.folder / "model_final.pth", config=resolved, metrics=metrics)
    job.results.update(
        loaded_tensors=count, iterations=trainer.max_iter, images_per_batch=cfg.SOLVER.IMS_PER_BATCH,
        categories=categories,
    )  # fmt: skip
    if watch.steps:
        seconds = time.monotonic() - watch.began
        job.images_per_second = round(watch.steps * cfg.SOLVER.IMS_PER_BATCH / seconds, 2)
    for path in job.folder.glob("model_[0-9]*.pth"):
        path.unlink()


def _saved_iteration(folder: Path) -> int:
    """Number of the iteration after which the last checkpoint was saved; -1 without one."""
    tag = folder / "last_checkpoint"
    if not tag.exists():
        return -1
    number = tag.read_text().removeprefix("model_").removesuffix(".pth")
    return int(number) if number.isdigit() else sys.maxsize  # model_final


class Trainer(DefaultTrainer):
    """Detectron2's, less what is a stage of its own (evaluation) and less all but two checkpoints."""

    def build_hooks(self) -> list[HookBase]:
        kept = []
        for hook in super().build_hooks():
            if isinstance(hook, hooks.EvalHook):
                continue
            if isinstance(hook, hooks.PeriodicCheckpointer):
                period = self.cfg.SOLVER.CHECKPOINT_PERIOD
                hook = hooks.PeriodicCheckpointer(self.checkpointer, period, max_to_keep=2)
            kept.append(hook)
        return kept


class _Watch(HookBase):
    """Shows progress and stops between two iterations when asked to."""

    def __init__(self, bar: Bar, stop: Stop) -> None:
        self.bar, self.stop, self.steps, self.began = bar, stop, 0, time.monotonic()

    def before_train(self) -> None:
        self.began = time.monotonic()

    def after_step(self) -> None:
        self.steps += 1
        latest = self.trainer.storage.latest().get("total_loss")
        self.bar.step(f"loss {latest[0]:.3f}" if latest else "")
        if self.stop and self.trainer.iter + 1 < self.trainer.max_iter:
            self.save_and_stop(self.trainer.iter + 1)

    def save_and_stop(self, done: int) -> NoReturn:
        """Save the state after ``done`` iterations and raise Interrupted."""
        if done:
            self.trainer.checkpointer.save(f"model_{done - 1:07d}", iteration=done - 1)
        raise self.stop.interrupted(f"{done} of {self.trainer.max_iter} iterations")
