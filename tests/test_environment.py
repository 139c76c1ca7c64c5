"""What a result was made with."""

import os
import subprocess

from triplet import environment
from triplet.environment import share_of_cores


def test_commit_is_the_images_or_the_checkouts(monkeypatch):
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert head.startswith(environment.commit().rstrip("+"))
    monkeypatch.setenv("TRIPLET_COMMIT", "abc")
    assert environment.commit() == "abc"


def test_a_machine_of_many_cores_does_not_load_with_all(monkeypatch):
    for cores, processes, loaders in ((2, 1, 1), (16, 1, 15), (256, 1, 32), (128, 8, 15), (4, 8, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert share_of_cores() == loaders
