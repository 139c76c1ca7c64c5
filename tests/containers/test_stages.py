"""The stages through `docker compose run`: in and out of order, as another user, stopped and resumed."""

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.containers.conftest import call
from triplet.pull.synthetic import draw_dataset

CHAIN = {
    "RUN": "demo/seed0/triplet",
    "PRETRAIN": "configs/tiny/pretrain.yaml",
    "IMAGES": "demo/unlabelled",
    "DETECTION": "configs/tiny/detection.yaml",
    "COCO": "demo",
}
DRAW = ("demo", "--config", "configs/tiny/data.yaml")
STRANGER = "12345:23456"


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def chain(kit) -> dict[str, str]:
    """What every stage of one run said, each started as the README says."""
    said = {"pull": ok(kit.run("pull", *DRAW))}
    for stage in ("pretrain", "convert", "finetune", "eval", "report"):
        said[stage] = ok(kit.run(stage, **CHAIN))
    return said


def test_out_of_order_says_what_to_run_first(kit):
    done = kit.run("eval", RUN="nothing/yet")
    assert done.returncode == 2
    assert "run first: make finetune RUN=nothing/yet" in done.stderr


def test_the_chain_ends_in_a_report_that_names_the_image(kit, chain):
    assert "all equal in Detectron2's model" in chain["convert"]
    assert "box AP" in chain["eval"]
    page = (kit.folder / "reports" / "index.html").read_text()
    assert kit.image in page
    record = kit.record("demo/seed0/triplet", "eval")
    assert record["image"] == kit.image
    assert record["command"] == "triplet eval --run demo/seed0/triplet --data demo"
    revision = call("git", "rev-parse", "HEAD", cwd=kit.folder).stdout
    assert revision.startswith(record["commit"].rstrip("+"))


def test_done_stages_are_skipped(kit, chain):
    for stage in ("pretrain", "convert", "finetune", "eval"):
        assert f"{stage}: done already" in ok(kit.run(stage, **CHAIN))


def test_make_runs_the_same(kit, chain):
    given = [f"{key}={value}" for key, value in CHAIN.items()]
    done = call("make", "eval", "RUNTIME=docker", *given, cwd=kit.folder, **kit.environment)
    assert "eval: done already" in ok(done)


def test_a_backbone_is_exported_as_onnx(kit, chain):
    assert "backbone.onnx" in ok(kit.run("export", RUN=CHAIN["RUN"], FORMAT="onnx"))


def test_the_demo_is_the_same_stages(kit, chain):
    """As one command; it finds all of them done."""
    said = ok(kit.run("demo", ARGS="--config configs/tiny/data.yaml"))
    assert said.count("done already") == 5
    assert "report: reports/index.html (1 runs)" in said


@pytest.fixture(scope="module")
def theirs(kit, chain, tmp_path_factory) -> Path:
    """One pretraining by a user without a name, from images at a path of this machine, by two processes."""
    folder = tmp_path_factory.mktemp("theirs")
    folder.chmod(0o755)
    draw_dataset(folder / "drawn", TINY)
    given = {
        **CHAIN,
        "RUN": "stranger/triplet",
        "IMAGES": str(folder / "drawn" / "unlabelled"),
        "GPUS": "2",
    }
    made = [f"{key}={value}" for key, value in given.items()]
    whose = {**kit.environment, "TRIPLET_USER": STRANGER}
    ok(call("make", "pretrain", "RUNTIME=docker", *made, cwd=kit.folder, **whose))
    return folder


def test_another_user_without_a_name_can_work(kit, theirs):
    """The volumes are the first user's; the report goes to a folder of this one's."""
    reports = theirs / "reports"
    reports.mkdir()
    os.chown(reports, *map(int, STRANGER.split(":")))
    given = {**CHAIN, "RUN": "stranger/triplet", "TRIPLET_USER": STRANGER, "TRIPLET_REPORTS": str(reports)}
    for stage in ("convert", "report"):
        ok(kit.run(stage, **given))
    assert (reports / "index.html").stat().st_uid == 12345
    owner = kit.python(
        "import os; print(os.stat('/checkpoints/stranger/triplet/pretrain/record.json').st_uid)"
    )
    assert owner.strip() == "12345"


def test_data_of_the_user_by_its_path(kit, theirs):
    """make mounts what is named by an absolute path, read-only, where it is."""
    record = kit.record("stranger/triplet", "pretrain")
    assert record["inputs"]["images"]["path"] == str(theirs / "drawn" / "unlabelled")


def test_several_processes_share_a_step(kit, theirs):
    assert kit.record("stranger/triplet", "pretrain")["world_size"] == 2


