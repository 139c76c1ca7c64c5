from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.small_pretrain import row_by_row
from triplet.pretrain.loss import truncated_triplet_loss

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "triplet_head.npz")
CASES = ["n11_d8", "n16_d32", "n64_d256", "n196_d256"]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_head(case):
    prediction = torch.tensor(GOLDEN[f"{case}_pred"], requires_grad=True)
    target = torch.tensor(GOLDEN[f"{case}_target"], requires_grad=True)
    loss = truncated_triplet_loss(prediction, target)
    loss.backward()
    assert loss.item() == pytest.approx(float(GOLDEN[f"{case}_loss"]), abs=1e-10)
    torch.testing.assert_close(
        prediction.grad, torch.tensor(GOLDEN[f"{case}_grad_pred"]), atol=1e-10, rtol=0
    )
    torch.testing.assert_close(target.grad, torch.tensor(GOLDEN[f"{case}_grad_target"]), atol=1e-10, rtol=0)


@given(
    n=st.integers(3, 20),
    d=st.integers(2, 6),
    nearest=st.integers(1, 19),
    skip=st.integers(0, 18),
    gamma=st.floats(0.1, 4),
    margin=st.floats(-5, 100),
    seed=st.integers(0, 999),
)
@settings(deadline=None)
def test_equals_the_formula_for_any_setting(n, d, nearest, skip, gamma, margin, seed):
    nearest, skip = min(nearest, n - 1), min(skip, min(nearest, n - 1) - 1)
    p, z = torch.randn(2, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    arguments = dict(gamma=gamma, margin=margin, nearest=nearest, skip=skip)
    torch.testing.assert_close(truncated_triplet_loss(p, z, **arguments), row_by_row(p, z, **arguments))


@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100))
@settings(deadline=None)
def test_order_of_images_and_length_of_features_do_not_matter(seed, scale):
    g = torch.Generator().manual_seed(seed)
    p, z = torch.randn(2, 16, 8, dtype=torch.float64, generator=g)
    order = torch.randperm(16, generator=g)
    expected = truncated_triplet_loss(p, z)
    torch.testing.assert_close(truncated_triplet_loss(p[order], z[order]), expected)
    torch.testing.assert_close(truncated_triplet_loss(p * scale, z / scale), expected)


def test_groups_keep_their_negatives_to_themselves():
    p, z = torch.randn(2, 48, 8, dtype=torch.float64)
    apart = torch.stack(
        [truncated_triplet_loss(p[i : i + 16], z[i : i + 16]) for i in range(0, 48, 16)]
    ).mean()
    torch.testing.assert_close(truncated_triplet_loss(p, z, group_size=16), apart)


def test_scale_is_the_released_one():
    """A factor on the loss goes unnoticed in training and costs accuracy: pinned on a known case."""
    target = torch.eye(12, dtype=torch.float64)  # orthogonal: each negative at distance 0
    assert truncated_triplet_loss(target, target).item() == pytest.approx(100 - 4)
    assert truncated_triplet_loss(-target, target).item() == pytest.approx(100 + 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    p, z = torch.randn(2, 32, 16).to(dtype)
    p.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = truncated_triplet_loss(p, z)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, truncated_triplet_loss(p.float(), z.float()))
    assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(n=10), "at least 11 images: found 10"),
        (dict(n=22, group_size=10), "at least 11 images: found 10"),
        (dict(n=30, group_size=11), "30 images do not divide into groups of 11"),
        (dict(n=12, skip=10), "skip must lie in"),
    ],
)
def test_too_few_images_are_refused(arguments, message):
    n = arguments.pop("n")
    with pytest.raises(ValueError, match=message):
        truncated_triplet_loss(torch.randn(n, 4), torch.randn(n, 4), **arguments)


def test_shapes_must_match():
    with pytest.raises(ValueError, match=r"found \(12, 4\) and \(12, 5\)"):
        truncated_triplet_loss(torch.randn(12, 4), torch.randn(12, 5))
