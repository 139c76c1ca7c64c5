"""The probe leaves a whole file whatever happens to it or to what it runs. No time is asserted."""

import importlib.metadata
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from benchmarks.speed import probe
from tests.conftest import KIT
from tests.support import fake_probes
from tests.support.fake_probes import fake

BARE = [
    "torch",
    "triton",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "jinja2",
    "rich",
    "opencv-python-headless",
    "timm",
    "lightning",
    "pytest",
    "tensorboard",
    "nvidia-ml-py",
]
"""Distributions of the machine to plan for."""
NEEDED = ["pyyaml", "fsspec", "packaging", "tqdm", "typing-extensions", "optree"]
"""What lightning and timm need, which are not installed here; and what torch looks for by its metadata."""


@pytest.fixture(autouse=True)
def own_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run fake probes; the exit code and the file's content."""
    monkeypatch.setattr(probe, "PROBES_MODULE", fake_probes.MODULE)

    def run(probes, *arguments):
        monkeypatch.setattr(probe, "PROBES", probes)
        output = tmp_path / "sub" / "gpu.json"
        code = probe.main(["--output", str(output), "--wheels", str(tmp_path), *arguments])
        return code, json.loads(output.read_text())

    return run


def test_each_probe_leaves_its_results_or_its_reason(run, capsys):
    code, content = run(fake("first", "crash", "fail", "senseless", "last"))
    assert code == 1
    entries = {each["name"]: each for each in content["probes"]}
    assert content["complete"]
    statuses = ["done", "failed", "failed", "skipped", "done"]
    assert [each["status"] for each in entries.values()] == statuses
    assert entries["crash"]["reason"].startswith("killed by SIGSEGV")
    assert entries["fail"]["reason"] == "the last words"
    assert entries["senseless"]["reason"] == "no such thing here"
    assert entries["last"]["results"]["summary"] == "last measured"
    assert entries["crash"]["results"] == {"begun": True}, "what it had by then stays"
    out = capsys.readouterr().out
    assert "1 first" in out
    assert "first measured" in out
    assert "no such thing here" in out


def test_a_probe_that_hangs_is_cut_off(run):
    code, content = run(fake("hang", seconds=0.3), "--seconds", "0.5")
    (entry,) = content["probes"]
    assert (code, entry["status"]) == (1, "timed out")
    assert entry["reason"].startswith("did not end within 0 s")
    assert entry["results"] == {"begun": True}


def test_none_is_begun_that_the_time_cannot_hold(run):
    code, content = run([*fake("one"), *fake("two", seconds=1000)], "--seconds", "100")
    one, two = content["probes"]
    assert (code, one["status"], two["status"]) == (0, "done", "skipped")
    assert re.fullmatch(r"needs 1000 s; \d+ s were left", two["reason"])


def test_time_that_is_not_needed_is_the_next_ones(run):
    _, content = run(fake("one", "two"), "--seconds", "100")
    assert [each["limit"] for each in content["probes"]] == [
        pytest.approx(95, abs=1),
        pytest.approx(99, abs=4),
    ]


def test_segments_are_fixed_where_they_cannot_grow(run, monkeypatch):
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    _, content = run(fake("one", "two"))
    assert content["probes"][0]["results"]["allocator"] is None
    assert content["probes"][1]["results"]["allocator"] == "expandable_segments:False"
    assert probe._allocator({"results": {"expandable_segments": "yes"}}) == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    assert run(fake("one", "two"))[1]["allocator"] == "backend:native"


def test_wheels_are_brought_along(run, tmp_path):
    with zipfile.ZipFile(tmp_path / "brought_along-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("brought_along.py", "")
    _, content = run(fake("one"))
    assert content["probes"][0]["results"]["brought"]


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    output, rng = tmp_path / "gpu.json", random.Random(0)
    for number in range(6):
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fake_probes", "drive", str(output)],
            cwd=KIT,
            stdout=subprocess.DEVNULL,
        )
        until = time.monotonic() + (60 if number == 0 else rng.uniform(0.1, 0.7))
        while time.monotonic() < until and not (number == 0 and "hang" in running(output)):
            time.sleep(0.01)
        driver.send_signal(signal.SIGTERM if number == 0 else signal.SIGKILL)
        assert driver.wait(60) == (143 if number == 0 else -signal.SIGKILL)
        entries = json.loads(output.read_text())["probes"]
        if number == 0:
            assert [each["status"] for each in entries] == ["done", "done", "interrupted"]
            assert entries[-1]["reason"] == "a signal asked for the end"
    until = time.monotonic() + 20
    while alive(str(output.parent)) and time.monotonic() < until:
        time.sleep(0.05)  # the probes end with it
    assert not alive(str(output.parent))


