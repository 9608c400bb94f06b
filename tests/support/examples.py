"""How many random examples tests draw: a quarter before each change, and mostly others each time; all of them in `make thorough`."""

from hypothesis import settings

SHARE = 4
"""Of so many examples one is drawn."""

_ALL = settings.get_profile("default").max_examples


def draw_fewer() -> None:
    """Have tests that are imported from now on draw a share of their examples."""
    settings.register_profile("some", max_examples=_ALL // SHARE)
    settings.load_profile("some")


def examples(count: int) -> int:
    """How many a test draws that does not want hypothesis' own number, but `count` where all are drawn."""
    return max(1, round(count * settings.default.max_examples / _ALL))
