"""The finetune stage: a detector from converted weights, by Detectron2, within the user's means."""

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.detection import budget, data, model, plan, proof, quiet
from benchmarks.detection.trainer import Trainer, Watch, data_size, loaders
from triplet import files, paths, records
from triplet.errors import KitError, out_of_memory
from triplet.progress import Bar, say
from triplet.signals import graceful
from triplet.training import checkpoint
from triplet.training.distributed import Processes, join, perform

from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng


def finetune(
    run: str,
    config: Path,
    dataset: Path,
    overrides: Sequence[str] = (),
    *,
    seed: int = 0,
    wish: plan.Wish | None = None,
    force: bool = False,
) -> None:
    """Finetune the run's converted weights on a data set.

    Under torchrun every process calls this; the first one keeps the record.

    Args:
        run: whose convert stage is done.
        config: Detectron2's YAML.
        dataset: folder in COCO 2017's or PASCAL VOC's layout, whichever the config's DATASETS.TRAIN names.
        overrides: ``KEY.SUB=value`` for Detectron2's settings.
        seed: of the heads, the sampling and the data order.
        wish: hours, schedule, precision, images in a pass; what is best unless given.
        force: start over.

    Raises:
        KitError: weights that do not arrive, a data set or GPUs that do not fit, a loss that is not finite.
        Interrupted: stopped by a signal, after saving.
    """
    converted = records.require(run, "convert")
    weights = records.output(converted, "weights")
    cfg = model.load_config(config, overrides)
    proof.check_pixel_path(cfg, converted)
    wish = wish or plan.Wish()
    folder = paths.stage_folder(run, "finetune")
    with join() as processes:
        processes.use_cores(loaders(cfg, processes))
        begun = records.begun(folder) if processes.is_main_process and not force else None
        kept = processes.broadcast_object(begun.config if begun else None)
        processes.assert_same("converted weights", records.Artifact.of(weights).sha256)
        processes.assert_same("settings", [model.plain(cfg), seed, asdict(wish)])
        names, categories = data.training(cfg, dataset)
        here = cfg.clone()
        here.merge_from_list(
            ["DATASETS.TRAIN", names, "DATASETS.TEST", (), "OUTPUT_DIR", str(folder),
             "MODEL.WEIGHTS", str(weights), "SEED", seed]
        )  # fmt: skip
        saved = checkpoint.checkpoints(folder) if kept else []
        done = processes.broadcast_object(checkpoint.step_of(saved[0]) if saved else 0)
        whole = here
        here, wish = plan.settle(whole, processes, wish, kept)

        def planned(precision: str | None, images: int | None) -> dict[str, Any]:
            return {
                "dataset": paths.portable(dataset),
                "seed": seed,
                "detectron2": model.plain(budget.with_schedule(cfg, here.SOLVER)),
                "precision": precision,
                "bn_images": budget.bn_images(cfg, processes.size, images or 1),
                **({"hours": wish.hours} if wish.hours else {}),
            }

        if kept:  # before anything is measured
            before = records.Plan(stage="finetune", config=kept, inputs={})
            ours = records.Plan(
                stage="finetune", config=planned(wish.precision, wish.images or wish.kept), inputs={}
            )
            # The first one's, as in the record: on other nodes the data may lie elsewhere.
            if changes := processes.broadcast_object(before.changes(ours)):
                trained = f"with {done} iterations trained" if done else ""
                raise records.other(folder, "finetune", changes, trained)
        here, chosen = plan.choose(run, model.plain(cfg), whole, here, processes, wish, bool(kept), done)
        perform(
            processes,
            "finetune",
            folder,
            work=lambda job: _train(here, chosen, processes, job, seed, categories),
            config=planned(chosen.precision, chosen.images),
            inputs={"weights": weights, **data.inputs(cfg, dataset, train=True)},
            force=force,
            scratch=checkpoint.SCRATCH,
            seed=seed,
        )


def _train(
    cfg: CfgNode,
    chosen: plan.Plan,
    processes: Processes,
    job: records.Job,
    seed: int,
    categories: list[str],
) -> None:
    log = job.folder / "log.txt" if processes.is_main_process else Path(os.devnull)
    saved: dict[str, Any] = {}
    if processes.is_main_process:
        checkpoint.newest(
            job.folder, lambda path: saved.update(torch.load(path, map_location="cpu", weights_only=True))
        )
    state = processes.broadcast_object(saved)
    start = state.get("step", 0)
    metrics = job.folder / "metrics.json"
    if processes.is_main_process:
        files.cut_lines(metrics, "iteration", start - 1)  # before the trainer opens it
    seed_all_rng(seed + 1_000_003 * processes.rank + start)
    pool = budget.bn_images(cfg, processes.size, chosen.images)
    if processes.is_main_process:
        say(f"finetune: {processes.use_cores(loaders(cfg, processes))}")
    watch: Watch | None = None
    with graceful() as stop, contextlib.ExitStack() as closing:
        try:
            with quiet.log_to(log):
                told = logging.getLogger(__name__)  # what triplet explain reads
                told.info("World size: %d; BN over %d images", processes.size, pool)
                told.info("Running with full config:\n%s", cfg.dump())
                trainer = Trainer(cfg, processes, chosen.images, chosen.precision, start, stop)
                closing.enter_context(contextlib.closing(trainer.data_loader))
                count = proof.load_and_check(trainer.network, Path(cfg.MODEL.WEIGHTS))
                if state:
                    trainer.restore(state)
                    state.clear()
            with Bar("finetune", trainer.max_iter, start, quiet=not processes.is_main_process) as bar:
                watch = Watch(bar, job.folder, cfg.SOLVER.CHECKPOINT_PERIOD)
                trainer.register_hooks([watch])
                with quiet.log_to(log):
                    trainer.train(start, trainer.max_iter)
            if passes := trainer.precise_passes:
                with (
                    Bar("precise BN", passes, quiet=not processes.is_main_process) as bar,
                    quiet.log_to(log),
                ):
                    trainer.precise_bn(bar)
        except FloatingPointError as error:
            reason = " ".join(str(error).split())[:120]
            raise KitError(f"{reason}; lower SOLVER.BASE_LR; see {log}") from None
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if pool and (watch.reached if watch else start):
                raise KitError(budget.full(chosen.images, kept=True)) from None
            raise KitError(budget.full(chosen.images) + ", and --force" * bool(pool)) from None
    if not processes.is_main_process:
        return
    final, resolved = job.folder / "model_final.pth", job.folder / "config.yaml"
    checkpoint.write(final, {"model": trainer.network.state_dict()})
    files.write_text(resolved, cfg.dump())
    job.outputs.update(model=final, config=resolved, metrics=metrics)
    batch = cfg.SOLVER.IMS_PER_BATCH
    job.results.update(
        loaded_tensors=count,
        iterations=trainer.max_iter,
        images=data_size(cfg),
        images_per_batch=batch,
        epochs=round(trainer.max_iter * batch / data_size(cfg), 3),
        passes=batch // processes.size // chosen.images,
        categories=categories,
    )
    if watch and watch.steps:
        job.images_per_second = round(watch.steps * batch / watch.seconds, 2)
