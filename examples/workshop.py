"""A workshop on sparse autoencoders, which a notebook gives with SAELens, GPT-2 and TinyStories: run, evaluate, steer, attribute.

The same in the same order, of SmolLM2 with the dictionaries that come with attrib and a corpus of a few dozen sentences. Each heading
names the row of docs/from-the-notebooks.md; where the notebook draws, the table is what the picture shows.

    python examples/workshop.py [--tiny]
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import printing
import torch
from printing import Step, pairs, show
from tiny_model import tiny_dictionary, tiny_model

import attrib
from attrib import causal, latents

PROMPT, ANSWER = "Mitigating the risk of extinction from AI should be a global", " priority"
GENESIS, EARTH, SKY = "In the beginning, God created the heavens and the", " earth", " sky"
STORY = "Once upon a time"
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SENTENCES = (
    "The meeting was moved to {}.", "We will see each other on {} evening.", "She was born on a {} in May.",
    "The shop is closed on {}, and so is the bank.", "On {} they went to the sea, and swam in the cold sea until it was dark.",
)  # fmt: skip
POSITION = 8
"""At which the strongest latents are looked up, beside those of all positions."""


class Setting(NamedTuple):
    """A model; the SAE that all is about, another one further up, and dictionaries of several kinds."""

    model: attrib.Model
    sae: attrib.Dictionary
    later: attrib.Dictionary
    kinds: tuple[attrib.Dictionary, ...]
    corpus: list[str]
    new_tokens: int


def corpus() -> list[str]:
    """A few dozen sentences."""
    prompts = (Path(__file__).parent / "prompts.txt").read_text().splitlines()
    return [sentence.format(day) for sentence in SENTENCES for day in DAYS] + prompts


def smollm2() -> Setting:
    """SmolLM2-135M with two SAEs of its residual stream and a transcoder."""
    sae, later, transcoder = (
        attrib.load_dictionary(f"smollm2-135m/blocks.{at}") for at in ("9.hook_resid_pre", "18.hook_resid_pre", "8.mlp.hook_in")
    )
    return Setting(attrib.load_model("smollm2-135m"), sae, later, (sae, later, transcoder), corpus(), 40)


def tiny() -> Setting:
    """A random model of a few thousand parameters."""
    kinds = tuple(tiny_dictionary(kind, f"blocks.{at}", seed=n) for n, (kind, at) in enumerate((
        ("relu", "1.hook_resid_pre"), ("topk", "3.hook_resid_pre"), ("jumprelu", "2.hook_resid_pre"), ("transcoder", "1.mlp.hook_in"),
    )))  # fmt: skip
    model = tiny_model([*corpus(), PROMPT, ANSWER, GENESIS, EARTH, SKY, STORY])
    return Setting(model, kinds[0], kinds[1], kinds, corpus(), 6)


def steps(of: Setting) -> Iterator[Step]:
    """All that the workshop computes, in its order."""
    yield from releases(of)
    yield from running(of)
    survey = latents.survey(of.model, of.sae, of.corpus, per_band=2).of()
    labels = latents.token_labels(survey) + latents.logit_labels(of.model, of.sae)
    yield from searching(of, survey, labels)
    yield from worth(of, survey, labels)
    yield from steering(of, survey)
    yield from ablating(of)
    yield from attributing(of)


# --------------------------------------------------------------------------------- running dictionaries


def releases(of: Setting) -> Iterator[Step]:
    """What there is to load, and what is loaded."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    rows = [{"model": one.model, "release": one.release, "repository": one.repo_id, "SAEs": len(one.saes_map)} for one in known.values()]
    table = pd.DataFrame(rows).sort_values(["model", "release"], kind="stable")
    yield Step("C1", f"{len(table)} releases that SAELens knows, of which attrib.load_dictionary takes RELEASE/ID; by model", (
        table.groupby("model", sort=False).agg(releases=("release", "size"), SAEs=("SAEs", "sum")).reset_index().head(12)
    ))  # fmt: skip
    one = known["gpt2-small-res-jb"]
    ids = [{"id": name, "path": path, "Neuronpedia": one.neuronpedia_id[name]} for name, path in one.saes_map.items()]
    yield Step("C1", f"the SAEs of {one.release}", pd.DataFrame(ids).head(4))
    facts = [
        {
            "dictionary": d.name, "rule": d.config.rule, "reads": str(d.site), "writes": ", ".join(map(str, d.writes)), "d_in": d.d_in,
            "d_sae": d.d_sae, "context_size": d.config.metadata.context_size, "prepend_bos": d.config.metadata.prepend_bos,
        }
        for d in of.kinds
    ]  # fmt: skip
    yield Step("C2", "dictionaries of several kinds, and what their files say", pd.DataFrame(facts))


