"""What a terminal shows in place of a picture: bars, a text with bars under its tokens, and a tree of paths."""

import io
import itertools
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from attrib.core.types import InputError
from attrib.graph.graph import Graph
from attrib.graph.nodes import Nodes, NodeSet
from attrib.graph.search import strongest
from attrib.view import terminal
from attrib.view.branches import tree
from attrib.view.sparks import spark
from attrib.view.strip import MOST_LINES, strip


def test_a_bar_is_as_high_as_its_number_is_large():
    assert spark([0, 1, 2, 4, 8]) == " ▁▂▄█"
    assert spark([-8, 1e-30, 0.0]) == "█▁ ", "a size has a bar, however small"
    assert spark([1, 9], largest=2) == "▄█"
    assert spark([float("nan"), 3, float("inf")]) == "?█?"
    assert (spark([]), spark([0, 0])) == ("", "  ")


def test_an_encoding_without_bars_has_digits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(terminal, "_encoding", lambda: "latin-1")
    assert spark([0, 1, 8]) == " 18"
    shown = strip(["é", "→שלום"], [1, 8], 80).plain
    assert shown == "é\\u2192\\u05e9\\u05dc\\u05d5\\u05dd\n1" + "8" * 30 + "\n"
    shown.encode("latin-1")


def test_a_bar_stands_under_the_whole_of_its_token():
    assert strip(["The", " opposite", " of"], [0, 8.0, 1.0], 80).plain == "The opposite of\n   █████████▁▁▁\n"
    assert strip([], [], 80).plain == ""
    with pytest.raises(InputError, match="values: 1 of them for 2 tokens"):
        strip(["a", "b"], [1.0], 80)


def test_lines_end_at_the_width_and_tokens_go_on():
    assert strip(["abc", "defg", "h"], [2.0, 1.0, 2.0], 4).plain == "abcd\n███▄\nefgh\n▄▄▄█\n"
    assert strip(["漢字", "か"], [1.0, 2.0], 3).plain == "漢\n▄▄\n字\n▄▄\nか\n██\n", "two columns each, and none is cut in half"
    for width in (1, 2, 7, 80):
        lines = strip(["x漢" * 50, "\x1b[2J", "🙂"], [1.0, 2.0, 3.0], width).plain.split("\n")
        assert max(cell_len(line) for line in lines if not line.endswith(" lines]")) <= max(2, width)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("\x1b]0;mine\x07", r"\x1b]0;mine\x07"), ("\n", r"\n"), ("\r\t", r"\r\t"), ("\u202eabc", r"\u202eabc"), ("[bold]", "[bold]"),
        ("שלום", "\u2068שלום\u2069"), ("", "''"), ("\u0301", r"\u0301"), ("\u200d", r"\u200d"), ("e\u0301", "e\u0301"),
    ],
)  # fmt: skip
def test_no_token_does_more_than_stand_there(token: str, shown: str):
    """Beside others, whose bars stay under them."""
    line, bars, _ = strip(["a", token, "b"], [4.0, 8.0, 4.0], 80).plain.split("\n")
    assert line == f"a{shown}b"
    assert bars == "▄" + "█" * cell_len(shown) + "▄"


def test_a_long_text_is_shown_where_it_matters():
    values = [0.0] * 1000
    values[500], values[505] = 3.0, float("nan")
    found = strip(["abcd"] * 1000, values, 4).plain.split("\n")
    assert found[0] == "abcd"
    assert found.count("abcd") == MOST_LINES
    bars = [below for above, below in itertools.pairwise(found) if above == "abcd"]
    assert sorted(filter(None, bars)) == ["????", "████"]
    assert f"[{500 - (MOST_LINES - 2)} more lines]" in found
    assert sum(int(line.split()[0][1:]) for line in found if line.endswith(" lines]")) == 1000 - MOST_LINES


def rendered(printed: Any, **options: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=80, markup=False, highlight=False, **options).print(printed)
    return out.getvalue()


def test_colour_follows_the_size_and_can_be_left_out():
    found = strip(["a", "b", "c"], [0.0, 4.0, 8.0], 80)
    # rich writes a style as it has written it first, in whichever colours: so what it is, and not what is written
    told = [(found.plain[span.start : span.end], str(span.style)) for span in found.spans[:2]]
    assert told == [("b", "black on rgb(128,184,216)"), ("c", "white on rgb(0,114,178)")]
    assert "\x1b[" in rendered(found, force_terminal=True, color_system="truecolor")
    assert "\x1b" not in rendered(found)
    assert "\x1b" not in rendered(found, force_terminal=True, color_system=None)


def small() -> Graph:
    """Two tokens, two latents, one logit: the second token acts on it through both latents, the first through one."""
    sets = (
        NodeSet("token", "embed", "", 2), NodeSet("latent", "blocks.1.mlp.hook_in", "t", 1),
        NodeSet("latent", "blocks.2.mlp.hook_in", "t", 1), NodeSet("logit", "blocks.2.hook_resid_post", "", 1),
    )  # fmt: skip
    strings = ("a", "\x1b b")
    nodes = Nodes(sets, torch.tensor([0, 1, 1, 1, 1]), torch.tensor([5, 6, 7, 9, 3]), torch.ones(5), (*strings, " ש"))
    total = torch.tensor([1.0, 3.0, 4.5])
    return Graph(
        nodes, torch.tensor([2, 3, 4]), torch.tensor([0, 2, 3, 5]), torch.tensor([0, 1, 1, 2, 3]), torch.tensor([2.0, -1.0, 3.0, 4.0, 0.5]),
        total, total * 0, total, total, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([5, 6]), strings,
    )  # fmt: skip


def test_what_paths_share_stands_once():
    graph = small()
    found = tree(graph, strongest(graph, 4, 3), ": 4.5")
    assert rendered(found).splitlines() == [
        "\u2068logit ' ש'@1\u2069: 4.5",
        "├── +4 mlp1[7]@1 '\\x1b b'",
        "│   ├── +2 token 'a'@0  (path +8)",
        "│   └── -1 token '\\x1b b'@1  (path -4)",
        "└── +0.5 mlp2[9]@1 '\\x1b b'",
        "    └── +3 token '\\x1b b'@1  (path +1.5)",
    ]
    assert "\x1b[" in rendered(found, force_terminal=True, color_system="truecolor")
    assert "\x1b" not in rendered(found, force_terminal=True, color_system=None)
    assert max(map(cell_len, rendered(tree(graph, strongest(graph, 4), " long" * 99)).splitlines())) <= 80
