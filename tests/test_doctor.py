"""What the doctor looks at, and what it says of it."""

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
    assert "make setup" in capsys.readouterr().out
