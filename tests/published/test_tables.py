import pytest

from triplet.errors import KitError
from triplet.published.methods import load_methods
from triplet.published.tables import load_published


def test_the_targets_are_those_of_the_readme_and_the_zoo():
    found = {(v.method, v.benchmark, v.metric, v.source): v.value for v in load_published()}
    for key, value in {
        ("triplet", "linear", "top1", "readme"): 75.9,
        ("triplet-200e", "linear", "top1", "readme"): 73.8,
        ("moco-v2", "linear", "top1", "zoo"): 67.69,
        ("byol", "linear-multi", "feat5", "zoo"): 71.61,
        ("random", "semi-1percent", "top5", "zoo"): 4.99,
        ("npid", "semi-10percent", "top1", "zoo"): 57.22,
        ("simclr", "svm", "mAP", "zoo"): 78.95,
        ("rotation-pred", "svm", "96", "zoo"): 61.11,
        ("byol", "svm", "mAP", "zoo"): 85.86,
        ("triplet", "voc-detection", "AP75", "readme"): 63.8,
        ("supervised", "voc-detection", "AP50", "zoo"): 81.58,
    }.items():
        assert found[key] == value, key
    assert len(found) == len(load_published())
    assert all(0 < value < 100 for value in found.values())
    assert {method for method, *_ in found} <= {*load_methods(), "triplet-200e"}


@pytest.mark.parametrize(
    ("method", "source", "message"),
    [
        ("[1.0, 2.0]", "here", "byol has 2 numbers for 1 metrics"),
        ("[1.0]", "there", "linear names an unknown source 'there'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, method, source, message):
    table = f"{{benchmark: linear, source: {source}, metrics: [top1], methods: {{byol: {method}}}}}"
    (tmp_path / "published.yaml").write_text(f"sources: {{here: a page}}\ntables: [{table}]\n")
    with pytest.raises(KitError, match=message):
        load_published(tmp_path / "published.yaml")
