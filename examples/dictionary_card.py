"""What a trained dictionary is worth, measured, and the card that says so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from activation_store import HELD_OUT_EVERY, RUN, Store, console
from rich.progress import Progress

import attrib
from attrib.core.types import Site, natural
from attrib.dictionaries.dictionary import Dictionary, encode
from attrib.models.transformer import Model

BINS = np.arange(-6, 0.01, 0.25)  # of log10 density

# ------------------------------------------------------------------------------------ measurement


def measure(model: Model, dictionary: Dictionary, tokens: np.ndarray, ratio: float) -> dict[str, float | None]:
    """Quality on held-out contexts, of what the dictionary writes: what `attrib.latents.evaluate` measures, under the card's names.

    Explained variance, L0 and dead fraction are over tokens of usual norm, as in training; explained
    variance over all tokens is given too. Cross-entropies splice the reconstruction, without its error, into
    every usual token of what the model writes there and leave the others as they are; zero ablation zeroes the
    same tokens.
    """
    with Progress(console=console) as shown:
        task = shown.add_task(f"measuring {dictionary.name}")
        [row] = attrib.latents.evaluate(
            model, dictionary, torch.from_numpy(tokens.astype(np.int64)), max_norm=ratio, patterns=False,
            progress=lambda done, total: shown.update(task, completed=done, total=total),
        ).rows  # fmt: skip
    assert row.cross_entropy is not None
    return {
        "d_sae": row.d_sae,
        "explained_variance": row.explained_variance, "explained_variance_all_tokens": row.fidelity_of_all.explained_variance,
        "l0": row.l0, "dead_fraction": row.dead, "cross_entropy_original": row.cross_entropy_model,
        "cross_entropy_spliced": row.cross_entropy.spliced, "cross_entropy_zero": row.cross_entropy.zero,
        "loss_recovered": row.recovered, "held_out_tokens": tokens.size, "usual_fraction": row.tokens / tokens.size,
    }  # fmt: skip


def density(store: Store, dictionary: Dictionary, rows: np.ndarray, batch: int = 4096) -> dict[str, Any]:
    """How often each latent is active on the training tokens `rows`: dead ones, quantiles and a histogram of log10 density.

    A dead latent (active on none of them) is in no bin.
    """
    counts = torch.zeros(dictionary.d_sae, dtype=torch.int64)
    with torch.inference_mode():
        for first in range(0, len(rows), batch):
            counts += (encode(dictionary, store.rows(dictionary.site, rows[first : first + batch])) != 0).sum(0)
    return density_report(counts.numpy(), len(rows))


def density_report(counts: np.ndarray, tokens: int) -> dict[str, Any]:
    """The report of `density` from how many of `tokens` tokens each latent is active on."""
    alive = np.log10(counts[counts > 0] / tokens)
    histogram = np.histogram(alive.clip(BINS[0], BINS[-1]), BINS)[0]
    quantiles = np.quantile(alive, [0.05, 0.5, 0.95]).tolist() if len(alive) else []
    return {
        "tokens": tokens, "dead": int((counts == 0).sum()), "dead_fraction": float((counts == 0).mean()),
        "log10_quantiles": dict(zip(("5%", "50%", "95%"), quantiles, strict=False)),
        "log10_edges": BINS.tolist(), "latents": histogram.tolist(),
    }  # fmt: skip


def plot(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """The histograms as one HTML page, where plotly is installed (attrib's extra `view`)."""
    try:
        from plotly import graph_objects
    except ImportError:
        console.print("no plotly, so no density.html; the numbers are in the card")
        return
    bars = [graph_objects.Bar(name=name, x=BINS[:-1] + 0.125, y=found["density"]["latents"]) for name, found in results.items()]
    figure = graph_objects.Figure(bars)
    figure.update_layout(xaxis_title="log10 of the fraction of tokens where a latent is active", yaxis_title="latents", barmode="overlay")
    figure.update_traces(opacity=0.6)
    figure.write_html(path)


# ------------------------------------------------------------------------------------------- card

CARDS = {"sae": "card.json", "transcoder": "card-transcoders.json"}
"""The numbers of each kind, for programs; README.md is made from those that are there."""


def read_card(out: Path, kind: str) -> dict[str, Any]:
    """What the card of a kind says: `results` by site, and `runs`, each with the options and the text that its `sites` were made with.

    Without a card, one that says nothing. Raises BadParameter for one that does not tell runs apart.
    """
    file = out / CARDS[kind]
    card = json.loads(file.read_text()) if file.exists() else {"runs": [], "results": {}}
    if "runs" not in card:
        raise typer.BadParameter(f"{file} does not tell runs apart, so a new one would change what it says of others; move it away")
    return card


def with_run(card: dict[str, Any], run: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """A card after one more run: what it made stands in place of what was at those sites, and other sites keep what they have."""
    others = [old | {"sites": [site for site in old["sites"] if site not in results]} for old in card["runs"]]
    runs = [*(old for old in others if old["sites"]), {"sites": list(results)} | run]
    return {"runs": runs, "results": dict(sorted((card["results"] | results).items(), key=lambda item: natural(item[0])))}


def write_card(out: Path, kind: str, run: dict[str, Any], results: dict[str, Any]) -> None:
    """A JSON file for programs, and README.md for people about both kinds."""
    (out / CARDS[kind]).write_text(json.dumps(with_run(read_card(out, kind), run, results), indent=2) + "\n")
    there = {kind: read_card(out, kind) for kind, file in CARDS.items() if (out / file).exists()}
    (out / "README.md").write_text("\n".join(section(kind, card) for kind, card in there.items()))


def section(kind: str, card: dict[str, Any]) -> str:
    """What README.md says about the dictionaries of one kind."""
    runs, results = card["runs"], card["results"]
    keys = ("cross_entropy_original", "cross_entropy_spliced", "cross_entropy_zero", "loss_recovered")
    rows = "\n".join(
        f"| `{name}` | {r['d_sae']} | {r['explained_variance']:.3f} | {r['l0']:.1f} | {r['dead_fraction']:.3f} "
        + "".join(f"| {r[key]:.3f} " for key in keys)
        + "|"
        for name, r in results.items()
    )
    apart = "Each group of sites below was measured on held-out text of its own.\n" if len(runs) > 1 else ""
    command = "    python examples/train_dictionaries.py --text text --out dictionaries --work work"
    again = "\n".join(f"{command}/{kind}-{number}{_again(run)}" for number, run in enumerate(runs, 1))
    return f"""# {_heading(kind, results)} for SmolLM2-135M

{_what(kind, runs)} with sae-lens, stored in float16 in sae-lens's folder format.
Cross-entropy in nats per token.
{apart}
| site | latents | explained variance | L0 | dead fraction | CE original | CE spliced | CE zero-ablated | loss recovered |
|---|---|---|---|---|---|---|---|---|
{rows}
{_densities(results)}
{"".join(_made(run, results, alone=len(runs) == 1) for run in runs)}One run of {RUN} contexts in every {HELD_OUT_EVERY} is held out. \
Tokens that are left out (attention sinks, mostly the first token) count
neither in training nor in explained variance, L0 and dead fraction, and keep their true value where reconstructions are
spliced in or zeroed.
{LIMITS[kind]}
To repeat, in each run with the texts alone that are named for its sites:

    python examples/training_text.py debian --out text
    python examples/training_text.py generate --out text --root text/debian --tokens 200000
{again}
"""


LIMITS = {
    "sae": "",
    "transcoder": """
Limits: these are small. An MLP of 1536 hidden units is replaced by fewer latents, of which few are active, trained on few
tokens, each several times: expect latents with several meanings, and mind the error that attrib keeps beside them.
Cross-entropies are with one layer replaced and no error added. On other prose tests hold an explained variance of 0.4;
text of other kinds (code, other languages) was hardly seen.
""",
}


def _heading(kind: str, results: dict[str, Any]) -> str:
    if kind == "transcoder":
        return "Transcoders"
    places = dict.fromkeys("Residual-stream" if site.is_residual else site.kind for site in map(Site.parse, results))
    return " and ".join(f"{place} SAEs" for place in places)


def _what(kind: str, runs: list[dict[str, Any]]) -> str:
    if kind == "sae":
        return "TopK (k is the L0 below), trained"
    ks = ", ".join(dict.fromkeys(str(k) for run in runs for k in _by_site(run, "k")))
    what = "From what enters a layer's MLP (after the norm and its weight) to what the MLP writes. JumpReLU, trained"
    return f"{what}\nas BatchTopK (k is {ks})"


def _by_site(run: dict[str, Any], option: str) -> list[int]:
    """An option that differs by layer, for each site that the run still stands for."""
    return [run["options"][option][str(Site.parse(site).layer)] for site in run["sites"]]


def _made(run: dict[str, Any], results: dict[str, Any], *, alone: bool) -> str:
    """What the sites of one run were trained and measured on."""
    options, sites = run["options"], run["sites"]
    texts = ", ".join(f"{name} ({count:,} tokens)" for name, count in run["tokens_by_source"].items())
    return f"""{"" if alone else ", ".join(f"`{site}`" for site in sites) + ". "}Text: {texts}.
Contexts of {options["context"]} tokens without a beginning-of-sequence token; {run["training_tokens"]:,} tokens for training, \
{options["samples"]:,}
samples a site; measured on {results[sites[0]]["held_out_tokens"]:,} held-out tokens. Tokens whose norm is over \
{options["max_norm"]:g} medians are left out.

"""


def _again(run: dict[str, Any]) -> str:
    """The options of the command, whether or not they are the defaults today."""
    options = run["options"]
    words = [f"--kind {options['kind']}"] if "kind" in options else []
    words += [f"--layer {Site.parse(site).layer}" for site in run["sites"]]
    for name in ("width", "k"):
        numbers = _by_site(run, name)
        words += [f"--{name} {number}" for number in (numbers if len(set(numbers)) > 1 else numbers[:1])]
    if options.get("kind") == "sae":
        words.append(f"--place {options['place']}")
    names = ("bias", "tokens", "context", "samples", "batch", "lr", "max_norm", "measured", "seed")
    words += [f"--{name.replace('_', '-')} {options[name]}" for name in names if name in options]
    words += ["--autocast"] if options.get("autocast") else []
    lines = [" ".join(words[first : first + 8]) for first in range(0, len(words), 8)]
    return "".join(f" \\\n        {line}" for line in lines)


def _densities(results: dict[str, dict[str, Any]]) -> str:
    """A table of how often latents are active; nothing for cards written before it was counted."""
    counted = {name: r["density"] for name, r in results.items() if "density" in r}
    if not counted:
        return ""
    rows = "\n".join(
        f"| `{name}` | {d['tokens']:,} | {d['dead']} | "
        + " | ".join(f"{value:.2f}" for value in d["log10_quantiles"].values())
        + f" | {sparkline(d)} |"
        for name, d in counted.items()
    )
    return f"""
How often latents are active on training tokens; the histogram runs from 10⁻⁶ to 1, four bars a decade.

| site | tokens | never active | log10 density, 5 % of latents below | median | 95 % below | histogram |
|---|---|---|---|---|---|---|
{rows}
"""


def sparkline(density: dict[str, Any]) -> str:
    """The histogram in a line of text; a bar that is not empty is seen."""
    counts = np.array(density["latents"])
    heights = np.ceil(counts / max(1, counts.max()) * 8).astype(int)
    return "".join("·▁▂▃▄▅▆▇█"[height] for height in heights)
