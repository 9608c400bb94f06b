"""`attrib.view.dashboard`: pages of latents of any dictionary; and `task_dashboard`, of those that decide a task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from attrib.adapters.given import as_bytes, as_dictionaries, as_model, only, takes
from attrib.causal.tasks.results import TaskResults
from attrib.causal.tasks.tables import effects_of_latents, top_latents
from attrib.core.sealed import sealed
from attrib.core.shown import harmless
from attrib.core.types import InputError
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.latents.labels import Labels
from attrib.latents.surveyed import LatentSurvey, Survey
from attrib.view.columns import is_whole
from attrib.view.highlighting import COLOURED, LEVELS, TOKENS
from attrib.view.latent_pages.gathered import Gathered, Group, Table, as_survey, by_hash, gathered, group_of, groups_of
from attrib.view.latent_pages.sections import Sections, index_row, not_here
from attrib.view.pages import AS_LABELS, AS_LINKS, Page, check_names

SAMPLES = 8
"""Examples of a task on a latent's section."""
_HEAT = "".join(f".h{level}{{stroke-opacity:{level / LEVELS:.4g}}}" for level in range(1, LEVELS + 1))


_AS_TABLES = only(Mapping, "a dict of lists of attrib.view.Table by (name of the dictionary, latent)", or_none=True)


@takes(budget=as_bytes, labels=AS_LABELS, links=AS_LINKS, tables=_AS_TABLES)
def dashboard(
    of: Any,
    latents: Any = None,
    *,
    model: Any = None,
    survey: Any = None,
    others: Any = (),
    labels: Labels | None = None,
    links: Mapping[str, str] | None = None,
    tables: Mapping[tuple[str, int], Sequence[Table]] | None = None,
    title: str = "",
    k: int = 10,
    examples: int = 10,
    bands: int = 5,
    per_band: int = 4,
    budget: int = DEFAULT_BUDGET,
) -> Page:
    """A page of one or several latents: what they do over a corpus, and what the weights say of them. It opens offline.

    Each latent has a section, with an index and a search above. What its sources do not give is left out, and the page says what to give.

    Args:
        of: a dictionary of any kind, or the survey of one; or several, as pairs (dictionary, latents); or None, for the survey's only one.
        latents: which: numbers, a slice, or a mask.
        model: for logits, de-embeddings and heads, of dictionaries and not of surveys alone.
        survey: of these dictionaries, or its file: for densities, examples and bands of scores; and for the labels and mean activations
            of relatives, where it is of `others` too.
        others: dictionaries among whose latents parents and children are looked for, by virtual weights.
        labels: what latents are called; where they say nothing, the tokens of a latent's largest scores are named.
        links: by a dictionary's name, the address of its latents up to a number; else as the dictionary's files say.
        tables: by a dictionary's name and latent, what else is shown.
        title: of the page.
        k: how many tokens at either end, and relatives of each other dictionary.
        examples: how many of the largest scores.
        bands, per_band: into how many quantiles scores are divided, and how many sampled examples each has at most.
        budget: bytes of working memory.

    Raises:
        InputError: for latents that are not there or not surveyed, a dictionary of another model, a survey of other dictionaries.
        BudgetError: where the budget is too small for one latent.
    """
    for name, value, least in (("k", k, 1), ("examples", examples, 0), ("bands", bands, 0), ("per_band", per_band, 0)):
        if not is_whole(value) or value < least:
            raise InputError(f"{name}: {value!r}; expected a whole number, at least {least}.")
    surveyed, kin = as_survey(survey), as_dictionaries(others, "others")
    groups = groups_of(of, latents, surveyed)
    check_names("links", links or (), *(group.name for group in groups))
    shown = {(group.name, latent) for group in groups for latent in group.latents}
    if strange := [place for place in tables or () if place not in shown]:
        raise InputError(f"tables: {strange[0]!r} is no latent of the page; expected (name, latent) of those that it shows.")
    found = gathered(groups, None if model is None else as_model(model), surveyed, kin, labels, links or {}, tables or {}, k, budget)
    return _page(found, Sections(found, examples=examples, bands=bands, per_band=per_band), title)


@takes(results=only(TaskResults, "what `attrib.causal.tasks.run_task` or `open_results` gives"))
def task_dashboard(
    results: TaskResults,
    dictionaries: Any = (),
    *,
    operation: str = "ablation",
    top: int = 5,
    by: str = "total",
    correct: bool | None = None,
    survey: Any = None,
    others: Any = (),
    **options: Any,
) -> Page:
    """A page of the latents that move a task's answers most: of each dictionary the `top` that raise and the `top` that lower them.

    Args:
        results: of `attrib.causal.tasks.run_task`, or `open_results`.
        dictionaries: those of the run, or some of them; without them, the page has what the task and the survey say.
        operation, by, correct: as in `effects_of_latents` and `top_latents`.
        survey, others, options: as `dashboard` has them. The task's other dictionaries are others too.

    Raises:
        InputError: for results without that operation, dictionaries that are not the run's, and as `dashboard`.
    """
    chosen = top_latents(effects_of_latents(results.latents, results.samples, operation, correct=correct), top, by=by)
    if not len(chosen):
        raise InputError(f"results: no latent has an effect by {operation}; expected some.")
    given, parts = as_dictionaries(dictionaries, "dictionaries"), as_survey(survey)
    of = {str(name): rows["latent"].tolist() for name, rows in chosen.groupby("dictionary", sort=False)}
    groups = _of_run(results, of, given, parts)
    kin = [*as_dictionaries(others, "others"), *(given if len(groups) > 1 else ())]
    said = options.pop("title", "") or f"{results.record['task']}: the strongest latents by {operation}"
    return dashboard(groups, survey=parts, others=kin, tables=_effects(results, chosen, operation), title=said, **options)


