"""The finetune stage: train a detector from converted weights with Detectron2, on the user's hardware."""

import contextlib
import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.detection import budget, log_capture, own_data, proof, resolve
from benchmarks.detection.loading import loaders
from benchmarks.detection.plan import FinetuneOptions, FinetunePlan
from benchmarks.detection.trainer import CheckpointHook, Trainer
from triplet import files, paths, records
from triplet.datasets.source import DataSource
from triplet.errors import KitError, message_of, out_of_memory
from triplet.progress import Bar, say
from triplet.runs import of_this_machine
from triplet.signals import graceful
from triplet.training import checkpoint
from triplet.training.distributed import Processes, join, perform

from detectron2.utils.env import seed_all_rng

FINAL = "model_final.pth"
"""File name that Detectron2 gives the trained model."""


def finetune(
    run: str, config: Path | None, dataset: DataSource, options: FinetuneOptions | None = None
) -> None:
    """Finetune the run's converted weights on a data set.

    Under torchrun every process calls this; the main process keeps the record.

    Args:
        run: a run whose convert stage is done.
        config: Detectron2's YAML; by default that of the run's method.
        dataset: data in the layout that the config's DATASETS.TRAIN names, COCO 2017's or PASCAL VOC's, or
            the user's own.
        options: the user's options; each has the best choice as default.

    Raises:
        KitError: weights that do not load, a data set or GPUs that do not fit, a loss that is not finite.
        Interrupted: a signal stopped the training, after saving.
    """
    options = options or FinetuneOptions()
    with join() as processes:
        folder = own_data.place(run, dataset, processes, force=options.force)
        plan = resolve.resolve(run, config, folder, options, processes)
        if processes.is_main_process:
            for line in plan.lines([each for each in of_this_machine() if each.run != run]):
                say(f"finetune: {line}")
        perform(
            processes,
            "finetune",
            paths.stage_folder(run, "finetune"),
            work=lambda job: _train(plan, processes, job),
            config=plan.record,
            inputs=plan.inputs,
            seen=plan.seen,
            force=options.force,
            upkeep=replace(checkpoint.UPKEEP, trained=partial(checkpoint.trained, unit="iterations")),
            seed=plan.seed,
        )


def _train(plan: FinetunePlan, processes: Processes, job: records.Job) -> None:
    """Train from the newest checkpoint on, and fill in the job."""
    log = job.folder / "log.txt" if processes.is_main_process else Path(os.devnull)
    state = _newest_state(job, plan.iterations, processes)
    start, trained = state.get("step", 0), state.get("trained", False)
    if processes.is_main_process:
        files.cut_lines(job.folder / "metrics.json", "iteration", start - 1)  # before the trainer opens it
        say(f"finetune: {processes.use_cores(loaders(plan.cfg, processes))}")
    seed_all_rng(plan.seed + 1_000_003 * processes.rank + start)
    hook: CheckpointHook | None = None
    with graceful() as stop, contextlib.ExitStack() as closing:
        try:
            with log_capture.log_to(log):
                _log_header(plan)
                trainer = Trainer(plan.cfg, processes, plan.images, plan.precision, start, stop)
                closing.enter_context(contextlib.closing(trainer.data_loader))
                loaded = proof.load_and_check(trainer.network, Path(plan.cfg.MODEL.WEIGHTS))
                job.check_inputs()
                if state:
                    trainer.restore(state)
                    state.clear()
            with Bar("finetune", trainer.max_iter, start, quiet=not processes.is_main_process) as bar:
                hook = CheckpointHook(bar, job, plan.cfg.SOLVER.CHECKPOINT_PERIOD)
                trainer.register_hooks([hook])
                with log_capture.log_to(log):
                    trainer.train(start, trainer.max_iter)
            if not trained and (passes := trainer.precise_passes):
                with (
                    Bar("precise BN", passes, quiet=not processes.is_main_process) as bar,
                    log_capture.log_to(log),
                ):
                    trainer.precise_bn(bar)
        except FloatingPointError as error:
            reason = message_of(error, 120)
            raise KitError(f"{reason}; lower SOLVER.BASE_LR; see {log}") from None
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise _full_gpu(plan, saved=hook.reached if hook else start) from None
    if processes.is_main_process:
        _write_results(plan, trainer, hook, loaded, job)


def _newest_state(job: records.Job, iterations: int, processes: Processes) -> dict[str, Any]:
    """Return the main process's newest usable checkpoint on every process; empty if there is none.

    If a training is finished but its record is damaged, this is the final model, with ``trained`` set.
    """
    found: dict[str, Any] = {}
    if processes.is_main_process:
        final = None
        if job.lost_record:
            final = checkpoint.finished(job.folder / FINAL, iterations, job.plan)
        if final:
            found.update(final, trained=True)
        else:
            checkpoint.newest(job.folder, lambda _, state: found.update(state), iterations, job.plan)
    state: dict[str, Any] = processes.broadcast_object(found)
    return state


def _log_header(plan: FinetunePlan) -> None:
    """Log the facts that ``triplet explain`` reads."""
    log = logging.getLogger(__name__)
    log.info("World size: %d; BN over %d images", plan.processes, plan.bn_images)
    log.info("Running with full config:\n%s", plan.cfg.dump())


def _full_gpu(plan: FinetunePlan, saved: int) -> KitError:
    """Return the error for a GPU that is out of memory after ``saved`` iterations in checkpoints."""
    if plan.bn_images and saved:
        return KitError(budget.full(plan.images, kept=True))
    return KitError(budget.full(plan.images) + (", and --force" if plan.bn_images else ""))


def _write_results(
    plan: FinetunePlan, trainer: Trainer, hook: CheckpointHook, loaded: int, job: records.Job
) -> None:
    """Write the model and its config, and fill in the job.

    Args:
        plan: the plan of the training.
        trainer: the trainer, after the training.
        hook: the hook that has counted this session's iterations.
        loaded: number of tensors that the converted weights filled.
        job: the stage's record.
    """
    final, resolved = job.folder / FINAL, job.folder / "config.yaml"
    named = {"classes": list(plan.classes), "category_ids": list(plan.category_ids)}
    state = {"model": trainer.network.state_dict(), "step": plan.iterations, **named}
    checkpoint.write(final, state, job.plan)
    files.write_text(resolved, plan.cfg.dump())
    job.outputs.update(model=final, config=resolved, metrics=job.folder / "metrics.json")
    assert plan.dataset_images
    job.results.update(
        loaded_tensors=loaded,
        iterations=plan.iterations,
        images=plan.dataset_images,
        images_per_batch=plan.batch,
        epochs=round(plan.iterations * plan.batch / plan.dataset_images, 3),
        passes=plan.passes,
        **named,
    )
    if hook.steps:
        job.images_per_second = round(hook.steps * plan.batch / hook.seconds, 2)
