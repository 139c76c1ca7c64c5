"""The maker of mistakes: which ones it makes of a text, and by which tests they are tried."""

from tests import mutants

TEXT = '''"""Docstring with 1 number."""

LIMIT = 3


def share(values, total: int = 2) -> float:
    """Of 7 values."""
    if total > 0 and not values:
        raise ValueError(f"{total + 1} of none")
    values.sort(reverse=True)
    return min(values, LIMIT) / total
'''


def test_mistakes_are_small_and_plausible():
    made = [(each.line, each.was, each.now) for each in mutants.mutants(TEXT)]
    assert made == [
        (3, "3", "4"),
        (6, "2", "3"),
        (8, "total > 0 and not values", "(not (total > 0 and (not values)))"),
        (8, "total > 0 and not values", "(total > 0 or not values)"),
        (8, "total > 0", "total >= 0"),
        (8, "0", "1"),
        (8, "not values", "(values)"),
        (9, 'raise ValueError(f"{total + 1} of none")', ""),
        (10, "values.sort(reverse=True)", ""),
        (10, "values.sort(reverse=True)", "values.sort()"),
        (10, "True", "False"),
        (11, "min(values, LIMIT) / total", "(min(values, LIMIT) * total)"),
        (11, "min(values, LIMIT)", "min(LIMIT, values)"),
        (11, "min(values, LIMIT)", "max(values, LIMIT)"),
    ]


def test_each_mistake_changes_one_place_and_still_compiles():
    for each in mutants.mutants(TEXT):
        compile(each.text, "text", "exec")
        assert each.text != TEXT
        assert each.text.replace(each.now or "pass", each.was, 1).count("\n") == TEXT.count("\n")
    found = mutants.mutants(TEXT)
    assert mutants.chosen(found, 5) == mutants.chosen(found, 5)
    assert len(mutants.chosen(found, 5)) == 5
    assert mutants.chosen(found, 99) == mutants.chosen(found, None) == found


def test_a_modules_tests_bear_its_name_or_import_it():
    found = mutants.tests_of("triplet/training/schedule.py")
    assert found[0] == "tests/training/test_schedule.py"
    assert "tests/training/test_optimizers_by_hand.py" in found
    assert not any("containers" in name for name in found)