def running(of: Setting) -> Iterator[Step]:
    """An answer with the model alone and with the SAE in it; what the SAE holds on that pass; its strongest latents."""
    alone, spliced = (causal.answer_ranks(of.model, PROMPT, ANSWER, put_in, k=5) for put_in in ((), of.sae))
    yield Step("C3", f"{ANSWER!r} behind {PROMPT!r}", alone.to_pandas())
    yield Step("C3", "the most probable tokens there", alone.top_to_pandas())
    yield Step("C4", f"the same with {of.sae.name} in the pass", spliced.to_pandas())
    first = {
        name: f"{said.top_texts[0][0]!r}, {float(said.top_probability[0, 0]):.2%}" for name, said in (("model", alone), ("SAE", spliced))
    }
    yield Step("C4", "first predictions", pairs(first))
    (held,) = causal.dictionary_values(of.model, of.sae, PROMPT)
    shapes = {name: str(list(value.shape)) for name, value in held._asdict().items()}
    norms = {name: float(value[-1].norm()) for name, value in held._asdict().items()}
    yield Step(
        "C5",
        "what the SAE holds on that pass",
        pd.DataFrame({"what": shapes.keys(), "shape": shapes.values(), "norm at the last token": norms.values()}),
    )
    alive = int((held.latents[-1] != 0).sum())
    most = latents.strongest(of.model, of.sae, PROMPT, position=-1, k=3)
    yield Step(
        "C6",
        f"the strongest of {alive} latents active at the last token",
        pd.DataFrame([(one.latent, one.value) for one in most], columns=["latent", "activation"]),
    )


def searching(of: Setting, survey: latents.LatentSurvey, labels: latents.Labels) -> Iterator[Step]:
    """Latents by what they are active at, by what they are called, and by a text that makes them active."""
    found = [*latents.search(survey, "Sunday", k=3), *latents.search(survey, "sea", where="context", k=3)]
    found += latents.search(survey, "day", where="label", labels=labels, k=3)
    yield Step(
        "C7", "latents by tokens, contexts and labels", pd.DataFrame(found, columns=["dictionary", "latent", "where", "score", "text"])
    )
    active = latents.strongest(of.model, of.sae, "See you on Sunday", position=-1, k=3)
    yield Step("C7", "and by what a text makes active", pd.DataFrame(active, columns=["latent", "value", "position", "token", "places"]))


# ------------------------------------------------------------------------- training and what came of it


def worth(of: Setting, survey: latents.LatentSurvey, labels: latents.Labels) -> Iterator[Step]:
    """How good dictionaries are, and what their latents are over a corpus."""
    yield Step("C8", "training", "`attrib train` trains SAEs and transcoders with SAELens' own trainers: docs/training.md.")
    yield Step("C9", "activations kept on disk", "attrib.training.store_activations keeps, shuffles and mixes them for that.")
    some = of.corpus[::4]
    quality = latents.evaluate(of.model, of.kinds, some, patterns=False).to_pandas()
    columns = ["dictionary", "mse", "explained_variance", "l0", "dead", "ce_model", "ce_spliced", "ce_zero", "recovered"]
    yield Step("C10", f"what dictionaries are worth on {len(some)} sentences", quality[columns])
    density = survey.density[survey.density > 0]
    counts, bounds = np.histogram(np.log10(density), bins=np.arange(-4, 0.01, 0.5))
    bars = {"from": bounds[:-1].tolist(), "to": bounds[1:].tolist(), "latents": counts.tolist()}
    yield Step("C11", f"log10 of how often a latent is active; {int((survey.active == 0).sum())} never are", pd.DataFrame(bars))
    often = pd.DataFrame({"latent": survey.latents, "density": survey.density, "active": survey.active, "prompts": survey.distinct_prompts})
    often["times a prompt"] = often["active"] / often["prompts"].clip(lower=1)
    yield Step(
        "C11", "latents that stay active once they are", often.sort_values(["times a prompt", "latent"], ascending=[False, True]).head(5)
    )
    said = causal.generate(of.model, [STORY] * 5, max_tokens=of.new_tokens, temperature=1.0, seed=0, batch=5)
    yield Step("C12", f"{STORY!r}, at temperature 1", pd.DataFrame({"number": range(5), "text": [STORY + one.text for one in said]}))
    yield Step("C13", "a page of latents", page(survey, labels, range(16)))
    yield Step("C14", "curves of training runs to read", "There is nothing to compute: the runs lie on a website.")
    chosen = [hit.latent for hit in latents.search(survey, "day", k=6)]
    components = latents.pca(of.model, of.sae, chosen, of.corpus, components=3)
    yield Step(
        "C15", f"latents {chosen} of days: shares {[round(float(share), 2) for share in components.share]}", components.to_pandas().head(10)
    )


