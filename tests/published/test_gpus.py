import pytest

from triplet.errors import KitError
from triplet.published import curves, gpus


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("T4", "T4"),
        ("tesla t4", "T4"),
        ("2080 ti", "RTX 2080 Ti"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA A100-SXM4", "A100"),
        ("h100-pcie", "H100 PCIe"),
        ("RTX3090", "RTX 3090"),
        ("Tesla V100-SXM2-32GB", "V100 32GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe"),
        ("Tesla P100-PCIE-16GB", "P100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
    ],
)
def test_a_card_is_found_by_what_people_call_it(name, card):
    assert gpus.find_card(name)[0] == card


@pytest.mark.parametrize(
    ("name", "card", "memory"),
    [
        ("Tesla V100-PCIE-32GB", "V100 32GB", 32),
        ("Tesla V100-SXM2-16GB", "V100", 16),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB", 80),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe", 80),
        ("A100-PCIE-80GB", "A100 80GB PCIe", 80),
        ("A100 40GB", "A100", 40),
        ("a100 80g", "A100 80GB", 80),
        ("NVIDIA GeForce RTX 3080 12GB", "RTX 3080", 12),
        ("Tesla P100-PCIE-12GB", "P100", 12),
        ("A100", "A100", 40),
    ],
)
def test_a_size_in_a_cards_name_is_its_memory(name, card, memory):
    found, values = gpus.find_card(name)
    assert (found, values.memory) == (card, memory)
    assert gpus.cards().cards[card].memory in (memory, 10, 16)  # the list itself has not changed


def test_an_unknown_card_is_one_line_that_names_the_known_ones():
    with pytest.raises(KitError, match=r"did you mean 'T4'\? known here: V100, .*H200$") as error:
        gpus.find_card("T5")
    assert "\n" not in str(error.value)
    with pytest.raises(KitError, match="known here: kaggle, kaggle-p100, colab"):
        gpus.find_preset("azure")


def test_the_v100_is_as_fast_as_detectron2_says():
    for detector, speed in curves.published().speed.items():
        found = gpus.timing("V100", detector, "float32")
        assert found.low == found.mid == found.high == pytest.approx(speed.seconds)
        assert gpus.timing("V100", detector, "float16").mid == pytest.approx(speed.seconds / 1.4)
        assert found.on(2).mid == pytest.approx(4 * speed.seconds)


@pytest.mark.parametrize("name", gpus.cards().cards)
def test_every_card_has_a_speed_with_its_source(name):
    card = gpus.cards().cards[name]
    found = gpus.timing(name, "c4", card.precision)
    assert 0 < found.low <= found.mid <= found.high
    assert "commit" in found.source


def test_a_cards_range_of_speed_becomes_a_range_of_hours():
    whole = gpus.timing("A10", "c4", "bfloat16")
    found = gpus.timing("L4", "c4", "bfloat16")  # 0.5 to 0.97 of an A10
    assert found.low == pytest.approx(whole.low / 0.97)
    assert found.high == pytest.approx(whole.high / 0.5)
    assert found.mid == pytest.approx(whole.mid / (0.5 * 0.97) ** 0.5)
    assert whole.source in found.source
    assert "300 of 600 GB/s" in found.source


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"memory": 24, "precision": "float16"}, "X needs one of throughput, seconds and like"),
        (
            {"memory": 24, "precision": "float16", "like": "T4", "seconds": {"c4": 1}},
            "X needs one of throughput, seconds and like",
        ),
        (
            {"memory": 24, "precision": "float16", "like": "T4", "share": (0.9, 0.8)},
            r"at least 0\.9 and at most 0\.8 holds nothing",
        ),
        (
            {"memory": 24, "precision": "float16", "throughput": {"float32": [1], "half": [2]}},
            "X names an unknown benchmark or card",
        ),
        ({"memory": 24, "precision": "float16", "like": "Y"}, "X names an unknown benchmark or card"),
    ],
)
def test_a_card_without_one_source_of_its_speed_is_refused(card, message):
    known = gpus.cards().model_dump()
    with pytest.raises(ValueError, match=message):
        gpus.Cards(**{**known, "cards": {**known["cards"], "X": card}})


def test_a_newer_card_of_a_series_is_faster():
    order = ["P100", "T4", "RTX 2080 Ti", "RTX 3090", "RTX 4090", "A100 80GB", "H100"]
    found = [gpus.timing(name, "c4", gpus.cards().cards[name].precision).mid for name in order]
    assert found == sorted(found, reverse=True)


def test_the_p100s_seconds_are_those_that_detectron_published():
    assert gpus.timing("P100", "c4", "float32").mid == pytest.approx(2 * 0.620)
    assert gpus.timing("P100", "fpn", "float32").mid == 0.889


def test_presets_name_cards_of_known_speed():
    for preset in gpus.cards().presets.values():
        assert gpus.timing(preset.gpu, "c4", gpus.find_card(preset.gpu)[1].precision)


@pytest.mark.parametrize("name", [n for n, c in gpus.cards().cards.items() if c.precision == "bfloat16"])
def test_half_precision_is_not_slower_than_tf32(name):
    if gpus.cards().cards[name].benchmark.startswith("lambda"):
        assert gpus.timing(name, "c4", "bfloat16").mid <= gpus.timing(name, "c4", "tf32").mid
        assert "TF32" in gpus.timing(name, "c4", "float32").source
