"""What explain concludes, and does not conclude, from the logs of each code base."""

import pytest

from benchmarks.detection import explain
from benchmarks.detection.explain.command import ExplainOptions, explanation
from tests.conftest import KIT

CONFIG = KIT / "configs/detection/coco_r50_c4_2x_moco.yaml"
LOGS = KIT / "tests/detection/cases/logs"


def facts_of(tmp_path, text, config=None, gpus=None, name="log.txt"):
    (tmp_path / name).write_text(text)
    return explain.read(config, tmp_path / name, gpus=gpus)


def verdicts(result=(30.0, 27.0), **options):
    found = explanation(ExplainOptions(result, **{"method": "moco", **options}))
    return {cause.name: cause for cause in found.causes}


BENCHMARK = """2019-03-01 10:00:00,000 maskrcnn_benchmark INFO: Using 8 GPUs
2019-03-01 10:00:01,000 maskrcnn_benchmark.utils.checkpoint INFO: Loading checkpoint from moco.pkl
{arrived}
2019-03-01 10:00:09,000 maskrcnn_benchmark.trainer INFO: eta: 1 day  iter: 20  loss: 1.2 (1.3)  lr: 0.002
"""
ARRIVED = (
    "2019-03-01 10:00:02,000 maskrcnn_benchmark.utils.model_serialization INFO: "
    "backbone.body.layer1.0.bn1.bias              loaded from layer1.0.bn1.bias of shape (64,)"
)


@pytest.mark.parametrize("arrived", [ARRIVED, ""])
def test_maskrcnn_benchmark_names_what_it_loads(tmp_path, arrived):
    facts = facts_of(tmp_path, BENCHMARK.format(arrived=arrived))
    assert facts.gpus == 8
    assert facts.checked == bool(arrived)
    assert facts.precise_ran is None  # it has none


def test_detectron_names_each_tensor_that_its_file_lacks(tmp_path):
    log = "INFO net.py: 129: res2_0_branch2a_w not found\nINFO net.py: 129: mask_fcn_logits_w not found\n"
    assert facts_of(tmp_path, log).unloaded == ["res2_0_branch2a_w"]
    log = (
        "INFO net.py: 133: conv1_w    loaded from weights file into gpu_0/res2_0_branch2a_w: (64, 64, 1, 1)"
    )
    assert facts_of(tmp_path, log).checked


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        (["coco_2017_train"], "excluded"),
        (["coco_2014_train", "coco_2014_valminusminival"], "excluded"),
        (["coco_2017_train_10percent"], "seen"),
        (["coco_2017_val"], "seen"),
        (["my_coco_train2017"], "possible"),
    ],
)
def test_only_a_training_sets_exact_name_excludes_other_data(tmp_path, names, verdict):
    path = tmp_path / "config.yaml"
    path.write_text(f"_BASE_: {CONFIG}\nDATASETS: {{TRAIN: {names}}}\n")
    assert verdicts(config=path)["training data"].verdict == verdict


AUTO = "Auto-scaling the config to batch_size=2, learning_rate=0.0025, max_iter=1440000, warmup=800."


@pytest.mark.parametrize("log", [None, "", AUTO])
def test_a_config_for_eight_gpus_is_rescaled_to_one_once(tmp_path, log):
    """As Detectron2's auto_scale_workers does it, and says in its log."""
    path = tmp_path / "config.yaml"
    path.write_text("_BASE_: coco_R_50_C4_2x_moco.yaml\nSOLVER: {REFERENCE_WORLD_SIZE: 8}\n")
    options = {"config": path, "gpus": 1}
    if log is not None:
        step = "[11/24 10:00:00 d2]: iter: 1439999 total_loss: 5 lr: 0.000025"
        (tmp_path / "log.txt").write_text(f"[11/24 10:00:00 detectron2]: {log}\n{step}\n")
        options["log"] = tmp_path / "log.txt"
    facts = explain.read(path, options.get("log"), gpus=1)
    assert (facts.batch, facts.planned, facts.rate) == (2, 1_440_000, pytest.approx(0.0025))
    assert facts.steps == (960_000, 1_280_000)
    found = verdicts(**options)
    assert "over 2 images" in found["BN statistics"].text
    assert found["BN statistics"].verdict == found["rescaled by the number of GPUs"].verdict == "seen"
    assert found["learning rate"].verdict == "excluded"
    assert found["schedule"].verdict == ("possible" if log is None else "excluded")


@pytest.mark.parametrize(("gpus", "verdict"), [(1, "excluded"), (8, "possible")])
def test_precise_bn_on_several_gpus_may_leave_them_unlike(tmp_path, gpus, verdict):
    """fvcore issue 152, with MoCo's code."""
    text = (LOGS / "detectron2_log.txt").read_text().replace("World size: 8", f"World size: {gpus}")
    (tmp_path / "log.txt").write_text(text)
    found = verdicts(log=tmp_path / "log.txt")["PreciseBN"]
    assert found.verdict == verdict
    assert gpus == 1 or found.text.startswith("it ran on 8 GPUs, whose statistics may differ; ")


def test_mmdetection_is_not_blamed_for_what_it_does_not_have(tmp_path):
    log = (LOGS / "mmdetection_log.txt").read_text()
    (tmp_path / "log.txt").write_text(
        log.replace("type='BN'", "type='SyncBN'").replace("eval=True", "eval=False")
    )
    found = verdicts((30.0, 27.0), target=(38.0, 34.0), method=None, log=tmp_path / "log.txt")
    assert found["PreciseBN"].verdict == "excluded"


