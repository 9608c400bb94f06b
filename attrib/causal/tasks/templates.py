"""Rows of a data set as prompts with answers: text with {fields} in it, as it is or as what the user says in a chat.

Only names stand in braces: `{premise}` is the row's premise, and `{{` a brace. The templates of RTE and BoolQ are attrib's own words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from attrib.causal.tasks.examples import Answer, Example
from attrib.core.types import InputError
from attrib.models.tokenizer import brief

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Template:
    """How a row becomes an example."""

    text: str
    answers: tuple[Answer, ...]
    """Tokens, which may hold fields too, as in ("{right}", "{wrong}")."""
    label: str | tuple[str, ...] | int = "label"
    """The field with the label, or several of which the first that a row has is taken; or the number of the answer that is always right."""
    labels: Mapping[Any, int] = field(default_factory=dict)
    """The answer that a label's value means; values that are not here are themselves numbers of answers."""
    chat: bool = False
    """Whether the text is what a user says, in the model's chat template, behind which the answer is asked for."""
    system: str | None = None
    """What stands before it in a chat."""

    def __post_init__(self) -> None:
        if self.system is not None and not self.chat:
            raise InputError("system: has no effect on a template that is no chat; leave it out, or say chat=True.")
        for text in (self.text, *(one for answer in self.answers for one in _texts(answer))):
            _names(text)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that its text takes from a row."""
        return tuple(dict.fromkeys(_names(self.text)))


def filled(template: Template, row: Row, where: str = "") -> Example:
    """The example that a row is.

    Args:
        where: names the row in errors.

    Raises:
        InputError: where the row lacks a field, one holds what is no text or number, or its label is that of no answer, as in test sets
            whose labels are kept back.
    """
    text = _filled(template.text, row, where)
    answers = tuple(
        tuple(one if isinstance(one, int) else _filled(one, row, where) for one in ([answer] if isinstance(answer, str | int) else answer))
        for answer in template.answers
    )
    prompt: Any = text
    if template.chat:
        said = [("system", template.system)] if template.system is not None else []
        prompt = [{"role": role, "content": content} for role, content in [*said, ("user", text)]]
    return Example(prompt, answers, _label(template, row, len(answers), where), where)


def _label(template: Template, row: Row, count: int, where: str) -> int:
    if isinstance(template.label, int):
        return template.label
    names = (template.label,) if isinstance(template.label, str) else template.label
    name = next((one for one in names if row.get(one) is not None), None)
    if name is None:
        raise InputError(f"examples: {where} has no field {' or '.join(map(repr, names))}, its label; it has {_listed(row)}.")
    value = row[name]
    found = template.labels.get(value, value) if isinstance(value, str | int) else value
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < count:
        known = f", or one of {', '.join(map(repr, template.labels))}" if template.labels else ""
        raise InputError(f"examples: {where} has the label {brief.repr(value)}; expected the number of an answer, 0 to {count - 1}{known}.")
    return found


def _filled(text: str, row: Row, where: str) -> str:
    parts = []
    for literal, name, *_ in Formatter().parse(text):
        parts.append(literal)
        if name is None:
            continue
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            what = f"is {brief.repr(value)}, and no text" if name in row else f"is not there; it has {_listed(row)}"
            raise InputError(f"examples: {where}, its field {name!r} {what}.")
        parts.append(str(value))
    return "".join(parts)


def _names(text: str) -> list[str]:
    """The fields that a text names. Raises InputError for braces with anything else in them."""
    try:
        found = [(name, how, turned) for _, name, how, turned in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise InputError(f"template: {brief.repr(text)}: {error}; a brace that is text is written twice.") from error
    for name, how, turned in found:
        if not name.isidentifier() or how or turned:
            raise InputError(f"template: {brief.repr(text)} has {{{name}}} with more than a field's name; expected {{name}} alone.")
    return [name for name, *_ in found]


def _texts(answer: Answer) -> Sequence[str]:
    return [one for one in ([answer] if isinstance(answer, str | int) else answer) if isinstance(one, str)]


def _listed(row: Row) -> str:
    return ", ".join(map(repr, list(row)[:12])) or "none"


# --------------------------------------------------------------------------------------- by name

RTE = Template(
    "{premise}\nQuestion: Does it follow that \"{hypothesis}\"? Yes or no?\nAnswer:", (" Yes", " No"),
    labels={"entailment": 0, "not_entailment": 1},
)  # fmt: skip
"""Recognising textual entailment (GLUE, SuperGLUE): label 0 is entailment."""
BOOLQ = Template(
    "{passage}\nQuestion: {question}? Yes or no?\nAnswer:", (" No", " Yes"), ("label", "answer"),
    labels={False: 0, True: 1, "false": 0, "true": 1, "False": 0, "True": 1},
)  # fmt: skip
"""Yes/no questions about a passage (SuperGLUE, where the label is under "label", and BoolQ itself, where it is under "answer")."""

NAMED: dict[str, tuple[Template, str]] = {"rte": (RTE, "hf:aps/super_glue:rte"), "boolq": (BOOLQ, "hf:google/boolq")}
"""By name: the template, and where `datasets` finds the rows."""


def template_named(name: str, *, chat: bool = False) -> Template:
    """The template of "rte" or "boolq"; as a chat its answers begin without a space. Raises InputError for another name."""
    from dataclasses import replace

    if name not in NAMED:
        raise InputError(f"template: {name!r}; expected {', '.join(map(repr, NAMED))}.")
    found = NAMED[name][0]
    if not chat:
        return found
    answers = tuple(str(answer).strip() for answer in found.answers)
    return replace(found, text=found.text.removesuffix("\nAnswer:"), answers=answers, chat=True)
