"""The notebook for free GPUs: it is kept without outputs, and runs from top to bottom, twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
import torch
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient

from tests.conftest import KIT
from triplet.models.networks import Networks
from triplet.published import gpus
from triplet.training import checkpoint

PATH = KIT / "docs" / "notebooks" / "free_gpu.ipynb"
DETECTION = f"""
_BASE_: {KIT}/configs/detection/demo.yaml
SOLVER: {{MAX_ITER: 4, STEPS: [3], IMS_PER_BATCH: 2, BASE_LR: 0.001, WARMUP_ITERS: 1}}
TEST: {{PRECISE_BN: {{NUM_ITER: 1}}}}
"""


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def cell(notebook, name):
    return next(each for each in notebook.cells if each.id == name)


def test_the_notebook_is_valid_and_holds_no_outputs(notebook):
    nbformat.validate(notebook)
    for each in notebook.cells:
        assert each.cell_type == "markdown" or (each.outputs, each.execution_count) == ([], None)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    assert [each.id for each in notebook.cells if "parameters" in each.metadata.get("tags", [])] == [
        "parameters"
    ]


def test_a_session_is_as_long_as_the_plan_counts_it(notebook):
    settings = {}
    exec(cell(notebook, "parameters").source, settings)
    for preset in gpus.cards().presets.values():
        assert preset.training_hours == settings["SESSION_HOURS"]


def shown(notebook, command, **options):
    """Call the notebook's function that runs a command."""
    names = {}
    exec(cell(notebook, "host").source, names)
    return names["show"](command, **options)


def test_a_command_that_is_late_is_told_to_save(notebook, capfd, tmp_path):
    """Told by way of make, which passes it on; what it prints meanwhile is shown."""
    (tmp_path / "work.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved') or 143))\n"
        "print('working', flush=True)\n"
        "time.sleep(60)\n"
    )
    recipe = f"SHELL := bash\nwork:\n\t@SOME=value {sys.executable} {tmp_path / 'work.py'}\n"
    (tmp_path / "Makefile").write_text(recipe)
    began = time.monotonic()
    assert not shown(notebook, ["make", "-C", str(tmp_path), "work"], stop_after=0.5)
    assert time.monotonic() - began < 30
    printed = capfd.readouterr().out
    assert "working\n" in printed
    assert "saved\n" in printed


def test_a_command_that_fails_ends_the_notebook(notebook):
    with pytest.raises(RuntimeError, match="failed, see above: make nothing-of-this-name"):
        shown(notebook, ["make", "nothing-of-this-name"])


def test_the_stop_button_lets_a_command_save(notebook, capfd, tmp_path):
    script = "trap 'echo saved; exit 143' TERM; echo working; for _ in $(seq 100); do sleep 0.1; done"
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        shown(notebook, ["bash", "-c", script])
    assert "saved" in capfd.readouterr().out


def test_without_an_address_it_says_what_to_set(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"Path": Path, "KIT": "", "attached": lambda name: "", "scratch": tmp_path}
    with pytest.raises(RuntimeError, match="set KIT in the first cell"):
        exec(cell(notebook, "kit").source, names)


def execute(notebook, folder, environment, **parameters):
    """Run all cells by this Python, with parameters of our own; return what they print, and the pages."""
    given = "".join(f"{name} = {value!r}\n" for name, value in parameters.items())
    copy = nbformat.v4.new_code_cell(given, id="injected")
    notebook.cells.insert(notebook.cells.index(cell(notebook, "parameters")) + 1, copy)
    manager = KernelManager()
    manager._kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
    )
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, km=manager, timeout=600, startup_timeout=600, resources=resources)
    try:
        client.execute(env={**os.environ, **environment})
    finally:  # nbclient leaves a kernel that it was given
        manager.shutdown_kernel(now=True)
    outputs = [output for each in notebook.cells for output in each.get("outputs", [])]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    pages = [output.data["text/html"] for output in outputs if output.output_type == "execute_result"]
    return text, pages


@pytest.mark.slow
@pytest.mark.timeout(900)  # eleven commands, each of which imports torch anew
def test_the_notebook_runs_from_top_to_bottom_and_goes_on(drawn, tmp_path):
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "backbone.pth", Networks(50, 8, 8, 8), None, 0, 0)
    (tmp_path / "detection.yaml").write_text(DETECTION)
    parameters = dict(
        KIT=str(KIT),
        COCO=str(drawn),
        LENGTH="",
        WEIGHTS=str(tmp_path / "backbone.pth"),
        DETECTION=str(tmp_path / "detection.yaml"),
        PRESET="kaggle",
    )
    environment = {"TRIPLET_DATASETS": str(tmp_path / "datasets"), "IPYTHONDIR": str(tmp_path / "ipython")}
    first = nbformat.read(PATH, as_version=4)
    said, pages = execute(first, tmp_path, environment, **parameters, STORAGE=str(tmp_path / "one"))
    assert "expected AP of triplet" in said
    assert "2 x T4" in said
    assert "convert: 318 tensors, all equal in Detectron2's model" in said
    assert "finetune: 4/4" in said
    assert "eval: box AP" in said
    assert "done already" in said  # the set-up
    (page,) = pages
    assert page.startswith('<div><iframe title="The report" srcdoc="&lt;!doctype html&gt;')

    # The next session finds what the first one has left, as another input.
    earlier = str(tmp_path / "one" / "checkpoints")
    second = nbformat.read(PATH, as_version=4)
    again, _ = execute(
        second, tmp_path, environment, **parameters, STORAGE=str(tmp_path / "two"), EARLIER=earlier
    )
    assert f"storage: {tmp_path / 'two'}, going on from {earlier}" in again
    for stage in ("convert", "finetune", "eval"):
        assert f"{stage}: done already (checkpoints/triplet/{stage}" in again


@pytest.mark.slow
def test_the_environment_beside_shares_torch_and_nothing_else(tmp_path):
    """The script itself, in a copy of the kit's committed files and of these scripts."""
    kit = tmp_path / "kit"
    subprocess.run(["git", "clone", "--quiet", "--shared", str(KIT), str(kit)], check=True)
    script = KIT / "scripts" / "beside.sh"
    (kit / "scripts" / script.name).write_bytes(script.read_bytes())
    command = ["bash", kit / "scripts" / script.name, sys.executable]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{sys.version.split()[0]} with its torch {torch.__version__}" in done.stdout
    asked = "import torch, numpy, detectron2, triplet as t; print(*[m.__file__ for m in (torch, numpy, t)])"
    found = subprocess.run(
        [kit / ".venv/bin/python", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()
    assert found[0] == torch.__file__
    assert all(Path(path).is_relative_to(kit) for path in found[1:])
    planned = subprocess.run(["make", "-n", "plan"], cwd=kit, capture_output=True, text=True, check=True)
    assert "setup.sh" not in planned.stdout  # make takes it for the environment


def test_a_python_without_torch_is_refused(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(["bash", KIT / "scripts" / "beside.sh", python], capture_output=True, text=True)
    assert done.returncode == 2
    assert "has no torch to share" in done.stderr
    assert done.stderr.count("\n") == 1
