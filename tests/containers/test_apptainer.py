"""The image as Apptainer's file, in jobs of a real Slurm: a whole chain in small, stopped and resumed."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import placed
from tests.containers.conftest import HERE, TINY, call, say
from tests.support.slurm import began_at, cluster, log, stop_in_time, submit, told, unavailable, wait_until

pytestmark = pytest.mark.skipif(
    "TRIPLET_APPTAINER" not in os.environ, reason="writes 20 GB: TRIPLET_APPTAINER=1 runs it"
)

RUN = "in apptainer/triplet"
DETECTION = (TINY / "detection.yaml").read_text().replace("../detection", "/kit/configs/detection")


@pytest.fixture(scope="module")
def sif(kit, tmp_path_factory, pytestconfig) -> Iterator[Path]:
    """What docs/clusters.md says, except for the compression: gzip takes many times longer."""
    folder = tmp_path_factory.mktemp("apptainer")
    archive, sif = folder / "triplet-kit.tar", folder / "triplet-kit.sif"
    (folder / "apptainer").symlink_to(HERE / "apptainer.sh")
    quick = ("--mksquashfs-args=-comp zstd -Xcompression-level 1", str(sif), f"docker-archive:{archive}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        patch.setenv("APPTAINER_TMPDIR", str(folder))
        patch.setenv("APPTAINER_DISABLE_CACHE", "1")
        with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            say("an image for Apptainer")
            if (lacking := call("apptainer", "--version")).returncode:
                reason = f"no Apptainer can be had: {lacking.stderr.strip()[-300:]}"
                (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
            for command in (
                ("make", "image-tar", f"OUTPUT={archive}"),
                ("apptainer", "build", *quick),
            ):
                done = call(*command, cwd=kit.folder, **kit.environment)
                assert done.returncode == 0, done.stdout + done.stderr
        archive.unlink()
        yield sif
    shutil.rmtree(folder)


@pytest.fixture
def slurm(tmp_path) -> Iterator[Path]:
    """The three places, on a running cluster."""
    if lacking := unavailable():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lacking)
    with cluster(tmp_path), placed(tmp_path):
        yield tmp_path


def test_a_chain_is_stopped_and_resumed_to_its_report(sif, slurm, capsys):
    (slurm / "detection.yaml").write_text(DETECTION)
    detection = f"--config {slurm}/detection.yaml"
    chain = (
        f"pull demo --config {TINY}/data.yaml",
        f"pretrain --config {TINY}/pretrain.yaml --data demo/unlabelled schedule.epochs=0",
        f"convert {detection}",
        f"finetune {detection} --data demo",
        "eval",
        "report",
    )
    jobs = submit(capsys, *chain, "--run", RUN, "--container", sif)
    stage = slurm / "checkpoints" / RUN / "finetune"
    stop_in_time(jobs["finetune"], stage, slurm)
    wait_until((slurm / "reports" / "index.html").exists, slurm)
    wait_until(lambda: told(jobs["report"])["JobState"] == "COMPLETED", slurm)
    assert len(began_at(stage)) == 2
    assert "stopped by SIGURG" in log(slurm, "finetune")
    record = json.loads((stage / "record.json").read_text())
    assert record["image"] == sif.name
    assert record["results"]["loaded_tensors"] == 318