DETECTRON = """INFO train_net.py: 132: Training with config:
INFO train_net.py: 133: {'MODEL': {'CONV_BODY': 'FPN.add_fpn_ResNet50_conv5_body', 'MASK_ON': True},
 'NUM_GPUS': 4,
 'PIXEL_MEANS': array([[[102.9801, 115.9465, 122.7717]]]),
 'SOLVER': {'BASE_LR': 0.02, 'MAX_ITER': 90000, 'STEPS': [0, 60000, 80000]},
 'TRAIN': {'DATASETS': ('coco_2014_train', 'coco_2014_valminusminival'),
           'IMS_PER_BATCH': 2,
           'WEIGHTS': '/tmp/R-50.pkl'}}
"""
STATS = """json_stats: {"accuracy_cls": "0.98", "eta": "0:10:00", "iter": 0, "loss": "4.1", "lr": "0.0067"}
json_stats: {"accuracy_cls": "0.98", "eta": "0:00:1", "iter": 89980, "loss": "0.8", "lr": "0.00020"}
"""


def test_a_log_of_detectron_tells_its_config_and_its_steps(tmp_path):
    """It prints its config as a Python dict in a message of its own, and its numbers as strings."""
    facts = facts_of(tmp_path, DETECTRON + STATS)
    assert (facts.gpus, facts.batch, facts.planned, facts.rate) == (4, 8, 90_000, 0.02)
    assert (facts.norm, facts.kind, facts.masks) == ("FrozenBN", "fpn", True)
    assert facts.train == "coco_2014_train, coco_2014_valminusminival"
    assert (facts.iterations, facts.last_rate) == (90_000, 0.0002)
    found = verdicts((30.0, 27.0), target=(37.7, 33.9), method=None, log=tmp_path / "log.txt")
    assert found["undecayed stop"].verdict == "excluded"
    assert found["learning rate"].verdict == "seen"


def test_an_epoch_that_mmengine_pads_is_read(tmp_path):
    log = "".join(
        f"01/01 00:00:00 - mmengine - INFO - Epoch(train)  [{epoch}][{step:>5}/7330]  lr: 2.0000e-02  "
        f"eta: 1 day  loss: {3 / epoch:.4f}\n"
        for epoch in (1, 12)
        for step in (50, 7300)
    )
    facts = facts_of(tmp_path, log)
    assert (facts.iterations, facts.last_rate) == (11 * 7330 + 7300, 0.02)


@pytest.mark.parametrize(
    "said",
    [
        "loss become infinite or NaN!",  # mmdetection's CheckInvalidLossHook
        "Loss is inf, stopping training",  # torchvision's references
        "Loss is nan, stopping training",
        "CRITICAL train.py: 72: Loss is NaN",  # Detectron
        "FloatingPointError: Loss became infinite or NaN at iteration=556!",
    ],
)
def test_every_code_bases_words_for_divergence_are_known(tmp_path, said):
    assert facts_of(tmp_path, f"{said}\n").diverged


def test_torchvision_counts_epochs_from_zero(tmp_path):
    """And the length of its epochs tells how many images were in a batch."""
    log = "".join(
        f"Epoch: [{epoch}]  [{step:>5}/7330]  eta: 0:58  lr: 0.020000  loss: {3 / (epoch + 1):.4f} (3.6)\n"
        for epoch in (0, 3)
        for step in (0, 7329)
    )
    facts = facts_of(tmp_path, log)
    assert (facts.iterations, facts.last_rate, facts.batch) == (4 * 7330, 0.02, 16)
    assert "epochs of 7330 iterations: 16 images in each, if of train2017" in facts.notes[0]


def test_a_config_that_wandb_has_wrapped_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "_wandb: {desc: null, value: {cli_version: 0.16}}\n"
        "SOLVER: {desc: null, value: {BASE_LR: 0.02, IMS_PER_BATCH: 2, MAX_ITER: 180000}}\n"
    )
    facts = explain.read(path, None)
    assert (facts.rate, facts.batch, facts.planned) == (0.02, 2, 180_000)


@pytest.mark.parametrize("norm", ["SyncBN", "nnSyncBN", "naiveSyncBN"])
def test_every_synchronised_bn_pools_the_batch(tmp_path, norm):
    path = tmp_path / "config.yaml"
    path.write_text(f"_BASE_: {CONFIG}\nMODEL: {{RESNETS: {{NORM: {norm}}}}}\n")
    assert verdicts(config=path)["BN statistics"].verdict == "excluded"


def test_a_config_within_anothers_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("defaults: []\nd2: {detector: {SOLVER: {BASE_LR: 0.02}, MODEL: {MASK_ON: true}}}\n")
    facts = explain.read(path, None)
    assert (facts.rate, facts.masks) == (0.02, True)


def test_another_programs_word_for_a_config_is_no_obstacle(tmp_path):
    facts = facts_of(tmp_path, "Config:\n{lr: 0.02}\nINFO:x: iter: 22499  total_loss: 0.9  lr: 0.02\n")
    assert facts.iterations == 22_500


def test_only_detectron2s_log_shows_that_precise_bn_did_not_run(tmp_path):
    step = "iter: 19  {}: 0.9  lr: 0.02\n"
    assert facts_of(tmp_path, step.format("total_loss")).precise_ran is False
    assert facts_of(tmp_path, step.format("loss")).precise_ran is None


def test_epochs_do_not_grow_with_a_smaller_batch(tmp_path):
    """mmdetection's 12 epochs are 1x on any number of GPUs, and Detectron2's iterations are not."""
    log = LOGS / "mmdetection_log.txt"
    found = verdicts((36.0, 32.8), target=(38.0, 34.0), method=None, log=log)
    assert found["schedule"].verdict == "excluded"
    assert "1x is 90k" in found["schedule"].text
