"""The finetune stage: Mask R-CNN from converted weights, by Detectron2's own trainer."""

from collections.abc import Sequence
from pathlib import Path

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
    weights = records.output(records.require(run, "convert"), "weights")
    truth = coco.annotations(dataset, "train2017")
    cfg = model.load_config(config, overrides)

    def work(job: records.Job) -> None:
        name, categories = data.register(dataset, "train2017")
        if categories != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise KitError(
                f"{truth} has {categories} categories, {config} expects "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}; add MODEL.ROI_HEADS.NUM_CLASSES={categories}"
            )
        here = cfg.clone()
        here.merge_from_list(
            ["DATASETS.TRAIN", (name,), "DATASETS.TEST", (), "OUTPUT_DIR", str(job.folder),
             "MODEL.WEIGHTS", str(weights), "SEED", seed]
        )  # fmt: skip
        here.freeze()
        _train(here, job, seed)

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
    """A Detectron2 config as plain values."""
    return yaml.safe_load(cfg.dump())


def _train(cfg: CfgNode, job: records.Job, seed: int) -> None:
    with graceful() as stop:
        with quiet.log_to(job.folder / "log.txt"):
            seed_all_rng(seed)
            trainer = Trainer(cfg)
            if not trainer.checkpointer.has_checkpoint():
                count = proof.load_and_check(trainer.model, Path(cfg.MODEL.WEIGHTS))
                job.results["loaded_tensors"] = count
            trainer.resume_or_load(resume=True)
        with Bar("finetune", trainer.max_iter, trainer.start_iter) as bar:
            trainer.register_hooks([_Watch(bar, stop)])
            with quiet.log_to(job.folder / "log.txt"):
                trainer.train()
    final = job.folder / "model_final.pth"
    for path in job.folder.glob("model_[0-9]*.pth"):
        path.unlink()
    (job.folder / "last_checkpoint").unlink(missing_ok=True)
    resolved = job.folder / "config.yaml"
    files.write_text(resolved, cfg.dump())
    job.outputs.update(model=final, config=resolved, metrics=job.folder / "metrics.json")
    job.results.update(iterations=trainer.max_iter, images_per_batch=cfg.SOLVER.IMS_PER_BATCH)
    seconds = trainer.storage.history("time").global_avg()
    job.images_per_second = round(cfg.SOLVER.IMS_PER_BATCH / seconds, 2)


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
        self.bar, self.stop = bar, stop

    def after_step(self) -> None:
        latest = self.trainer.storage.latest().get("total_loss")
        self.bar.step(f"loss {latest[0]:.3f}" if latest else "")
        done = self.trainer.iter + 1
        if self.stop and done < self.trainer.max_iter:
            self.trainer.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
            raise self.stop.interrupted(f"{done} of {self.trainer.max_iter} iterations")