def test_a_stopped_pretraining_goes_on(kit, chain):
    """Typed at a terminal, stopped in the middle in each way; nothing that was done is done again."""
    given = {**CHAIN, "RUN": "stopped/triplet", "ARGS": "schedule.epochs=30"}
    done = metrics(kit, "stopped/triplet")
    assert done == []
    for how, signalled in (("docker stop", 143), ("Ctrl-C", 130), ("", 0)):
        if how:
            code, said = stopped(kit, given, how)
            assert code == signalled, said
            assert "saving, then stopping" in said
        else:
            ok(kit.run("pretrain", **given))
        before, done = done, metrics(kit, "stopped/triplet")
        assert done[: len(before)] == before, how
        assert len(done) > len(before), how


def metrics(kit, run: str) -> list[str]:
    """What a pretraining has measured so far, in words."""
    return kit.python(
        f"import pathlib; path = pathlib.Path('/checkpoints/{run}/pretrain/metrics.jsonl'); "
        "print(path.read_text() if path.exists() else '')"
    ).split()


def stopped(kit, given: dict[str, str], how: str) -> tuple[int, str]:
    """Start a pretraining at a terminal, stop it after its first step: exit code and what it said."""
    name = "triplet-test-stopped"
    terminal, theirs = pty.openpty()
    started = subprocess.Popen(
        ["docker", "compose", "run", "--rm", "--name", name, "pretrain"],
        cwd=kit.folder,
        env={**os.environ, **kit.environment, **given},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = read(terminal, until="loss")
    if how == "docker stop":
        assert call("docker", "stop", name).returncode == 0
    else:
        os.write(terminal, b"\x03")
    said += read(terminal)
    os.close(terminal)
    return started.wait(60), said


def read(terminal: int, until: str = "") -> str:
    """What a terminal shows, to its end or to the given text."""
    said = ""
    while not (until and until in said):
        try:
            said += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # the other side is closed
            break
    return said


def test_torch_compile_works_as_any_user(kit):
    """The fast configs compile while they train: with the image's compiler, into /tmp."""
    code = "import torch; f = torch.compile(lambda x: (x.sin() + 1).sum()); print(float(f(torch.zeros(8))))"
    assert kit.python(code, TRIPLET_USER=STRANGER).strip() == "8.0"


def test_every_stage_follows_openselfsup(full):
    """What OpenSelfSup pretrained in the image is converted, finetuned, evaluated and reported there."""
    ok(full.run("pull", *DRAW))
    arguments = "data.imgs_per_gpu=12 data.workers_per_gpu=0 total_epochs=1"
    deeper = (
        "model.backbone.depth=50 model.neck.in_channels=2048"  # Detectron2's C4 models have bottlenecks
    )
    given = {
        **CHAIN,
        "RUN": "other/triplet",
        "ENGINE": "openselfsup",
        "DETECTION": "configs/tiny/wide.yaml",
        "PRETRAIN": "configs/openselfsup/demo.yaml",
    }
    ok(full.run("pretrain", **given, ARGS=f"{arguments} {deeper}"))
    assert full.record("other/triplet", "pretrain")["config"]["engine"] == "openselfsup"
    said = {stage: ok(full.run(stage, **given)) for stage in ("convert", "finetune", "eval", "report")}
    assert "all equal in Detectron2's model" in said["convert"]
    assert "box AP" in said["eval"]
    assert full.record("other/triplet", "eval")["image"] == full.image
    assert full.image in (full.folder / "reports" / "index.html").read_text()


@pytest.mark.skipif(
    shutil.which("nvidia-container-runtime-hook") is not None, reason="GPUs can be given here"
)
def test_gpus_where_there_are_none(kit):
    files = {"COMPOSE_FILE": "compose.yaml:compose.gpu.yaml"}
    done = kit.run("finetune", **files)
    assert done.returncode != 0
    assert 'could not select device driver "nvidia" with capabilities: [[gpu]]' in done.stderr
    made = call("make", "finetune", "RUNTIME=docker", cwd=kit.folder, **{**kit.environment, **files})
    assert made.returncode == 2
    assert "nvidia-container-toolkit is missing; install it and restart the engine" in made.stderr


def test_data_is_deleted_only_when_asked_for(kit, chain):
    """Last in this file: it deletes the runs of the others."""
    refused = call("make", "clean-checkpoints", "RUNTIME=docker", cwd=kit.folder, **kit.environment)
    assert refused.returncode == 2
    assert "without a terminal to ask at, say YES=1" in refused.stderr
    assert kit.record("demo/seed0/triplet", "eval")
    done = call("make", "clean-checkpoints", "RUNTIME=docker", "YES=1", cwd=kit.folder, **kit.environment)
    assert "deleted checkpoints" in ok(done)
    assert "triplet-test_checkpoints" not in call("docker", "volume", "ls", "--quiet").stdout
