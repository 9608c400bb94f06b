"""The table in docs/models.md, by measuring: `python -m tests.support.models_table` writes it between its two marks.

One row for each family of each source: what the family has, which ways of processing its weights are compared, and the
largest relative error of any site or of the logits over all of them, by dtype.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import attrib
from attrib.models.transformer import Model, ModelConfig
from tests.support.builders import ALL_FAMILIES, DTYPES, prompt, tiny, transformers_values
from tests.support.exact_transformers import keep_dtype
from tests.support.hooked import bridge_cases, errors, hooked, hooked_cases, lens_values, tiny_bridge
from tests.support.root import ROOT

DOCUMENT = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
HEAD = ("source", "family", "what it has", "processing", "float32", "float64", "held by")

Key = tuple[str, str, str, tuple[str, ...]]
"""Source, family, processing, and the dtypes that are measured."""


class Measured(NamedTuple):
    """One comparison."""

    source: str
    family: str
    options: str
    dtype: torch.dtype
    error: float
    model: Model


HELD_BY = {
    "HookedTransformer": "test_transformer_lens.py: test_every_site_and_the_logits",
    "TransformerBridge": "test_transformer_lens.py: test_every_site_and_the_logits_of_a_bridge",
    "transformers": "test_families.py: test_logits_and_every_site_are_transformers_own",
}
"""The test that makes the same comparisons."""


def cases() -> list[tuple[str, str, str, torch.dtype]]:
    """Source, family, options and dtype of every comparison."""
    lens = [("HookedTransformer", *case) for case in hooked_cases()] + [("TransformerBridge", *case) for case in bridge_cases()]
    return lens + [("transformers", family, "raw", dtype) for family in ALL_FAMILIES for dtype in DTYPES]


def measured() -> Iterator[Measured]:
    """All comparisons, on 20 positions of two prompts."""
    tokens = prompt(20, batch=(2,))
    for source, family, options, dtype in cases():
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            if source == "transformers":
                keep_dtype(patch)
                foreign = tiny(family, dtype)
                model, want = attrib.from_hugging_face(foreign), transformers_values(foreign, tokens)
            else:
                is_bridge = source == "TransformerBridge"
                foreign = tiny_bridge(family, Path(folder), dtype, options=options) if is_bridge else hooked(family, dtype, options=options)
                model, want = attrib.from_transformer_lens(foreign), lens_values(foreign, tokens)
            yield Measured(source, family, options, dtype, max(errors(model, tokens, want).values()), model)


def features(config: ModelConfig, model: Model) -> str:
    """What a reader looks for: how a model differs from the plainest."""
    d_rotary = model.params.rotary_cos.shape[-1]
    said = {
        {"layer": "LayerNorm", "rms": "RMSNorm", "none": "no norms"}[config.norm]: True,
        "attention both ways": not config.causal,
        "norms before and after": config.pre_norm and config.post_norm,
        "norms after alone": config.post_norm and not config.pre_norm,
        "learned positions": config.positions == "learned",
        "rotary": config.positions == "rotary" and d_rotary == config.d_head,
        "part of a head rotary": config.positions == "rotary" and d_rotary < config.d_head,
        "several rotary tables": len(config.rotary_tables) > 0,
        "attention and MLP in parallel": config.parallel,
        "grouped queries": config.n_kv_heads < config.n_heads,
        "norms of queries and keys by head": config.qk_norm == "head",
        "norms of all queries, all keys": config.qk_norm == "whole",
        "windows": len(config.windows) > 0,
        "unscaled attention": config.attention_scale == 1,
        "soft cap of scores": config.score_cap is not None,
        "soft cap of logits": config.logit_cap is not None,
        "embedding scale": config.embedding_scale != 1,
        f"{'gated ' if config.gated else ''}{config.activation}": config.has_mlps,
        "no MLPs": not config.has_mlps,
    }
    return ", ".join(name for name, has in said.items() if has)


def table(found: list[Measured]) -> str:
    """Markdown, one row for each family of each source."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for source, family in dict.fromkeys((each.source, each.family) for each in found):
        rows = [each for each in found if (each.source, each.family) == (source, family)]
        worst = {dtype: [each.error for each in rows if each.dtype == dtype] for dtype in DTYPES}
        options = ", ".join(dict.fromkeys(each.options for each in rows))
        figures = (f"{max(values):.0e}" if (values := worst[dtype]) else "" for dtype in DTYPES)
        lines.append((source, family, features(rows[0].model.config, rows[0].model), options, *figures, HELD_BY[source]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def expected() -> set[Key]:
    """The rows that the code calls for."""
    keys: dict[tuple[str, str], tuple[dict[str, None], dict[str, None]]] = {}
    for source, family, options, dtype in cases():
        processing, dtypes = keys.setdefault((source, family), ({}, {}))
        processing[options] = dtypes[str(dtype).removeprefix("torch.")] = None
    return {(source, family, ", ".join(processing), tuple(dtypes)) for (source, family), (processing, dtypes) in keys.items()}


def committed(text: str) -> set[Key]:
    """The rows that a document has between its marks."""
    rows = text[text.index(BEGIN) : text.index(END)].strip().splitlines()[3:]
    found = (dict(zip(HEAD, (cell.strip() for cell in row.strip("| ").split(" | ")), strict=True)) for row in rows)
    return {(row["source"], row["family"], row["processing"], tuple(d for d in ("float32", "float64") if row[d])) for row in found}


def main() -> None:
    """Measure, and write the table into docs/models.md."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    text = DOCUMENT.read_text()
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table(list(measured()))}\n{after}")


if __name__ == "__main__":
    main()
