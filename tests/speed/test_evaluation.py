"""The benchmark of the evaluation compares what is equal. No time is asserted."""

import json

from benchmarks.speed import evaluation


def test_all_engines_are_measured_and_agree(tmp_path, capsys):
    path = tmp_path / "evaluation.json"
    assert evaluation.main(["--images", "4", "--seconds", "0", "--output", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["smoke"]
    assert [case["sizes"]["detections"] for case in found["cases"]] == [400, 400]
    for case in found["cases"]:
        assert case["notes"] == ["all numbers equal: yes"]
        ratios = [(each["of"], each["over"]) for each in case["ratios"]]
        assert ratios == [("hotcoco", "pycocotools"), ("ultrafast", "pycocotools")]
        assert {"hotcoco", "ultrafast", "pycocotools"} == set(case["variants"])
    assert "hotcoco over pycocotools" in capsys.readouterr().out


def test_the_detections_are_of_every_kind():
    content, _ = evaluation.synthesize(100)
    assert 6 < len(content["annotations"]) / 100 < 9
    assert any(each["iscrowd"] for each in content["annotations"])
    areas = [each["area"] for each in content["annotations"]]
    assert min(areas) < 32**2 < 96**2 < max(areas)
