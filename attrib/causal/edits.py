"""Edits as values: what is changed in a pass, at which positions, and to what; and their text form.

An edit names what it changes (latents of a dictionary, the error of a place, the value at a site, a head) and says what becomes of it:

    Set      v'  =  value, or value(v) where it is a function
    Scale    v'  =  factor · v
    Add      v'  =  v + value
    Ablate   v'  =  0, the mean of v over other prompts, or a v of other prompts

v has one row for each edited position, and as many columns as what is edited has: `Latents(d, 3)` is [positions], `Latents(d, [3, 5])`
[positions, 2], `Latents(d)` [positions, d_sae], a site and an error [positions, width], `Head(5, 1)` [positions, d_head] and
`Head(5, [1, 2])` [positions, 2, d_head]. Values broadcast to that. Edits are taken in the order given: of two of one thing, the
second is given what the first has made. `changes.py` finds them good for a model and applies them.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from attrib.core.positions import PositionsLike
from attrib.core.shown import in_one_line, shown
from attrib.core.types import ErrorAt, InputError, Site
from attrib.dictionaries.dictionary import Dictionary


@in_one_line
class Latents(NamedTuple):
    """Latents of a dictionary of the call: one, several, or all of them (None). They need not be active.

    `dictionary` is the dictionary itself, its number among those of the call, its name, or the site that it reads. They are what an
    edit changes, at the positions that the edit names; `attrib.graph.Latents` are targets of a graph, each with a position of its own.
    """

    dictionary: Dictionary | str | Site | int
    latents: "int | Sequence[int] | None" = None


@in_one_line
class Head(NamedTuple):
    """What one attention head, or several of a layer, give: their part of z, before W_O."""

    layer: int
    heads: "int | Sequence[int]"


What = Latents | Head | ErrorAt | Site | str
"""What can be edited. A str is a site's name; `ErrorAt(site)` is what stands there beyond what the dictionaries decode."""

Ablation = Literal["zero", "mean", "resample"]


@in_one_line
class Set(NamedTuple):
    """Put a value in the place of what the pass has there: a number, a tensor, or a function from the one to the other."""

    what: What
    value: Any
    positions: PositionsLike = None


@in_one_line
class Scale(NamedTuple):
    """Multiply by a number or a tensor."""

    what: What
    factor: Any
    positions: PositionsLike = None


@in_one_line
class Add(NamedTuple):
    """Add a number or a tensor: steering, where it is a direction at a site."""

    what: What
    value: Any
    positions: PositionsLike = None


@in_one_line
class Ablate(NamedTuple):
    """Take away what is particular to a prompt.

    "zero" puts 0. "mean" puts the mean over all positions of the prompts `of`, on the model's own pass; `of` may also be that mean, a
    tensor of floating-point numbers. "resample" puts what stands in the prompts `of`: without a `seed`, prompt n takes the values of
    the n-th of them (or of the only one), which has its length, position by position; with one, every edited position takes those of a
    position of these prompts that is drawn uniformly.
    """

    what: What
    how: Ablation = "zero"
    positions: PositionsLike = None
    of: Any = None
    seed: int | None = None


Edit = Set | Scale | Add | Ablate
EditsLike = Any
"""One edit, its text form, or a sequence of these."""

EXPECTED = "expected Set, Scale, Add or Ablate, or their text such as 'blocks.6.hook_resid_pre[493]@-1=0', or a list of these"


def as_edits(given: EditsLike, argument: str = "edits") -> tuple[Edit, ...]:
    """Edits of what was given, in its order.

    Raises:
        InputError: for what is none, and for an ablation that contradicts itself.
    """
    if isinstance(given, Edit | str):
        given = (given,)
    if not isinstance(given, Sequence):
        raise InputError(f"{argument}: a {type(given).__name__}; {EXPECTED}.")
    return tuple(_as_edit(one, argument if len(given) == 1 else f"{argument}[{number}]") for number, one in enumerate(given))


def _as_edit(given: Any, argument: str) -> Edit:
    if isinstance(given, str):
        return parse_edit(given, argument=argument)
    if not isinstance(given, Edit):
        raise InputError(f"{argument}: {shown(given)[:80]}; {EXPECTED}.")
    if isinstance(given, Ablate):
        _check_ablation(given, argument)
    return given


def _check_ablation(edit: Ablate, argument: str) -> None:
    if edit.how not in get_args(Ablation):
        raise InputError(f"{argument}: Ablate(how={edit.how!r}); expected {', '.join(map(repr, get_args(Ablation)))}.")
    if edit.how == "zero" and edit.of is not None:
        raise InputError(f"{argument}: Ablate('zero', of=...) needs no other prompts; leave `of` out, or say 'mean' or 'resample'.")
    if edit.how != "zero" and edit.of is None:
        also = ", or the mean itself" if edit.how == "mean" else ""
        raise InputError(f"{argument}: Ablate({edit.how!r}) without `of`; expected the prompts from which values are taken{also}.")
    if edit.seed is not None and edit.how != "resample":
        raise InputError(f"{argument}: Ablate({edit.how!r}, seed={edit.seed!r}) draws nothing; leave the seed out.")
    if edit.seed is not None and (isinstance(edit.seed, bool) or not isinstance(edit.seed, int) or not 0 <= edit.seed < 2**63):
        raise InputError(f"{argument}: Ablate(seed={edit.seed!r}); expected a whole number of at least 0.")


