"""The text of a continuation as it grows: pieces make up the whole, nothing shown is taken back, and stops end it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attrib.causal.continuing import Growing, Piece, Stops, decoder_of, grown, stops_of
from attrib.core.types import InputError
from attrib.models.tokenizer import Tokenizer
from tests.support.examples import examples

VOCABULARY = [*"abc ", "ab", "é", "日本", *(bytes([b]) for b in "é日😀".encode()), "\n", " the", "<|end|>"]
BYTES = [token if isinstance(token, bytes) else token.encode() for token in VOCABULARY]
END = len(VOCABULARY) - 1
TOKENIZER = Tokenizer(
    encode=lambda text: [VOCABULARY.index(char) for char in text],
    decode=lambda ids: b"".join(BYTES[n] for n in ids).decode(errors="replace"),
    special={END: "<|end|>"},
    end=END,
)


def run(tokens: list[int], stops: Stops, prompt: tuple[int, ...] = ()) -> tuple[Growing, list[Piece]]:
    """A continuation of at most these tokens."""
    decode, one, pieces = decoder_of(TOKENIZER, prompt), Growing(0, 0), []
    for token in tokens:
        one, piece = grown(one, token, -1.0, decode, stops, len(tokens))
        pieces.append(piece)
        if one.ended:
            break
    return one, pieces


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(st.integers(0, END), min_size=1, max_size=12),
    st.lists(st.sampled_from(["ab", "bca", "aab", "日", "\n", "é the"]), max_size=2),
    st.lists(st.integers(0, END - 1), max_size=3),
)
def test_pieces_make_up_the_text(tokens: list[int], texts: list[str], prompt: list[int]):
    one, pieces = run(tokens, stops_of(texts, TOKENIZER, 100, at_end=True), tuple(prompt))
    assert "".join(piece.text for piece in pieces) == one.text
    assert [piece.token for piece in pieces] == list(one.tokens) == tokens[: len(one.tokens)]
    assert not any(text in one.text for text in texts)
    assert one.ended is not None
    assert [piece.ended for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    if one.ended == "length":
        whole = tokens
    elif one.ended == "end":
        assert tokens[len(one.tokens) - 1] == END
        whole = tokens[: len(one.tokens) - 1]
    else:
        whole = tokens[: len(one.tokens)]
    assert decoder_of(TOKENIZER, prompt)(whole).startswith(one.text)
    assert one.ended == "stop" or decoder_of(TOKENIZER, prompt)(whole) == one.text


def test_a_character_in_several_tokens_is_shown_when_it_is_whole():
    first = VOCABULARY.index("😀".encode()[0:1])
    _, pieces = run([0, first, first + 1, first + 2, first + 3, 1], Stops(None, frozenset(), ()))
    assert [piece.text for piece in pieces] == ["a", "", "", "", "😀", "b"]


def test_what_could_become_a_stop_is_held_back():
    _, pieces = run([2, 0, 1, 3, 0, 1, 2], Stops(None, frozenset(), ("abc",)))
    assert [piece.text for piece in pieces] == ["c", "", "", "ab ", "", "", ""]
    assert pieces[-1].ended == "stop"


def test_a_stop_across_tokens_and_within_one():
    one, _ = run([2, 4, 2, 0], Stops(None, frozenset(), ("bc",)))
    assert (one.text, one.ended, one.tokens) == ("ca", "stop", (2, 4, 2))
    one, _ = run([2, VOCABULARY.index(" the"), 2], Stops(None, frozenset(), ("t", "he")))
    assert (one.text, one.ended) == ("c ", "stop")


def test_ids_stop_and_so_does_a_special_token_by_its_text():
    for stop in (2, "<|end|>", [5, "<|end|>"]):
        one, _ = run([0, 1, 2, END, 1], stops_of(stop, TOKENIZER, 100, at_end=False))
        assert (one.text, one.ended) == (("ab", "stop") if stop == 2 else ("abc", "stop"))
    one, _ = run([0, END, 1], stops_of([], TOKENIZER, 100, at_end=False))
    assert (one.text, one.ended) == ("a<|end|>b", "length")


def test_a_tokenizer_that_drops_the_first_space_is_read_behind_the_prompt():
    words = ["▁the", "▁end", "s"]
    dropping = Tokenizer(encode=lambda text: [], decode=lambda ids: "".join(words[n] for n in ids).replace("▁", " ").removeprefix(" "))
    decode = decoder_of(dropping, [0])
    assert decode([1]) == " end"
    assert decode([1, 2, 0]) == " ends the"


@pytest.mark.parametrize(
    ("stop", "tokenizer", "message"),
    [
        ("", TOKENIZER, "stop: an empty text"),
        (["a", ""], TOKENIZER, "stop: an empty text"),
        ("a", None, "stop: 'a', and the model has no tokenizer"),
        (100, TOKENIZER, "stop: 100; expected texts, or token ids from 0 to 99"),
        (-1, TOKENIZER, "stop: -1"),
        (True, TOKENIZER, "stop: True"),
        ([1.5], TOKENIZER, "stop: 1.5"),
    ],
)
def test_stops_that_are_none_are_refused(stop: object, tokenizer: Tokenizer | None, message: str):
    with pytest.raises(InputError, match=message):
        stops_of(stop, tokenizer, 100, at_end=True)  # type: ignore[arg-type]