def page(survey: latents.LatentSurvey, labels: latents.Labels, chosen: range) -> pd.DataFrame:
    """What a dashboard shows of each latent: how often, how strongly and where it is active, and the tokens whose logits it raises."""
    texts = {(label.latent, label.source): label.text for label in labels}
    rows = []
    for latent in chosen:
        row = {"latent": latent, "density": float(survey.density[latent]), "raises": texts[latent, "logits"]}
        for best in survey.top(latent, 1):  # none of a latent that is never active
            row |= {"maximum": best.value, "at": best.token, "behind": "".join(best.tokens[max(0, best.at - 5) : best.at])}
        rows.append(row)
    return pd.DataFrame(rows, columns=["latent", "density", "maximum", "at", "behind", "raises"]).fillna({"at": "", "behind": ""})


# ----------------------------------------------------------------------------------- steering and ablating


def steering(of: Setting, survey: latents.LatentSurvey) -> Iterator[Step]:
    """A latent's largest activation, and what the model writes with so much of it added."""
    latent = max((hit.latent for hit in latents.search(survey, "sea", k=10)), key=lambda one: survey.maximum[one])
    most = float(survey.maximum[latent])
    yield Step("C16", f"the largest activation of latent {latent} over the corpus", pairs({"maximum": most}))
    options = {"max_tokens": of.new_tokens, "temperature": 0.7, "top_p": 0.9, "seed": 1}
    steer = causal.Add(of.sae.site, 2.0 * most * of.sae.params.W_dec[latent].to(of.model.dtype))
    (plain,), (steered,) = (causal.generate(of.model, STORY, edits=edits, **options) for edits in ((), steer))
    yield Step("C17", "as it is, and steered by twice as much", pairs({"plain": STORY + plain.text, "steered": STORY + steered.text}))
    yield Step("C18", "steering on a website", "Remote, and not asked. C17 is the same on this machine.")


def ablating(of: Setting) -> Iterator[Step]:
    """An answer without the latent that is strongest at its place, with and without the SAE's error."""
    latent = latents.strongest(of.model, of.sae, GENESIS, position=-1, k=1)[0].latent
    without = causal.Ablate(causal.Latents(of.sae, latent))
    said = {
        "model": causal.answer_ranks(of.model, GENESIS, EARTH),
        f"without {latent}, and without the error": causal.answer_ranks(of.model, GENESIS, EARTH, of.sae, without),
        f"without {latent}, with the error": causal.answer_ranks(of.model, GENESIS, EARTH, of.sae, without, errors="live"),
    }
    frames = [each.to_pandas().assign(**{"pass": name, "first": each.top_texts[0][0]}) for name, each in said.items()]
    yield Step("C19", f"{EARTH!r} behind {GENESIS!r}", pd.concat(frames)[["pass", "rank", "logit", "probability", "first"]])
    rows = []
    own = attrib.forward(of.model, GENESIS)
    for errors in (True, False):
        logits = causal.intervene(of.model, of.sae, GENESIS, errors=errors)
        loss = causal.loss(of.model, GENESIS, dictionaries=of.sae, errors=errors)
        rows.append({"errors": str(errors), "loss": loss, "furthest logit from the model's": float((logits - own).abs().max())})
    yield Step("C20", f"loss and logits with {of.sae.name} in the pass", pd.DataFrame(rows))


# ------------------------------------------------------------------------------------------ attributing


