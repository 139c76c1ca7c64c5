"""What the doctor looks at, and what it says of it."""

import json
import re
import sys

from triplet import cli, doctor


def test_doctor_looks_at_everything(places, capsys):
    code = cli.main(["doctor"])
    out = capsys.readouterr().out
    assert code == 0
    for what in (
        "Python",
        "torch",
        "GPU",
        "Docker",
        "Compose",
        "nvidia-container-toolkit",
        "disk",
        "memory",
        "/dev/shm",
        "coco",
        "voc",
        "imagenet",
        "converted weights",
    ):
        assert what in out
    assert "triplet pull coco" in out
    headline, *facts, last = out.splitlines()
    assert headline.startswith("doctor: the demo runs here; before a finetuning on COCO, see to: ")
    assert headline.endswith("coco, weights, converted weights")
    assert all(len(line.split()[0]) <= len("needs") and line[9] != " " == line[8] for line in facts)
    assert last == f"  next   {'triplet demo' if 'GPU,' in headline else 'triplet pull coco'}"


def test_the_same_for_programs(places, capsys):
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["demo"], found["finetune"]) == (True, False)
    assert found["next"] in ("triplet demo", "triplet pull coco")
    assert {each["what"]: each for each in found["findings"]}["coco"] == {
        "what": "coco",
        "found": "-",
        "ok": False,
        "advice": "triplet pull coco",
        "required": False,
    }


def test_a_terminal_gets_a_table(places, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["doctor"]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert lines[1].split() == ["what", "found", "to", "do"]
    assert max(map(len, lines[1:])) <= 100
    assert lines[-1].startswith("  next   ")


def test_with_a_gpu_the_next_step_leads_to_a_finetuning():
    def lacking(*names):
        return [doctor.Diagnosis(name, "-", False, f"get {name}") for name in names]

    torch = doctor.Diagnosis("torch", "-", False, "make setup", required=True)
    assert doctor._next([torch], lacking("GPU")) == "make setup"
    assert doctor._next([], lacking("coco", "weights")) == "get coco"
    assert doctor._next([], []) == "triplet finetune --run triplet"
    assert doctor._headline([], []) == "the demo and a finetuning on COCO run here"


def test_doctor_sees_what_is_there(places, monkeypatch, tmp_path):
    (places / "datasets" / "imagenet" / "train").mkdir(parents=True)
    fake = tmp_path / "bin"
    fake.mkdir()
    for name, text in {
        "nvidia-smi": "NVIDIA H200, 143771 MiB, 570.86.15",
        "docker": "Docker version 1",
        "nvidia-container-runtime-hook": "",
    }.items():
        (fake / name).write_text(f"#!/bin/sh\necho '{text}'\n")
        (fake / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(fake), prepend=":")
    found = {f.what: f for f in doctor.examine()}
    assert found["imagenet"].ok
    assert found["GPU"].found == "NVIDIA H200, 143771 MiB"
    assert not found["NVIDIA driver"].ok
    assert "580" in found["NVIDIA driver"].advice
    assert not found["CUDA in torch"].ok
    assert found["nvidia-container-toolkit"].ok


def test_doctor_fails_where_the_demo_cannot_run(places, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_version", lambda package: "")
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert out.startswith(
        "doctor: nothing runs here yet, not even the demo: torch, torchvision, pycocotools"
    )
    assert out.endswith("  next   make setup\n")
