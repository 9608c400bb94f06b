"""What trained dictionaries are worth, measured, and the card that says so: JSON for programs, README.md for people."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrib.core.types import FormatError, InputError, natural
from attrib.latents.evaluating import Quality
from attrib.training.config import Training
from attrib.training.contexts import HELD_OUT_EVERY, RUN
from attrib.training.densities import sparkline
from attrib.training.folders import read_json_file, write_json

CARD = "card.json"
_SHOWN = {
    "d_sae": ("latents", "{}"), "explained_variance": ("explained variance", "{:.3f}"), "l0": ("L0", "{:.1f}"),
    "dead_fraction": ("dead fraction", "{:.3f}"), "cross_entropy_original": ("CE original", "{:.3f}"),
    "cross_entropy_spliced": ("CE spliced", "{:.3f}"), "cross_entropy_zero": ("CE zero-ablated", "{:.3f}"),
    "loss_recovered": ("loss recovered", "{:.3f}"),
}  # fmt: skip
"""The columns of the table."""


def card_figures(row: Quality) -> dict[str, Any]:
    """What `attrib.latents.evaluate` measured of one dictionary, under the card's names.

    Explained variance, L0 and dead fraction are over tokens of usual norm, as in training; explained variance over all tokens is
    given too. Cross-entropies splice the reconstruction, without its error, into every usual token of what the model writes there and
    leave the others as they are; zero ablation zeroes the same tokens.
    """
    assert row.cross_entropy is not None
    whole = row.tokens + row.left_out
    return {
        "d_sae": row.d_sae,
        "explained_variance": row.explained_variance, "explained_variance_all_tokens": row.fidelity_of_all.explained_variance,
        "l0": row.l0, "dead_fraction": row.dead, "cross_entropy_original": row.cross_entropy_model,
        "cross_entropy_spliced": row.cross_entropy.spliced, "cross_entropy_zero": row.cross_entropy.zero,
        "loss_recovered": row.recovered, "held_out_tokens": whole, "usual_fraction": row.tokens / whole,
    }  # fmt: skip


def read_card(out: Path) -> dict[str, Any]:
    """What a folder's card says: `results` by dictionary, and `runs`, each with what its `sites`, the dictionaries, were made with.

    Without a card, one that says nothing. Raises FormatError for one that no `attrib train` wrote.
    """
    file = out / CARD
    card = read_json_file(file) if file.exists() else {"runs": [], "results": {}}
    runs, results = (card.get(key) for key in ("runs", "results")) if isinstance(card, dict) else (None, None)
    told = isinstance(runs, list) and isinstance(results, dict) and all(isinstance(run, dict) and "described" in run for run in runs)
    if not told:
        raise FormatError(f"out: {file} was not written by attrib train, which would change what it says; move it away.")
    return {"runs": runs, "results": results}


def with_run(card: dict[str, Any], run: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """A card after one more run: what it made stands in place of what was under those names, and others keep what they have."""
    others = [old | {"sites": [site for site in old["sites"] if site not in results]} for old in card["runs"]]
    runs = [*(old for old in others if old["sites"]), {"sites": list(results)} | run]
    return {"runs": runs, "results": dict(sorted((card["results"] | results).items(), key=lambda item: natural(item[0])))}


def write_card(out: Path, run: dict[str, Any], results: dict[str, Any]) -> None:
    """Write card.json and README.md.

    Args:
        run: `described`, the keys of the run's file; `tokens_by_source`; `training_tokens`.
        results: figures by dictionary.
    """
    card = with_run(read_card(out), run, results)
    write_json(out / CARD, card)
    (out / "README.md").write_text(_readme(card), encoding="utf-8")


def _readme(card: dict[str, Any]) -> str:
    runs, results = card["runs"], card["results"]
    models = ", ".join(dict.fromkeys(str(run["described"]["model"]) for run in runs))
    heads = " | ".join(title for title, _ in _SHOWN.values())
    rows = "\n".join(f"| `{name}` | " + " | ".join(_cell(found.get(key), key) for key in _SHOWN) + " |" for name, found in results.items())
    apart = "\nEach group of dictionaries below was measured on held-out text of its own.\n" if len(runs) > 1 else ""
    return f"""# Dictionaries for {models}

Trained with sae-lens by `attrib train`, in sae-lens' folder format: `attrib.load_dictionary` and `sae_lens.SAE.load_from_disk` load them.
Cross-entropy in nats per token.
{apart}
| dictionary | {heads} |
|---|{"---|" * len(_SHOWN)}
{rows}
{_densities(results)}
{"".join(_made(run, results, alone=len(runs) == 1) for run in runs)}Held out is one run of {RUN} contexts in every {HELD_OUT_EVERY}, \
or shorter runs of little text. Tokens that are left out by their norm count neither in training nor in
explained variance, L0 and dead fraction, and keep their true value where reconstructions are spliced in or zeroed.
"""


def _cell(value: Any, key: str) -> str:
    return "-" if value is None or value != value else _SHOWN[key][1].format(value)


def _made(run: dict[str, Any], results: dict[str, Any], *, alone: bool) -> str:
    """What the dictionaries of one run were trained and measured on, and the file that says the rest."""
    described = run["described"]
    texts = ", ".join(f"{name} ({count:,} tokens)" for name, count in run["tokens_by_source"].items())
    held_out = results[run["sites"][0]]["held_out_tokens"]
    return f"""{"" if alone else ", ".join(f"`{name}`" for name in run["sites"]) + ". "}Text: {texts}.
Contexts of {described["context"]} tokens {"with" if described["prepend_bos"] else "without"} a beginning-of-sequence token; \
{run["training_tokens"]:,} tokens for training; measured on {held_out:,} held-out tokens.
Again with `attrib train --config FILE --out FOLDER`, where FILE is:

```toml
{toml_of(described)}```

"""


def toml_of(described: Mapping[str, Any]) -> str:
    """The keys of a run's file as TOML: the dictionaries' own in tables of their own, behind all others."""
    tables = described["dictionary"]
    lines = [f"{key} = {_toml(value)}" for key, value in described.items() if key != "dictionary" and value is not None]
    for table in tables:
        lines += ["", "[[dictionary]]", *(f"{key} = {_toml(value)}" for key, value in table.items() if value is not None)]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A number, a truth, a text or a list of them; TOML has strings as JSON has."""
    return json.dumps(value, ensure_ascii=True)


def _densities(results: dict[str, Any]) -> str:
    """A table of how often latents are active."""
    rows = "\n".join(
        f"| `{name}` | {d['tokens']:,} | {d['dead']} | "
        + (" | ".join(f"{value:.2f}" for value in d["log10_quantiles"].values()) or " - | - | - ")
        + f" | {sparkline(d)} |"
        for name, d in ((name, found["density"]) for name, found in results.items())
    )
    return f"""
How often latents are active on training tokens; the histogram runs from 10⁻⁶ to 1, four bars a decade.

| dictionary | tokens | never active | log10 density, 5 % of latents below | median | 95 % below | histogram |
|---|---|---|---|---|---|---|
{rows}
"""


def check_trained(out: Path, name: str, asked: Training, found: Training | None) -> None:
    """Raises InputError where the dictionary that is there under a name was trained in another way: the card would say what it is not."""
    if found is None:
        raise InputError(f"out: {out / name} is there, and was not made by attrib train; delete it, or give another folder.")
    before, now = found.model_dump(), asked.model_dump()
    if changed := [f"{key} {before[key]}, now {now[key]}" for key in now if before[key] != now[key]]:
        raise InputError(f"out: {out / name} was trained with {'; '.join(changed)}. Delete it to train it again, or give another folder.")
