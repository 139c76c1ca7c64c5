"""The whole pipeline on a small scale: the commands of the real job, one after another."""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Annotated, NoReturn

import torch
from pydantic import Field

from triplet import coco, paths
from triplet.commands import typed
from triplet.config import Settings, load
from triplet.environment import usable_cores
from triplet.progress import say
from triplet.published.methods import load_methods
from triplet.pull.subset import Subset
from triplet.pull.synthetic import Drawn
from triplet.signals import graceful

Command = Callable[[list[str]], int]
"""A function that runs a command of the kit, given its arguments, and returns its exit code."""


class Demo(Settings):
    """The schema of configs/demo.yaml: the drawn images, and the training of the methods."""

    data: Drawn
    subset: Subset
    """Number of images to take from real data."""
    pretrain: Path
    """Config of the pretraining."""
    detection: Path
    """Detectron2 config of the finetuning."""
    methods: dict[str, list[str]]
    """Method -> overrides of its pretraining."""
    classes: Annotated[int, Field(ge=1)] = 3
    """Number of classes to take from real data: the most frequent ones."""
    pulled: Path | None = None
    """Detectron2 config for pulled weights. With real data the last method of the table that was pulled is
    used."""
    seeds: Annotated[list[int], Field(min_length=1)]


def demo(
    config: Path,
    call: Command,
    *,
    data: Path | None = None,
    images: Path | None = None,
    seeds: Sequence[int] | None = None,
    force: bool = False,
) -> int:
    """Run every stage for every method and seed, then the report.

    Args:
        config: configs/demo.yaml.
        call: runs one command of the kit, such as ``["eval", "--run", "demo"]``, and returns its exit code.
        data: a folder of annotated images; a subset of it is used instead of drawn images.
        images: a folder of images for the pretraining; with ``data`` alone, the subset's train images.
        seeds: seeds instead of the config's.
        force: whether to rerun stages that are done.

    Returns:
        The exit code of the first stage that failed, else 0.
    """
    if not torch.cuda.is_available():  # also true for a GPU whose driver is too old
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    settings = load(config, Demo)
    began = time.monotonic()
    again = ["--force"] if force else []
    name = "demo" if data is None else f"demo-{data.resolve().name}"
    if data is None:
        pull = ["pull", "demo", "--config", str(config)]
        unlabelled = images or Path("demo/unlabelled")
    else:
        pull = ["pull", "subset", "--config", str(config), "--from", str(data), "--name", name]
        pull += ["--classes", str(settings.classes)]
        unlabelled = images or Path(f"{name}/train2017")
    if code := _call(call, [*pull, *again]):
        return code
    content = coco.read(paths.root("datasets") / name, "train2017")
    classes = len(content["categories"])
    pulled = _pulled() if data and settings.pulled else None
    if data:
        names = [each["name"] for each in content["categories"]]
        say(_expectation(data, names, len(content["images"]), pulled))
    cores = 1 if torch.cuda.is_available() else usable_cores()
    for seed in seeds or settings.seeds:
        methods = {
            method: _commands(settings, method, seed, data=name, images=unlabelled, classes=classes)
            for method in settings.methods
        }
        if pulled:
            methods = {pulled: _finetune_pulled(settings, pulled, seed, data=name, classes=classes)}
        chains = {
            method: [[*command, *again] for command in commands] for method, commands in methods.items()
        }
        if code := _side_by_side(call, chains, cores) if cores > 1 else _in_turn(call, chains.values()):
            return code
    code = _call(call, ["report"])
    say(f"demo: {time.monotonic() - began:.0f} s in all")
    return code


def _commands(
    settings: Demo, method: str, seed: int, *, data: str, images: Path, classes: int
) -> list[list[str]]:
    """Return the commands of a method in order; ``classes`` is the number of the data's classes."""
    run = ["--run", f"{data}/seed{seed}/{method}"]
    detection = ["--config", str(settings.detection)]
    pretrain = ["--config", str(settings.pretrain), "--data", str(images), f"seed={seed}"]
    heads = f"MODEL.ROI_HEADS.NUM_CLASSES={classes}"
    return [
        ["pretrain", *run, *pretrain, *settings.methods[method]],
        ["convert", *run, *detection],
        ["finetune", *run, *detection, "--data", data, "--seed", str(seed), heads],
        ["eval", *run],
    ]


