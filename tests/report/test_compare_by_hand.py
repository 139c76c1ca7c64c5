"""Two methods side by side, from numbers of which no two are equal: counted by hand."""

import pytest

from tests.support import example_runs
from triplet.analysis import ANALYSIS, Analysis, TaskAnalysis
from triplet.records import Artifact
from triplet.report import compare
from triplet.report.compare import Comparison, Difference
from triplet.runs import Run

CLASSES = ["ant", "bee", "cow", "dog"]


def analysis(every, small, resampled, precision=7.0, **changes):
    """AP by category over all sizes and over small objects, and over each draw."""
    values = dict(images=9, draws="as drawn", categories=CLASSES)
    values |= dict(
        by_size={"all": every, "small": small},
        precision={"0.5": [precision] * 101, "0.75": [precision / 2] * 101},
    )
    return TaskAnalysis(**{**values, **changes}, resampled=resampled)


OURS = [
    analysis([10.0, 42.0, None, 8.0], [3.0, None, None, None], [11.0, 29.0, 18.0, 24.0, 13.0], 60.0),
    analysis([14.0, 0.0, None, 12.0], [5.0, None, None, 0.0], [13.0, 31.0, 22.0, 20.0, 15.0], 50.0),
]
BASE = [analysis([11.5, 13.0, 2.0, 15.0], [None, 9.0, 4.0, None], [6.0, 33.0, 11.0, 15.0, 15.5])]
LESS = [analysis([1.0, 2.0, 3.0, 5.0], [1.0] * 4, [1.0, 2.0, 3.0, 4.0, 6.0])]
METHODS = {
    "small": {"segm": LESS},
    "ours": {"bbox": OURS, "segm": LESS},
    "base": {"bbox": BASE, "segm": OURS},
}
THREE = Comparison("x", "table", METHODS, "ours", "base", ["bbox", "segm"])


def test_a_difference_of_means_has_an_interval_of_shared_draws():
    """Mean draws 12, 30, 20, 22, 14 less 6, 33, 11, 15, 15.5: 6, -3, 9, 7, -1.5."""
    found = compare.difference(OURS, BASE)
    assert found.value == pytest.approx((12 + 21 + 10) / 3 - 41.5 / 4)
    assert found.low == pytest.approx(-3 + 0.1 * 1.5)  # a fortieth of four steps between five values
    assert found.high == pytest.approx(9 - 0.1 * 2)
    assert (found.meaning, found.text()) == (compare.OPEN, "+4.0 (-2.9 to +8.8)")
    assert compare.difference(BASE, OURS).value == pytest.approx(-found.value)
    assert compare.difference([analysis([None] * 4, [None] * 4, [1.0])], LESS) is None
    assert compare.difference([analysis([1.0] * 4, [1.0] * 4, [])], LESS) is None
    assert compare.curve(OURS, "0.5") == [55] * 101


@pytest.mark.parametrize(
    ("value", "low", "high", "meaning"),
    [
        (5, 0.1, 9, compare.HIGHER),
        (5, 0, 9, compare.OPEN),
        (-5, -9, -0.1, compare.LOWER),
        (-5, -9, 0, compare.OPEN),
        (5, -1, 9, compare.OPEN),
        (-5, -9, 1, compare.OPEN),
    ],
)
def test_only_an_interval_beside_0_tells_two_apart(value, low, high, meaning):
    assert Difference(value, low, high).meaning == meaning


def cells(grid):
    return [[cell.text for cell in row] for row in grid.rows]


def test_every_cell_of_the_tables():
    assert cells(compare.of_categories(THREE, "bbox")) == [
        ["dog", "10.0", "15.0", "-5.0"],
        ["ant", "12.0", "11.5", "+0.5"],
        ["bee", "21.0", "13.0", "+8.0"],
        ["cow", "–", "2.0", "–"],
    ]
    assert cells(compare.of_sizes(THREE, "bbox")) == [
        ["all", "14.3", "10.4", "+4.0"],
        ["small", "2.0", "6.5", "-4.5"],
    ]
    pairs = compare.of_pairs(THREE)
    assert [row[:4] for row in cells(pairs)] == [
        ["small", "mask", "-11.6", "-27.0 to -8.3"],
        ["ours", "box", "+4.0", "-2.9 to +8.8"],
        ["ours", "mask", "-11.6", "-27.0 to -8.3"],
    ]
    assert compare.sentence(THREE, "segm").startswith("-11.6 (-27.0 to -8.3) mask AP: lower")


def test_the_pages_numbers_are_of_every_two_methods():
    found = compare.data(THREE)
    assert (found["labels"], found["first"], found["second"]) == (["small", "ours", "base"], 1, 2)
    box, mask = found["tasks"]["bbox"], found["tasks"]["segm"]
    assert box["ap"] == [
        None,
        [[12.0, 21.0, None, 10.0], [4.0, None, None, 0.0]],
        [[11.5, 13.0, 2.0, 15.0], [None, 9.0, 4.0, None]],
    ]
    assert box["pairs"] == {"2-1": [-3.96, -8.8, 2.85]}
    assert {*mask["pairs"]} == {"1-0", "2-0", "2-1"}
    assert mask["pairs"]["2-0"] == [11.58, 8.3, 27.0]
    assert (box["sizes"], box["categories"], box["label"]) == (["all", "small"], CLASSES, "box")


