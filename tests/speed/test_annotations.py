"""The benchmark of the checker of annotations, on a few images."""

import json

from benchmarks.speed import annotations


def test_a_small_file_is_written_and_checked(tmp_path, capsys):
    output = tmp_path / "annotations.json"
    assert annotations.main(["--images", "50", "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    assert content["smoke"]
    assert (content["check"]["images"], content["check"]["annotations"]) == (50, 364)
    assert "364 annotations of 50 images" in capsys.readouterr().out