def _pulled() -> str | None:
    """Return the last method of the table whose weights were pulled and fit RGB images; None if there is
    none."""
    folder = paths.root("checkpoints") / "weights"
    trained = [method for method in load_methods().values() if not method.untrained]
    fitting = [
        name for method in reversed(trained) for name, kind in method.weights.items() if kind != "caffe2"
    ]
    return next((name for name in fitting if (folder / name / "record.json").is_file()), None)


def _expectation(data: Path, classes: Sequence[str], images: int, pulled: str | None) -> str:
    """Say in advance what to expect from so few images."""
    have = f"demo: {images} images of {data.name} with {', '.join(classes)}"
    real = typed("finetune", "--run", pulled or "triplet", "--data", str(data), "--schedule", "1/8x")
    pull = typed("pull", "weights", "--method", "triplet")
    if pulled:
        return (
            f"{have}; from the pulled weights of {pulled}. Expect a low AP of so few images and steps: "
            f"it shows that everything runs on your data. In earnest: {real}"
        )
    return (
        f"{have}. Expect a box AP near 0: a small network learns from nothing but these, for minutes "
        "(128 photographs of COCO came to 0.1). It shows that everything runs on your data. With "
        f"pretrained weights it starts from more: {pull}; in earnest: {real}"
    )


def _finetune_pulled(settings: Demo, method: str, seed: int, *, data: str, classes: int) -> list[list[str]]:
    """Return the commands of a method whose weights were pulled and need no pretraining."""
    run = ["--run", f"{data}/pulled/seed{seed}/{method}", "--config", str(settings.pulled)]
    heads = f"MODEL.ROI_HEADS.NUM_CLASSES={classes}"
    return [
        ["convert", *run],
        ["finetune", *run, "--data", data, "--seed", str(seed), heads],
        ["eval", *run[:2]],
    ]


def _in_turn(call: Command, chains: Iterable[list[list[str]]]) -> int:
    """Run commands until one fails; return its exit code, or 0."""
    return next((code for chain in chains for command in chain if (code := _call(call, command))), 0)


def _side_by_side(call: Command, chains: dict[str, list[list[str]]], cores: int) -> int:
    """Run each method's commands in a process of its own, and print their output after the method's name.

    Networks as small as the demo's gain almost nothing from a second core, and where other work takes turns
    on it two threads are slower than one. So each method keeps its share, also when others have ended. The
    first method that fails, or a signal, stops the others, which save their work.

    Args:
        call: see ``demo``.
        chains: commands of each method.
        cores: number of this machine's cores, which the methods share.

    Returns:
        The exit code of the method that failed first, else 0.
    """
    sys.stdout.flush()
    context = multiprocessing.get_context("fork")
    running, readers, threads = [], [], max(1, cores // len(chains))
    for method, chain in chains.items():
        here, there = os.pipe()
        running.append(context.Process(target=_method, args=(call, chain, there, threads)))
        running[-1].start()
        os.close(there)
        prefix = f"{method:{max(map(len, chains))}} | "
        readers.append(threading.Thread(target=_relay, args=(here, prefix)))
    for reader in readers:  # start threads only after the last fork
        reader.start()
    code, left, told = 0, list(running), False
    with graceful() as stop:
        while left:
            wait([process.sentinel for process in left], timeout=1)
            for process in [process for process in left if process.exitcode is not None]:
                left.remove(process)
                ended = process.exitcode or 0
                code = code or (ended if ended >= 0 else 128 - ended)
            if (stop or code) and not told:
                told = True
                for process in left:
                    process.terminate()
        for reader in readers:
            reader.join()
    return code


def _relay(descriptor: int, prefix: str) -> None:
    with os.fdopen(descriptor) as lines:
        for line in lines:
            say(prefix + line.rstrip("\n"))


def _method(call: Command, chain: list[list[str]], output: int, threads: int) -> NoReturn:
    """Run one method in a process, with as many threads as OMP_NUM_THREADS says, else ``threads``."""
    os.dup2(output, sys.stdout.fileno())
    os.close(output)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    sys.exit(_in_turn(call, [chain]))


def _call(call: Command, command: list[str]) -> int:
    say(f"\n$ {typed(*command)}")
    return call(command)