@pytest.fixture
def runs(tmp_path):
    """Runs by name, whose evaluations keep these analyses."""

    def of(**named):
        made = []
        for name, task in named.items():
            path = tmp_path / f"{name}.json"
            path.write_text(Analysis({"bbox": task}).model_dump_json())
            outputs = {ANALYSIS: Artifact(path=str(path), sha256="0" * 64, bytes=1)}
            made.append(
                Run(name.replace("__", "/"), {"eval": example_runs.record("eval", outputs=outputs)})
            )
        return made

    return of


def test_what_is_compared_first_and_with_what(runs):
    one = LESS[0]

    def shown(*names):
        (found,) = compare.comparisons({"table": runs(**dict.fromkeys(names, one))})
        return found.first, found.base

    assert shown("byol", "random", "supervised", "triplet") == ("triplet", "supervised")
    assert shown("byol", "triplet", "random") == ("triplet", "random")
    assert shown("byol", "triplet", "moco") == ("triplet", "byol")
    assert shown("moco", "byol", "simclr") == ("moco", "byol")
    assert shown("moco") == ("moco", "moco")
    assert shown("triplet__moco", "a__triplet") == ("a/triplet", "triplet/moco")


def test_only_equal_draws_images_and_classes_are_compared(runs):
    one = LESS[0]
    other = [{"draws": "others"}, {"images": 8}, {"categories": CLASSES[::-1]}]
    unlike = {f"m{i}": one.model_copy(update=each) for i, each in enumerate(other)}
    named = {"first": one, **unlike, "seed0__last": OURS[0], "seed1__last": OURS[1]}
    (found,) = compare.comparisons({"x": [], "table": runs(**named)})
    assert {label: len(tasks["bbox"]) for label, tasks in found.methods.items()} == {"first": 1, "last": 2}
    many = runs(**{f"m{i}": one for i in range(compare.MOST + 2)}, seed1__m0=OURS[1])
    (found,) = compare.comparisons({"table": many})
    assert list(found.methods) == [f"m{i}" for i in range(compare.MOST)]
    assert found.methods["m0"]["bbox"] == [one, OURS[1]]


def test_a_method_alone_has_its_ap_by_category_and_size():
    alone = Comparison(
        "x", "table", {"ours": {"bbox": OURS, "segm": LESS}}, "ours", "ours", ["bbox", "segm"]
    )
    sizes, categories = compare.tables_of(alone)
    assert sizes.columns == ("Objects", "box AP", "mask AP")
    assert cells(sizes) == [["all", "14.3", "2.8"], ["small", "2.0", "1.0"]]
    assert cells(categories) == [
        ["dog", "10.0", "5.0"],
        ["ant", "12.0", "1.0"],
        ["bee", "21.0", "2.0"],
        ["cow", "–", "3.0"],
    ]


def test_seeds_of_a_single_method_are_compared_with_each_other(runs):
    named = {f"x__seed{i}__triplet": analysis for i, analysis in enumerate(OURS)}
    other = OURS[0].model_copy(update={"images": 8})
    (found,) = compare.comparisons({"x": runs(**named, x__seed2__triplet=other)})
    assert (found.first, found.base) == ("x/seed0/triplet", "x/seed1/triplet")
    assert found.methods["x/seed1/triplet"] == {"bbox": [OURS[1]]}
    assert found.left_out == ["x/seed2/triplet"]
    assert cells(compare.of_sizes(found, "bbox"))[0] == ["all", "20.0", "8.7", "+11.3"]


def test_seeds_of_the_table_have_mean_deviation_and_difference():
    names = ["seed0/triplet", "seed1/triplet", "seed2/triplet"]
    made = [example_runs.made(name, ap) for name, ap in zip(names, (41.5, 41.9, 41.4), strict=True)]
    known = dict(zip(names[:2], ({"bbox": OURS[0]}, {"bbox": OURS[1]}), strict=True))
    table = Comparison("table", "table", {}, names[0], names[1], ["bbox"], known)
    grid = compare.of_seeds([*made, example_runs.made("moco", 40.0)], table)
    rows = [dict(zip(grid.columns, row, strict=True)) for row in cells(grid)]
    assert [(row["Run"], row["seeds"], row["box AP"]) for row in rows] == [
        ("triplet, 2x", "3", "41.6 ± 0.3"),
        (names[0], "1", "41.5"),
        (names[1], "1", "41.9"),
        (names[2], "1", "41.4"),
    ]
    apart = compare.difference([OURS[1]], [OURS[0]])
    assert [row["box AP − first run"] for row in rows] == ["–", "–", apart.text(), "–"]
    assert {row["mask AP − first run"] for row in rows} == {"–"}
