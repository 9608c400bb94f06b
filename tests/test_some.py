"""Of many cases, those are kept in which each value of each argument is, and they are few."""

import pytest

from tests.support.some import covering, some, values_of

CASES = """
import pytest

class Odd:
    pass

@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
@pytest.mark.parametrize(("kind", "error"), [("sae", True), ("sae", False), ("skip", True), ("skip", False)])
def test_combinations(family, kind, error):
    pass

@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("odd", [Odd(), Odd()])
def test_what_has_no_text_of_its_own(odd, way):
    pass

@pytest.mark.parametrize("number", [10**5000, 10**5000 + 1], ids=["large", "larger"])
@pytest.mark.parametrize("options", [{"lens": True}, {"lens": False}])
def test_options_and_large_numbers(number, options):
    pass

def test_alone():
    pass

@pytest.mark.long
def test_long():
    pass

@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma", "qwen", "phi"])
def test_few(family):
    pass

@pytest.mark.few
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma", "qwen", "phi"])
def test_few_others(family):
    pass
"""


@pytest.fixture
def items(pytester: pytest.Pytester) -> list[pytest.Item]:
    pytester.makeini("[pytest]\nmarkers =\n    long\n    few")
    return [*pytester.getitems(CASES)]


def named(items: list[pytest.Item], name: str) -> list[pytest.Item]:
    return [item for item in items if item.name.partition("[")[0] == name]


def test_each_value_is_in_a_case_that_is_kept(items: list[pytest.Item]) -> None:
    cases = named(items, "test_combinations")
    kept = covering(cases)
    assert len(cases) == 12
    assert set().union(*map(values_of, kept)) == set().union(*map(values_of, cases))
    assert {("family", "'gemma'"), ("kind", "'skip'"), ("error", "False")} <= set().union(*map(values_of, kept))
    assert len(kept) == 3


def test_what_is_long_is_left_out_and_no_value_is(items: list[pytest.Item]) -> None:
    kept, left_out = some(items)
    assert len(named(kept, "test_what_has_no_text_of_its_own")) == 2
    assert len(named(kept, "test_options_and_large_numbers")) == 2
    assert len(named(kept, "test_alone")) == 1
    assert named(left_out, "test_long")
    assert not named(kept, "test_long")
    assert len(kept) + len(left_out) == len(items)
    assert [item for item in items if item in kept] == kept, "in their order"


def test_of_those_that_take_long_two_are_kept_and_not_the_same_ones_of_each(items: list[pytest.Item]) -> None:
    kept, left_out = some(items)
    found = [[item.name.partition("[")[2] for item in named(kept, name)] for name in ("test_few", "test_few_others")]
    assert [len(each) for each in found] == [2, 2]
    assert found[0] != found[1]
    assert len(named(left_out, "test_few")) == 3
