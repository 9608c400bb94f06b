"""Latents by what they are active at, by what is around that, and by what they are called."""

from typing import Literal, NamedTuple, get_args

import numpy as np

from attrib.core.types import InputError
from attrib.latents.labels import Labels, token_shares
from attrib.latents.surveyed import LatentSurvey, Survey

Where = Literal["token", "context", "label"]


class Found(NamedTuple):
    """A latent that matches, and how much."""

    dictionary: str
    latent: int
    where: Where
    score: float
    """Of tokens, the share of the sum of the latent's largest scores that is theirs; of contexts, the share of its largest examples
    that have the text; of labels 1."""
    text: str
    """The strongest token, the first such context, or the label."""


def search(survey: Survey | LatentSurvey, text: str, *, where: Where = "token", labels: Labels | None = None, k: int = 20) -> list[Found]:
    """The latents of a survey that match a text, the best first; letters are alike whether small or capital.

    Args:
        where: "token", whether the tokens at which a latent is active hold the text; "context", whether what stands around its
            largest scores does; "label", whether its labels do.
        labels: needed for "label".
        k: how many.

    Raises:
        InputError: for an empty text, or where the labels are missing.
    """
    if where not in get_args(Where):
        raise InputError(f"where: {where!r}; expected one of {', '.join(get_args(Where))}.")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"text: {text!r}; expected some to look for.")
    wanted = text.casefold()
    parts = survey.parts if isinstance(survey, Survey) else (survey,)
    if where == "label":
        if labels is None:
            raise InputError("labels: missing, and a label is looked for; give labels=.")
        present = {part.asked.dictionary: {*part.latents.tolist()} for part in parts}
        found = [
            Found(label.dictionary, label.latent, where, 1.0, label.text)
            for label in labels
            if wanted in label.text.casefold() and label.latent in present.get(label.dictionary, ())
        ]
    else:
        look = _by_token if where == "token" else _by_context
        found = [one for part in parts for one in look(part, wanted)]
    return sorted(found, key=lambda one: -one.score)[:k]


def _by_token(part: LatentSurvey, wanted: str) -> list[Found]:
    matching = np.array([token for token, string in part.strings.items() if wanted in string.casefold()], np.int64)
    before, found = part.asked.limits.before, []
    at = np.unique(
        np.concatenate([places.at[np.isin(places.tokens[:, before], matching)] for places in (part.tally.top, part.tally.sample)])
    )
    for latent in part.latents[at].tolist():
        shares = {token: share for token, share in token_shares(part, latent).items() if token in matching}
        if shares:
            found.append(Found(part.asked.dictionary, latent, "token", sum(shares.values()), part.string(next(iter(shares)))))
    return found


def _by_context(part: LatentSurvey, wanted: str) -> list[Found]:
    found = []
    for latent in part.latents[np.unique(part.tally.top.at)].tolist():
        texts = [one.text for one in part.top(latent)]
        matching = [text for text in texts if wanted in text.casefold()]
        if matching:
            found.append(Found(part.asked.dictionary, latent, "context", len(matching) / len(texts), matching[0]))
    return found