def _of_run(
    results: TaskResults, latents: Mapping[str, list[int]], given: Sequence[Dictionary], survey: Survey | LatentSurvey | None
) -> list[Group]:
    """The dictionaries under the names that the run has for them, each with what is known of it."""
    records = results.record["dictionaries"]
    names = [one["name"] for one in records]
    told = {one["name"] if names.count(one["name"]) == 1 else f"{one['name']} at {one['site']}": one for one in records}
    hashes, surveyed = {one["sha256"] for one in records}, by_hash(survey)
    if wrong := [d.name for d in given if d.fingerprint not in hashes]:
        raise InputError(f"dictionaries: {wrong[0]} is none of the run's, which are {', '.join(told)}; expected these.")
    if survey is not None and not hashes & surveyed.keys():
        raise InputError(f"survey: of {', '.join(part.asked.dictionary for part in surveyed.values())}; expected one of {', '.join(told)}.")
    known = surveyed | {d.fingerprint: d for d in given}
    found = []
    for name, numbers in latents.items():
        of, digest = None, told[name]["sha256"]
        if digest in known:
            of = group_of(known[digest], numbers, surveyed)
        found.append(replace(of, name=name) if of else Group(name, told[name]["site"], tuple(numbers)))
    return found


def _effects(results: TaskResults, chosen: Any, operation: str) -> dict[tuple[str, int], list[Table]]:
    """What the task says of each latent: its effects in all, and the examples that it moves most."""
    rows, samples = results.latents, results.samples
    rows = rows[rows["operation"] == operation]
    answers = samples[samples["operation"] == operation].set_index("example")
    found = {}
    for one in chosen.itertuples():
        mine = rows[(rows["dictionary"] == one.dictionary) & (rows["latent"] == one.latent)]
        mine = mine.reindex(mine["effect"].abs().sort_values(ascending=False, kind="stable").index)[:SAMPLES]
        total = [("total", one.total), ("mean", one.mean), ("mean where active", one.mean_fired), ("mean activation", one.activation)]
        whole = [(name, f"{value:.4g}") for name, value in total]
        whole += [("active in", f"{one.n:,} of {one.samples:,} examples"), ("answers flipped", f"{one.flipped:,}")]
        each = [
            (
                str(row.example), f"{row.effect:.3g}", f"{row.activation:.3g}", repr(answers.loc[row.example, "right"]),
                repr(answers.loc[row.example, "wrong"]),
            )
            for row in mine.itertuples()
        ]  # fmt: skip
        found[one.dictionary, int(one.latent)] = [
            Table(f"Effect by {operation}, in logits", ("", ""), whole),
            Table("Examples that it moves most", ("example", "effect", "activation", "right", "wrong"), each),
        ]
    return found


# ---------------------------------------------------------------------------------------------------- the page


def _page(found: Gathered, sections: Sections, title: str) -> Page:
    every = [(group, at) for group in found.groups for at in range(len(group.latents))]
    named = harmless(title) or f"{len(every)} latents of {', '.join(group.name for group in found.groups)}"
    if len(every) == 1 and not title:
        named = f"{every[0][0].name}, latent {every[0][0].latents[0]}"
    missing = "".join(f"<li>{escape(harmless(line))}</li>" for line in not_here(found))
    absent = f"<details><summary>What is not here</summary><ul>{missing}</ul></details>" if missing else ""
    index = "".join(index_row(found, group, at, sections.anchors[group.name, group.latents[at]]) for group, at in every)
    body = (
        f'<div id="whole"><header><h1>{escape(named)}</h1>{_said(found)}{absent}</header>'
        '<nav aria-label="Latents"><div id="tools" hidden><label for="find">Number, label or token ( / )</label>'
        '<input id="find" type="search"><p><small id="found" role="status"></small></p>'
        '<button id="bands" type="button" aria-pressed="false">Open all bands</button></div>'
        f"<ol>{index}</ol></nav><main>{''.join(sections.section(group, at) for group, at in every)}</main></div>"
    )
    return Page(sealed(named, body, style=_kept("style.css") + TOKENS + COLOURED + _HEAT, scripts=[_kept("script.js")]), height=900)


def _said(found: Gathered) -> str:
    """What the whole page is of."""
    lines = [
        f"{group.name}: {'' if group.d_sae is None else f'{group.d_sae:,} '}latents at {group.site}"
        + ("" if group.part is None else f", surveyed with {group.part.asked.model} over {group.part.places:,} places")
        for group in found.groups
    ]
    return "".join(f"<p><small>{escape(harmless(line))}</small></p>" for line in lines)


@cache
def _kept(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