def running(output):
    try:
        entries = json.loads(output.read_text())["probes"]
    except FileNotFoundError:
        return set()
    return {each["name"] for each in entries if each["status"] == "running"}


def alive(word):
    """Command lines of fake probes that hang and were told of a place."""
    done = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "fake_probes hang" in line and word in line]


def test_a_place_that_cannot_be_written_gets_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    assert probe.main(["--output", str(tmp_path / "file" / "gpu.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_kernels_are_told_apart_by_their_names():
    from benchmarks.speed.probes_training import kernel_kinds

    kinds = kernel_kinds(
        {
            "sm90_xmma_fprop_implicit_gemm_bf16": 1.0,
            "void cudnn::bn_fw_tr_1C11_kernel_NCHW<float>": 2.0,
            "void nchwToNhwcKernel<__nv_bfloat16>": 4.0,
            "Memcpy HtoD (Pinned -> Device)": 8.0,
            "vectorized_elementwise_kernel": 16.0,
        }
    )
    assert kinds == {
        "transposes": 4.0,
        "batch norm": 2.0,
        "convolutions": 1.0,
        "copies": 8.0,
        "other": 16.0,
    }


def hidden(kept):
    """Top-level modules of what is installed here and not among these distributions nor needed by them."""
    wanted, known = list(kept), set()
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in known:
            continue
        known.add(name)
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        wanted += [re.match(r"[\w.-]+", each)[0] for each in requires if "extra ==" not in each]
    known |= {"triplet-kit"}
    modules = importlib.metadata.packages_distributions()
    return {
        module
        for module, names in modules.items()
        if not any(re.sub(r"[-_.]+", "-", name).lower() in known for name in names)
        and module not in sys.stdlib_module_names
    }


def brought():
    """The packages that scripts/wheels.sh puts together."""
    text = (KIT / "scripts" / "wheels.sh").read_text()
    block = re.search(r"^names=\(\n(.*?)^\)", text, re.S | re.M)[1]
    return re.sub(r"#.*", "", block).split()


def probed(tmp_path, kept, *arguments, program=("benchmarks.speed.probe",)):
    environment = {
        **os.environ,
        "HIDDEN_MODULES": " ".join(hidden(kept)),
        "PYTHONPATH": str(KIT / "tests" / "support" / "bare"),
    }
    output = tmp_path / "gpu.json"
    command = ["-m", *program, "--device", "cpu", "--tiny", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, *command, "--wheels", str(tmp_path), *arguments],
        cwd=KIT,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done, {each["name"]: each for each in json.loads(output.read_text())["probes"]}


def test_what_the_wheels_bring_is_pinned():
    lock = (KIT / "docker" / "requirements.lock").read_text()
    for name in brought():
        assert name == "pb1-detectron2" or re.search(rf"^{name}==", lock, re.M), name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_bare_machine_with_the_wheels_runs_every_probe(tmp_path):
    assert {"pydantic", "detectron2", "omegaconf"} <= hidden([*BARE, *NEEDED])
    assert not {"torch", "cv2", "PIL", "yaml"} & hidden([*BARE, *NEEDED])
    done, entries = probed(tmp_path, [*BARE, *NEEDED, *brought()], "--seconds", "1800")
    assert [each.name for each in probe.PROBES] == list(entries)
    without = {"compiled", "memory", "variants"}
    assert {name: each["status"] for name, each in entries.items()} == {
        name: "skipped" if name in without else "done" for name in entries
    }, done.stdout
    assert entries["machine"]["results"]["missing"] == []
    assert entries["correctness"]["results"]["recolouring_different_pixels"] == 0
    for name in ("loss_float32", "lars", "ema", "batch_norm_float32"):
        assert entries["correctness"]["results"][name] < 1e-4, name
    assert done.returncode == 0
    assert len([line for line in done.stdout.splitlines() if "images/s" in line]) >= 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bare_machine_without_the_wheels_says_what_is_missing(tmp_path):
    some = (fake_probes.MODULE, "only", "machine,ceilings,eager")
    done, entries = probed(tmp_path, [*BARE, *NEEDED], "--seconds", "300", program=some)
    assert "pydantic" in entries["machine"]["results"]["missing"]
    assert entries["ceilings"]["status"] == "done"
    assert entries["eager"]["status"] == "failed"
    assert "is not installed; scripts/wheels.sh makes" in entries["eager"]["reason"]
    assert done.returncode == 1
