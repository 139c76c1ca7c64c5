from math import cos, pi

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triplet.training.schedule import ema_momentum, learning_rate

RECIPE = dict(peak=4.8, iterations_per_epoch=818, epochs=1000, warmup_epochs=10, warmup_ratio=1e-4)


@pytest.mark.parametrize(
    ("iteration", "expected"),
    [
        (0, 4.8e-4),
        (409, 4.8 * (1 - 0.95 * (1 - 1e-4))),
        (818, 0.5 * 4.8 * (1 + cos(pi / 1000)) * (1 - 0.9 * (1 - 1e-4))),
        (818 * 10, 0.5 * 4.8 * (1 + cos(pi * 10 / 1000))),
        (818 * 500 + 817, 2.4),
        (818 * 999, 0.5 * 4.8 * (1 + cos(pi * 999 / 1000))),
    ],
)
def test_learning_rate_of_the_recipe(iteration, expected):
    assert learning_rate(iteration, **RECIPE) == pytest.approx(expected, rel=1e-12)


@given(st.integers(818 * 10, 818 * 1000 - 1))
def test_the_learning_rate_falls_between_epochs_only(iteration):
    start = iteration - iteration % 818
    assert learning_rate(iteration, **RECIPE) == learning_rate(start, **RECIPE)
    assert learning_rate(iteration + 818, **RECIPE) < learning_rate(iteration, **RECIPE)


def test_no_warmup():
    assert learning_rate(0, peak=1, iterations_per_epoch=5, epochs=2, warmup_epochs=0) == 1


@given(st.integers(0, 1000))
def test_ema_momentum(k):
    value = ema_momentum(k, iterations=1000, base=0.99)
    assert value == pytest.approx(1 - 0.01 * (cos(pi * k / 1000) + 1) / 2, abs=1e-15)
    assert 0.99 <= value <= 1