def earth_or_sky(of: Setting) -> Callable[[torch.Tensor], torch.Tensor]:
    """The metric: the logit of one token less that of the other, at the end."""
    earth, sky = (of.model.tokenizer.encode(token)[0] for token in (EARTH, SKY))

    def difference(logits: torch.Tensor) -> torch.Tensor:
        return logits[-1, earth] - logits[-1, sky]

    return difference


def attributing(of: Setting) -> Iterator[Step]:
    """What a metric owes to the latents of one SAE and of several, with and without errors; to sites of the model; to each token."""
    metric, both = earth_or_sky(of), [of.sae, of.later]
    with_errors = attrib.latents_to_metric(of.model, both, GENESIS, metric, keep=attrib.Dense())
    yield Step("C21", f"{EARTH!r} less {SKY!r} by latents of two SAEs, with errors", strongest(with_errors))
    alone = attrib.latents_to_metric(of.model, of.sae, GENESIS, metric, error=False, keep=attrib.Dense())
    yield Step("C22", "of one SAE, without its error", strongest(alone))
    spliced = attrib.latents_to_metric(of.model, both, GENESIS, metric, error=False, keep=attrib.Dense())
    yield Step("C23", "of two SAEs, without errors", strongest(spliced))
    ids = torch.tensor(of.model.tokenizer.encode(GENESIS))
    loss = attrib.latent_to_metric(
        of.model, of.sae, GENESIS, lambda logits: torch.nn.functional.cross_entropy(logits[:-1], ids[1:]), keep=attrib.Dense()
    )
    yield Step("C24", f"the loss, {float(loss.targets.activation[0]):.3f}, by latents", strongest([loss]))
    yield from by_place(of)
    shares = attrib.latent_to_metric(of.model, of.sae, GENESIS, metric, error="source", keep=attrib.Dense()).to_pandas()
    mass = shares.assign(size=shares.attribution.abs()).groupby("source_kind").agg(sum=("attribution", "sum"), size=("size", "sum"))
    yield Step("C26", "latents' and errors' shares", mass.assign(share=mass["size"] / mass["size"].sum()).reset_index())
    table = with_errors[0].to_pandas()
    by_token = table.groupby(["source_position", "source_token"]).attribution.sum().reset_index()
    yield Step("C27", "summed over the latents of each token", by_token)
    yield Step(
        "C28",
        f"all {len(table)} rows, by attribution",
        printing.edges(table.sort_values("attribution", ascending=False).head(5)).drop(columns="target"),
    )
    here = table[table.source_position == POSITION].groupby("source_latent").attribution.sum().nlargest(5)
    yield Step("C29", f"the strongest latents at position {POSITION}", here.reset_index())
    anywhere = table.groupby("source_latent").attribution.sum().nlargest(5)
    yield Step("C29", "and over all positions", anywhere.reset_index())
    if of.sae.config.metadata.neuronpedia_id is None:
        yield Step("C30", "their pages", f"The files of {of.sae.name} name no Neuronpedia id; the page of C13 is made here.")
        return
    random = int(torch.randint(of.sae.d_sae, (), generator=torch.Generator().manual_seed(0)))
    links = {
        "list": latents.neuronpedia_list(of.sae, here.index.tolist()),
        f"latent {random}": latents.neuronpedia_link(of.sae, random, embed=True),
    }
    yield Step("C30", "their pages", pairs(links))


def by_place(of: Setting) -> Iterator[Step]:
    """The metric by what stands at the SAE's site and behind it."""
    sites = [str(of.sae.site), f"blocks.{of.sae.site.layer}.hook_mlp_out", f"blocks.{of.sae.site.layer}.hook_attn_out"]
    (found,) = attrib.site_gradients(of.model, sites, GENESIS, earth_or_sky(of))
    columns = {f"{site.removeprefix('blocks.')}": found.attribution(site)[0].tolist() for site in sites}
    gradient = found.gradient[attrib.Site.parse(sites[0])][0].norm(dim=-1).tolist()
    yield Step(
        "C25", "gradient times activation of sites of the model", pd.DataFrame({"token": found.strings, "|gradient|": gradient, **columns})
    )


def strongest(found: list[attrib.Edges]) -> pd.DataFrame:
    """The strongest latents of each result."""
    parts = [printing.edges(edges.top(4)).assign(site=edges.sources.site, total=float(edges.total[0])) for edges in found]
    return pd.concat(parts).drop(columns="target")


if __name__ == "__main__":
    show(steps(tiny() if "--tiny" in sys.argv[1:] else smollm2()))