# ----------------------------------------------------------------------------------------- as text

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?"
_TEXT = re.compile(r"(?P<what>[^=*+@]+?)(?: ?@(?P<at>[^=*+@]+))?(?P<sign>[=*+])(?P<value>[^\s]+)")
_LATENTS = re.compile(r"(?P<of>.+)\[(?P<latents>:|\d{1,18}(?:,\d{1,18})*)\]")
_HEAD = re.compile(r"L(?P<layer>\d{1,9})H(?P<heads>\d{1,9}(?:,\d{1,9})*)")

FORM = (
    "expected WHAT@POSITIONS=VALUE, *FACTOR or +VALUE, or =zero, =mean or =resample. WHAT is SITE[NUMBER] or NAME[NUMBER] for a latent "
    "([3,5] several, [:] all), SITE, error:SITE, or L5H1 for a head; @POSITIONS, such as @-1, @2:5 or @0,3, may be left out for all"
)


def parse_edit(text: str, *, of: Any = None, seed: int | None = None, argument: str = "edits") -> Edit:
    """An edit of its text form, such as "blocks.6.hook_resid_pre[493]@-1=0", "L5H1*0.5", "error:blocks.8.hook_mlp_out=zero".

    Args:
        of, seed: of `Ablate`, where the text says =mean or =resample.
        argument: what errors call it.

    Raises:
        InputError: for other text, which it repeats.
    """
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{argument}: {text!r}; {FORM}.")
    what, at, sign, value = found["what"].strip(), found["at"], found["sign"], found["value"]
    try:
        edited, positions = _what(what), _positions(at)
    except InputError as error:
        raise InputError(f"{argument}: {text!r}: {error}") from error
    if sign == "=" and value in get_args(Ablation):
        is_zero = value == "zero"
        edit = Ablate(edited, value, positions, None if is_zero else of, seed if value == "resample" else None)  # type: ignore[arg-type]
        _check_ablation(edit, f"{argument}: {text!r}")
        return edit
    if re.fullmatch(_NUMBER, value) is None:
        raise InputError(f"{argument}: {text!r}: {value!r} is no number; {FORM}.")
    number = float(value)
    return Set(edited, number, positions) if sign == "=" else (Scale if sign == "*" else Add)(edited, number, positions)


def _what(text: str) -> What:
    if (latents := _LATENTS.fullmatch(text)) is not None:
        numbers = [int(number) for number in latents["latents"].split(",")] if latents["latents"] != ":" else None
        return Latents(latents["of"], numbers[0] if numbers and len(numbers) == 1 else numbers)
    if (head := _HEAD.fullmatch(text)) is not None:
        heads = [int(number) for number in head["heads"].split(",")]
        return Head(int(head["layer"]), heads[0] if len(heads) == 1 else heads)
    if text.startswith("error:"):
        return ErrorAt(Site.parse(text.removeprefix("error:")))
    return Site.parse(text)


def _positions(text: str | None) -> PositionsLike:
    if text is None:
        return None
    text = text.strip()
    if re.fullmatch(r"-?\d{1,9}", text):
        return int(text)
    return [int(one) for one in text.split(",")] if re.fullmatch(r"-?\d{1,9}(?:,-?\d{1,9})+", text) else text


def text_of(edit: Edit) -> str:
    """The edit in one line: its text form, where a number is put; a tensor is shown by its shape.

    >>> text_of(Scale(Head(5, 1), 0.5, -1))
    'L5H1@-1*0.5'
    """
    match edit:
        case Set(value=value):
            sign = f"={_shown(value)}"
        case Scale(factor=factor):
            sign = f"*{_shown(factor)}"
        case Add(value=value):
            sign = f"+{_shown(value)}"
        case Ablate(how=how):
            sign = f"={how}"
    return f"{name_of(edit.what)}{_at(edit.positions)}{sign}"


def name_of(what: What) -> str:
    """What is edited, as its text form has it."""
    match what:
        case Latents(dictionary=of, latents=latents):
            return f"{of.name if isinstance(of, Dictionary) else of}[{':' if latents is None else _listed(latents)}]"
        case Head(layer=layer, heads=heads):
            return f"L{layer}H{_listed(heads)}"
        case ErrorAt(site=site):
            return f"error:{site}"
    return str(what)


def _at(positions: PositionsLike) -> str:
    if positions is None:
        return ""
    return f"@{positions}" if isinstance(positions, str | int) else f"@{_listed(positions)}"


def _listed(numbers: Any) -> str:
    numbers = numbers.tolist() if hasattr(numbers, "tolist") else numbers
    if isinstance(numbers, slice):
        return ":".join("" if part is None else str(part) for part in (numbers.start, numbers.stop))
    return ",".join(map(str, numbers)) if isinstance(numbers, Sequence | range) else str(numbers)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else shown(value)
