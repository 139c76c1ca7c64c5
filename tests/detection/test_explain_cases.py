"""Explain is judged on reproductions of others whose threads say what the cause was."""

import pytest

from tests.conftest import KIT
from tests.support import explain_cases
from triplet.published.causes import CHECKS, find
from triplet.published.facts import Facts
from triplet.published.reference import Reference

CASES = explain_cases.load()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_named_cause_is_among_the_first_two(case, tmp_path):
    found = case.explain(tmp_path)
    first = explain_cases.first_two(found)
    assert first
    if case.causes:
        assert set(case.causes) & set(first), [(c.name, c.verdict, c.part) for c in found.causes]
    assert found.next
    assert found.next.command.startswith(("triplet ", "make "))


def test_cases_name_causes_that_explain_knows():
    assert len(CASES) > 12
    assert CHECKS
    known = {cause.name for cause in find(Facts(), Reference.of_method("triplet"), (41.0, 35.6))} | {
        "SyncBN"
    }
    assert {name for case in CASES for name in case.causes} <= known


def test_the_table_of_the_docs_is_made_again(tmp_path):
    assert explain_cases.table(tmp_path) in (KIT / "docs" / "explain.md").read_text()
