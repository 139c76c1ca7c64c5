import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from triplet import knn
from triplet.knn import accuracy, knn_predict


def by_hand(bank, labels, query, neighbours, temperature):
    """InstDisc's formula for one query."""
    cosines = [float(b @ query / (np.linalg.norm(b) * np.linalg.norm(query))) for b in bank]
    votes = {}
    for index in sorted(range(len(bank)), key=lambda i: -cosines[i])[:neighbours]:
        votes[labels[index]] = votes.get(labels[index], 0) + np.exp(cosines[index] / temperature)
    return max(votes, key=votes.get)


@given(seed=st.integers(0, 1000), neighbours=st.integers(1, 40), temperature=st.sampled_from([0.07, 1.0]))
def test_is_the_papers_formula(seed, neighbours, temperature):
    rng = np.random.default_rng(seed)
    bank, queries = rng.normal(size=(30, 5)), rng.normal(size=(4, 5))
    labels = rng.integers(0, 3, 30)
    found = knn_predict(
        torch.tensor(bank),
        torch.tensor(labels),
        torch.tensor(queries),
        neighbours=neighbours,
        temperature=temperature,
    )
    assert found.tolist() == [by_hand(bank, labels, q, neighbours, temperature) for q in queries]
    by_default = knn_predict(*map(torch.tensor, (bank, labels, queries)))
    assert by_default.tolist() == [by_hand(bank, labels, q, 20, 0.07) for q in queries]
    alike = knn_predict(*map(torch.tensor, (bank, labels, queries)), temperature=9.0)
    assert alike.tolist() == [by_hand(bank, labels, q, 20, 9.0) for q in queries]


def test_a_tiny_temperature_is_the_nearest_neighbour():
    bank = torch.eye(3)
    queries = torch.tensor([[0.9, 0.5, 0.0], [0.0, 0.1, 5.0]])
    found = knn_predict(bank, torch.tensor([7, 4, 2]), queries, neighbours=3, temperature=1e-6)
    assert found.tolist() == [7, 2]


@given(seed=st.integers(0, 500), count=st.integers(1, 40), rows=st.integers(1, 12))
def test_the_nearest_are_those_of_all_however_the_bank_is_cut(seed, count, rows):
    generator = torch.Generator().manual_seed(seed)
    bank, queries = (torch.randn(n, 6, generator=generator) for n in (30, 4))
    most, knn.MOST = knn.MOST, 1024 * rows
    try:
        cosines, places = knn.nearest(bank.half(), queries, count)
    finally:
        knn.MOST = most
    table = F.cosine_similarity(queries[:, None], bank.half().float()[None], dim=2)
    expected = table.sort(dim=1, descending=True)
    torch.testing.assert_close(cosines, expected.values[:, :count])
    assert torch.equal(places, expected.indices[:, :count])


def test_many_queries_are_done_in_parts():
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(50, 8, generator=generator)
    labels = torch.arange(50)
    found = knn_predict(bank, labels, bank.repeat(50, 1), neighbours=1)
    assert torch.equal(found, labels.repeat(50))
    assert accuracy(found, labels.repeat(50)) == 100
    assert accuracy(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4])) == pytest.approx(200 / 3)
