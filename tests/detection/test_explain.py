"""The first user's result, and what logs and configs of such runs tell."""

import json
import re
import sys

import pytest

from benchmarks.detection import explain, model
from tests.conftest import KIT
from triplet import cli
from triplet.published import curves

AUTHORS = KIT / "configs/detection/coco_r50_c4_2x_authors.yaml"


def run(capsys, *arguments, result=("25.1", "22.3")):
    code = cli.main(["explain", "--result", *result, *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def verdicts(out):
    found = {}
    for line in out.splitlines():
        if line[:3].strip().rstrip(".").isdigit():
            name, rest = line[4:].split(" [", 1)
            found[name] = rest.split(";")[0]
    return found


def config(tmp_path, *overrides):
    path = tmp_path / "config.yaml"
    path.write_text(model.load_config(AUTHORS, overrides).dump())
    return path


def metrics(tmp_path, last, rate):
    path = tmp_path / "metrics.json"
    path.write_text(
        "".join(json.dumps({"iteration": n, "lr": rate}) + "\n" for n in range(19, last + 1, 20))
    )
    return path


def test_the_first_user_with_nothing_but_the_numbers(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert "that is 16.6 / 13.9 below the paper's 41.7 / 36.2" in out
    assert list(verdicts(out))[:2] == ["schedule", "undecayed stop"]
    assert set(verdicts(out).values()) == {"possible"}
    assert "3.65k to 11.2k iterations" in out
    assert "35.6 (35.3 to 35.9)" in out
    assert "cannot be the only cause" in out


def test_a_terminal_gets_tables_with_the_same(capsys, monkeypatch):
    _, plain, _ = run(capsys)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, _ = run(capsys)
    assert code == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()
    head = next(line for line in lines if line.split() == ["cause", "verdict", "costs", "why"])
    first = lines[lines.index(head) + 1]
    assert first.startswith((" 1.", "1."))
    assert [first.find(word) for word in ("schedule", "possible")] == [
        head.find(word) for word in ("cause", "verdict")
    ]
    assert lines[:2] == plain.splitlines()[:2]
    assert lines[-2:] == plain.splitlines()[-2:]
    assert max(len(line.rstrip()) for line in lines[2:-2]) <= 120
    rows = [line for line in lines if re.match(r" ?\d+\. ", line)]
    assert len(rows) == len(verdicts(plain))


def test_a_stop_at_35k_is_seen(capsys, tmp_path):
    code, out, _ = run(capsys, "--config", AUTHORS, "--log", metrics(tmp_path, 34999, 0.0455))
    assert code == 0
    found = verdicts(out)
    assert found["schedule"] == found["undecayed stop"] == "seen"
    assert (
        found["learning rate"]
        == found["BN statistics"]
        == found["colour order, mean, stride"]
        == "excluded"
    )
    assert "91% of its peak" in out
    assert found["PreciseBN"] == "seen"  # it would have run at the end
    sizes = "the causes seen cost 8.8 to 16.1 box AP together"
    assert f"{sizes}; what PreciseBN costs, and so whether it explains 16.6, is not published" in out


def test_a_stop_late_but_undecayed_costs_what_is_published(capsys, tmp_path):
    _, out, _ = run(capsys, "--config", AUTHORS, "--log", metrics(tmp_path, 169_999, 0.05))
    line = next(line for line in out.splitlines() if ". undecayed stop" in line)
    # GluonCV's ended at 38.2 and was at 30.3 before the rate fell.
    assert "[seen; 8.0 to 8.9 box AP]" in line


def test_the_end_of_a_schedule_is_no_stop(capsys):
    _, out, _ = run(capsys, result=("32.0", "27.0"))
    assert "a stop after 58.4k to 98.1k of 180k" in out
    assert "180k of 180k" not in out


def test_a_stop_after_the_first_step_costs_what_is_published(capsys, tmp_path):
    """GluonCV's C4 ended at 38.2 and had 36.4 soon after its rate fell once; no cosine's is known."""
    log = metrics(tmp_path, 139_999, 0.002)
    for scheduler in ("WarmupMultiStepLR", "WarmupCosineLR"):
        path = config(tmp_path, f"SOLVER.LR_SCHEDULER_NAME={scheduler}", "SOLVER.BASE_LR=0.02")
        _, out, _ = run(capsys, "--method", "moco", "--config", path, "--log", log)
        line = next(line for line in out.splitlines() if ". undecayed stop" in line)
        assert "10% of its peak" in line
        due, reached = curves.expected("moco", "c4", 140_000).box, 40.9 * 36.4 / 38.2
        sized = f"[seen; {due.low - reached:.1f} to {due.high - reached:.1f} box AP]"
        assert (sized if "Step" in scheduler else "[seen; no published size]") in line


def test_iterations_of_an_unknown_batch_ask_for_the_config(capsys, tmp_path):
    _, out, _ = run(capsys, "--log", metrics(tmp_path, 34_999, 0.0455))
    assert "the log shows 35000 iterations, but not of how many images: add --config FILE" in out


def test_frozen_bn_needs_no_precise_bn(capsys, tmp_path):
    path = tmp_path / "log.txt"
    frozen = model.load_config(AUTHORS, ["MODEL.RESNETS.NORM=FrozenBN"]).dump()
    whole = LOG.format(config=frozen, missing="roi_heads.mask_head.deconv.bias")
    path.write_text(re.sub(".*precise-BN.*\n", "", whole))
    _, out, _ = run(capsys, "--log", path)
    assert verdicts(out)["PreciseBN"] == "excluded"


def test_a_small_batch_at_the_rate_of_a_large_one(capsys, tmp_path):
    path = config(tmp_path, "SOLVER.IMS_PER_BATCH=2")
    _, out, _ = run(capsys, "--config", path)
    found = verdicts(out)
    assert found["learning rate"] == found["schedule"] == found["BN statistics"] == "seen"
    assert "8.0 times less" in out
    assert "22.5k iterations of 16 images" in out
    assert found["undecayed stop"] == "possible"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ("INPUT.FORMAT=BGR", "colour order, mean, stride"),
        ("MODEL.RESNETS.STRIDE_IN_1X1=True", "colour order, mean, stride"),
        ("MODEL.RESNETS.NORM=FrozenBN", "BN statistics"),
        ("TEST.PRECISE_BN.ENABLED=False", "PreciseBN"),
        ("SOLVER.BASE_LR=0.4", "learning rate"),
        ("SOLVER.MAX_ITER=20000", "schedule"),
    ],
)
def test_each_fault_of_a_config_is_seen_and_no_other(capsys, tmp_path, change, cause):
    _, out, _ = run(capsys, "--config", config(tmp_path, change))
    assert [name for name, verdict in verdicts(out).items() if verdict == "seen"] == [cause]


def test_a_config_alone_excludes_nothing_that_happens_later(capsys):
    """It plans 2x and precise BN; the first user's may have planned the same."""
    _, out, _ = run(capsys, "--config", AUTHORS)
    found = verdicts(out)
    assert found["schedule"] == found["undecayed stop"] == found["PreciseBN"] == "possible"
    assert "the config plans 180k iterations" in out
    assert "what was seen" not in out


def test_a_slightly_high_rate_does_not_cost_what_a_huge_one_does(capsys, tmp_path):
    _, out, _ = run(capsys, "--config", config(tmp_path, "SOLVER.BASE_LR=0.1"))
    assert (
        "learning rate [seen; 1.1 box AP] 0.1 for 16 images; the recipe's, scaled with the batch, is 0.05"
        in out
    )
    _, out, _ = run(capsys, "--config", config(tmp_path, "SOLVER.BASE_LR=0.4"))
    assert "learning rate [seen; 9.0 to 10.0 box AP]" in out


def test_a_seen_cause_without_a_size_may_be_enough(capsys, tmp_path):
    _, out, _ = run(capsys, "--config", config(tmp_path, "TEST.PRECISE_BN.ENABLED=False"))
    assert (
        "no published size; what PreciseBN costs, and so whether it explains 16.6, is not published" in out
    )
    both = config(tmp_path, "TEST.PRECISE_BN.ENABLED=False", "MODEL.RESNETS.NORM=FrozenBN")
    _, out, _ = run(capsys, "--config", both)
    assert "cost 0.1 to 10.2 box AP together: not enough for 16.6" in out  # frozen needs none
    _, out, _ = run(capsys, "--config", config(tmp_path, "MODEL.RESNETS.NORM=FrozenBN"))
    assert "cost 0.1 to 10.2 box AP together: not enough for 16.6" in out


@pytest.mark.parametrize("name", ["coco_r50_fpn_2x_authors.yaml", "voc_r50_c4_24k_authors.yaml"])
def test_other_detectors_are_not_judged_by_this_ones_numbers(capsys, name):
    code, _, err = run(capsys, "--config", AUTHORS.with_name(name))
    assert code == 2
    assert "Mask R-CNN R50-C4 on COCO, and this run is of GeneralizedRCNN" in err


@pytest.mark.parametrize(
    ("method", "family", "verdict"),
    [
        ("supervised", "RGB", "excluded"),
        ("supervised", "BGR", "excluded"),
        ("triplet", "BGR", "seen"),
        ("triplet", "std", "seen"),
        ("supervised", "std", "seen"),
    ],
)
def test_pixels_of_each_family(capsys, tmp_path, method, family, verdict):
    changes = {
        "RGB": [],
        "BGR": [
            "INPUT.FORMAT=BGR",
            "MODEL.PIXEL_MEAN=[103.53,116.28,123.675]",
            "MODEL.PIXEL_STD=[1.0,1.0,1.0]",
            "MODEL.RESNETS.STRIDE_IN_1X1=True",
        ],
        "std": ["MODEL.PIXEL_STD=[1.0,1.0,1.0]"],
    }[family]
    _, out, _ = run(capsys, "--method", method, "--config", config(tmp_path, *changes))
    assert verdicts(out)["colour order, mean, stride"] == verdict


LOG = """[11/24 10:00:00 detectron2]: Rank of current process: 0. World size: 1
[11/24 10:00:00 detectron2]: Running with full config:
{config}
[11/24 10:00:05 fvcore.common.checkpoint]: [Checkpointer] Loading from release.pth ...
[11/24 10:00:05 fvcore.common.checkpoint]: Some model parameters or buffers are not found in the checkpoint:
{missing}
[11/24 10:00:30 d2.utils.events]:  eta: 1 day  iter: 19  total_loss: 5.1  lr: 0.0001  max_mem: 9000M
[11/24 19:00:30 d2.utils.events]:  eta: 0:00:00  iter: 179999  total_loss: 0.9  lr: 3.8e-12  max_mem: 9000M
[11/24 19:01:30 detectron2]: Running precise-BN for 200 iterations...
"""


def log(tmp_path, missing):
    path = tmp_path / "log.txt"
    path.write_text(LOG.format(config=model.load_config(AUTHORS).dump(), missing=missing))
    return path


def test_a_log_alone_tells_that_weights_stayed_random(capsys, tmp_path):
    missing = "\n".join(
        (
            "backbone.res2.0.conv1.norm.{bias, running_mean}",
            "backbone.stem.conv1.weight",
            "roi_heads.res5.norm.weight",
            "proposal_generator.rpn_head.conv.weight",
        )
    )
    _, out, _ = run(capsys, "--log", log(tmp_path, missing))
    found = verdicts(out)
    assert found["weights not loaded"] == "seen"
    assert "backbone.res2.0.conv1.norm.{bias, running_mean} and 1 more stayed random" in out
    assert found["schedule"] == found["undecayed stop"] == found["PreciseBN"] == "excluded"


def test_a_log_in_which_only_heads_are_new_excludes_that(capsys, tmp_path):
    missing = "roi_heads.res5.norm.{bias, weight}\nroi_heads.mask_head.deconv.bias"
    _, out, _ = run(capsys, "--log", log(tmp_path, missing))
    assert verdicts(out)["weights not loaded"] == "excluded"
    assert "seen" not in verdicts(out).values()


def test_missing_and_misshapen_weights_are_seen(capsys, tmp_path):
    path = log(tmp_path, "roi_heads.mask_head.deconv.bias")
    whole = path.read_text()
    loading = "[Checkpointer] Loading from release.pth ..."
    path.write_text(whole.replace(loading, "No checkpoint found. Initializing model from scratch"))
    _, out, _ = run(capsys, "--log", path)
    assert verdicts(out)["weights not loaded"] == "seen"
    assert "the log says that every tensor stayed random" in out
    _, out, _ = run(capsys, "--method", "random", "--log", path)
    assert verdicts(out)["weights not loaded"] == "excluded"
    skipped = "Skip loading parameter 'backbone.stem.conv1.weight' to the model due to incompatible shapes"
    path.write_text(whole.replace(loading, f"{loading}\n[11/24 10:00:05 fvcore]: {skipped}"))
    _, out, _ = run(capsys, "--log", path)
    assert "the log says that backbone.stem.conv1.weight stayed random" in out


def test_a_log_with_several_sessions_is_that_of_the_last(tmp_path):
    first = log(tmp_path, "roi_heads.mask_head.deconv.bias").read_text()
    later = first.replace("MAX_ITER: 180000", "MAX_ITER: 22500").replace("iter: 179999", "iter: 22499")
    path = tmp_path / "log.txt"
    path.write_text(first + later)
    facts = explain.read(None, path)
    assert (facts.planned, facts.iterations) == (22500, 22500)


def test_iterations_are_those_of_the_log_not_of_a_shorter_config(tmp_path):
    facts = explain.read(AUTHORS, metrics(tmp_path, 269_999, 0.01))
    assert facts.iterations == 270_000


def test_passes_make_bn_pools_smaller(capsys, tmp_path):
    """The kit's own log: 8 passes of 2 images on one GPU."""
    path = log(tmp_path, "roi_heads.mask_head.deconv.bias")
    path.write_text(path.read_text().replace("World size: 1", "World size: 1; BN over 2 images"))
    _, out, _ = run(capsys, "--log", path)
    assert verdicts(out)["BN statistics"] == "seen"
    assert "over 2 images instead of 16" in out


@pytest.mark.parametrize("damage", ["SOLVER: {}", "- 1", "a: [b"])
def test_a_damaged_copy_of_the_config_is_one_line(capsys, tmp_path, damage):
    path = tmp_path / "log.txt"
    path.write_text(LOG.format(config=damage, missing="roi_heads.mask_head.deconv.bias"))
    code, _, err = run(capsys, "--log", path)
    assert code == 2
    assert "its copy of the config cannot be read; add --config FILE" in err
    assert err.count("\n") == 1


def test_a_result_within_noise_needs_no_explanation(capsys):
    code, out, _ = run(capsys, result=("41.5", "36.0"))
    assert code == 0
    assert "nothing to explain" in out


def test_bad_input_is_one_line(capsys, tmp_path):
    (tmp_path / "empty.txt").write_text("hello\n")
    for arguments, said in (
        (["--method", "mine"], "no method 'mine' in the table; it has supervised"),
        (["--log", tmp_path / "none.txt"], "No such file"),
        (["--log", tmp_path / "empty.txt"], "no iteration of Detectron2 in it"),
        (["--config", tmp_path / "none.yaml"], "no detection config at"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert said in err
        assert err.count("\n") == 1
    code, _, err = run(capsys, result=("251", "22.3"))
    assert code == 2
    assert "in percent: found 251 22.3" in err


def test_facts_of_the_kits_own_log(tmp_path):
    """The kit's metrics.json is Detectron2's, so its own runs can be explained too."""
    facts = explain.read(AUTHORS, metrics(tmp_path, 999, 0.01))
    assert (facts.iterations, facts.planned, facts.batch, facts.last_rate) == (1000, 180000, 16, 0.01)
