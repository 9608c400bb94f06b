"""Combinations that stand for all of them: any two choices that can meet do, and few are taken."""

from itertools import product

from tests.support.covering import Row, pairs_of, pairwise

CHOICES = {"family": "abcdef", "set": range(5), "policy": ["exact", "linear", "frozen"], "error": [True, False]}


def pairs(rows: list[Row]) -> set[object]:
    return {pair for row in rows for pair in pairs_of(row)}


def test_any_two_choices_meet_in_few_combinations() -> None:
    every = [dict(zip(CHOICES, values, strict=True)) for values in product(*CHOICES.values())]
    found = pairwise(CHOICES)
    assert all(row in every for row in found)
    assert pairs(found) == pairs(every)
    assert 6 * 5 <= len(found) <= 6 * 5 + 4 < len(every) // 5
    assert found == pairwise(CHOICES)


def test_what_cannot_be_asked_is_left_out_and_no_other_pair_with_it() -> None:
    def is_possible(row: Row) -> bool:
        return (row["family"], row["policy"]) != ("a", "linear") and (row["set"] < 3 or row["error"])

    found, every = pairwise(CHOICES, is_possible), [dict(zip(CHOICES, values, strict=True)) for values in product(*CHOICES.values())]
    assert all(map(is_possible, found))
    assert pairs(found) == pairs([row for row in every if is_possible(row)])
    assert len(found) < 40
